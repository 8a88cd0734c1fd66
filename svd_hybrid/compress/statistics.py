"""Layer statistics of the tasks: input second moments or Grams, by exact parameter name.

A folder holds one safetensors file per task, `<task>.safetensors`, with a vector (n,) or a matrix
(n, n) under the name of each weight whose input has n features. `svdh stats collect` writes such
files with a record of the weights they belong to, which is checked here; files without a record
are taken as they are, and a note says so. Whoever weighs inputs may use this, with or without a
merge method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from svd_hybrid.collect.record import StatisticsRecord
from svd_hybrid.collect.store import read_record
from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.errors import FamilyError, UsageError, shorten
from svd_hybrid.io.lookup import find_task_checkpoint
from svd_hybrid.io.reader import CheckpointReader, open_checkpoint
from svd_hybrid.io.tensors import TensorInfo, tensor_digest
from svd_hybrid.methods.base import MergeMethod

Kind = Literal["", "moment", "gram"]
Missing = Literal["error", "ones"]


@dataclass(frozen=True, slots=True)
class MeasuredFamily:
    """The family that statistics are for.

    Args:
        base: reader of the base.
        tasks: task names in order.
        checkpoints: reader by task; empty where the fine-tunes are not at hand.
    """

    base: CheckpointReader
    tasks: Sequence[str]
    checkpoints: Mapping[str, CheckpointReader]


class FamilyStatistics:
    """Statistics by task.

    Args:
        files: reader by task; empty when no folder was given.
        infos: of the base's tensors.
        kind: what is wanted of them: `moment` takes the diagonal of a Gram, `gram` takes either.
        missing: what a matrix without statistics means.
        inputs_first: weights that are stored inputs x outputs, by their records.
        about_files: notes.
    """

    def __init__(
        self,
        files: Mapping[str, CheckpointReader],
        infos: Mapping[str, TensorInfo],
        kind: Kind,
        missing: Missing,
        inputs_first: Iterable[str] = (),
        about_files: Iterable[str] = (),
    ) -> None:
        self.files = files
        self.infos = infos
        self.kind = kind
        self.missing = missing
        self.without: set[str] = set()
        self._inputs_first = frozenset(inputs_first)
        self.about_files = list(about_files)
        self._diagonal: set[str] = set()

    @classmethod
    def open(
        cls, folder: Path, family: MeasuredFamily, kind: Kind, missing: Missing = "error"
    ) -> FamilyStatistics:
        """Find the file of every task and compare names and records with the family.

        Args:
            folder: with one file per task.
            family: whose statistics they should be.
            kind: what is wanted of them.
            missing: what a matrix without statistics means.

        Raises:
            StorageError, FamilyError: the folder or a file is missing, unreadable, or of another
                model.
        """
        infos = family.base.infos
        files = {task: _task_file(folder, task) for task in family.tasks}
        records = {task: _record_of(reader) for task, reader in files.items()}
        for task, reader in files.items():
            unknown = [name for name in reader.infos if name not in infos]
            if unknown:
                raise FamilyError(
                    f"statistics of task {task!r} name {unknown[0]!r}, which the base lacks",
                    where=str(reader.path),
                    fix="pass statistics of this model; names must match exactly",
                )
        for task, record in records.items():
            if record is not None:
                _refuse_other_weights(task, record, files[task], family)
        known = [record for record in records.values() if record is not None]
        first = {name for record in known for name in record.inputs_first}
        return cls(files, infos, kind, missing, first, _record_notes(records, family))

    @classmethod
    def of_method(
        cls,
        folder: Path | None,
        family: MeasuredFamily,
        method: MergeMethod,
        settings: Iterable[Any],
        missing: Missing,
        *,
        also_minded: bool = False,
    ) -> FamilyStatistics:
        """The statistics a merge method reads.

        Args:
            folder: with one file per task; None when none was given.
            family: whose statistics they should be.
            method: that is to read them.
            settings: its parameters, as some tensor has them.
            missing: what a matrix without statistics means.
            also_minded: whether the profile has use for the folder.

        Raises:
            UsageError: statistics that nobody reads, or none where the method needs them.
            StorageError, FamilyError: as `open`.
        """
        reads = any(method.reads_statistics(params) for params in settings)
        if folder is None and reads:
            name, value = method.without_statistics
            raise UsageError(
                f"method {method.name} reads layer statistics, and none were given",
                fix=f"pass --statistics-dir DIR (svdh stats collect makes one), or --set "
                f"{name}={str(value).lower()}",
            )
        if folder is None or (also_minded and not reads):
            return cls({}, family.base.infos, method.statistics, missing)
        if not reads:
            raise UsageError(
                f"method {method.name} reads no layer statistics with these parameters",
                fix="drop --statistics-dir",
            )
        return cls.open(folder, family, method.statistics, missing)

    @property
    def notes(self) -> list[str]:
        """What the user should know, once the tensors have been read."""
        found = list(self.about_files)
        if self.without:
            meant = "trimmed by magnitude" if self.kind == "gram" else "all inputs count alike"
            found.append(f"no layer statistics, so {meant}: {shorten(sorted(self.without))}")
        if self._diagonal:
            named = shorten(sorted(self._diagonal))
            found.append(f"second moments, no Gram matrices, so inputs count as unrelated: {named}")
        return found

    def inputs_first(self, name: str) -> bool:
        """Whether the weight is stored inputs x outputs, so that statistics count its rows."""
        return name in self._inputs_first

    def of(self, name: str) -> list[Tensor] | None:
        """One float32 tensor per task, (n,) or (n, n); None when none were given for it.

        Vectors (norms, biases) have none, whatever the files hold for people to look at. A method
        that cannot do without them says so itself; it may leave the tensor alone.

        Raises:
            FamilyError: some tasks have statistics for it and others do not, under `error`; or a
                shape or value is impossible.
        """
        if len(self.infos[name].shape) < 2:
            if self.files and self.kind == "gram":
                self.without.add(name)
            return None
        having = [task for task, reader in self.files.items() if name in reader.infos]
        lacking = [task for task in self.files if task not in having]
        if having and lacking and self.missing == "error":
            raise FamilyError(
                f"task {lacking[0]!r} has no statistics for {name!r}, task {having[0]!r} has",
                where=str(self.files[lacking[0]].path),
                fix="collect them, or pass --missing-statistics ones",
            )
        if not having and (self.missing == "error" or len(self.infos[name].shape) != 2):
            if self.files and self.kind == "gram":
                self.without.add(name)
            return None
        return [self._read(task, name) for task in self.files] or None

    def _read(self, task: str, name: str) -> Tensor:
        reader = self.files[task]
        rows, columns = matrix_shape(self.infos[name].shape)
        features = rows if self.inputs_first(name) else columns
        if name not in reader.infos:
            self.without.add(name)
            return torch.ones(features)
        value = reader.read(name).to(torch.float32)
        if self.kind == "moment" and value.ndim == 2 and value.shape[0] == value.shape[1]:
            value = value.diagonal().clone()
        if self.kind == "gram" and value.ndim == 1:
            self._diagonal.add(name)
        if tuple(value.shape) not in self._shapes(name, rows, columns):
            raise FamilyError(
                f"statistics of {name!r} have shape {list(value.shape)}, "
                f"its inputs have {features} features",
                where=str(reader.path),
            )
        if not bool(torch.isfinite(value).all()) or bool(
            (value.diagonal() if value.ndim == 2 else value).min() < 0
        ):
            raise FamilyError(
                f"statistics of {name!r} hold NaN, infinity or a negative moment",
                where=str(reader.path),
            )
        return value

    def _shapes(self, name: str, rows: int, columns: int) -> set[tuple[int, ...]]:
        """What may stand in a file; without a record either axis may be the inputs."""
        sizes = {rows} if self.inputs_first(name) else {rows, columns}
        if not self.inputs_first(name) and len(self.infos[name].shape) != 2:
            sizes = {columns}
        axes = 1 if self.kind == "moment" else 2
        return {(size,) * count for size in sizes for count in range(1, axes + 1)}


def _task_file(folder: Path, task: str) -> CheckpointReader:
    try:
        return open_checkpoint(find_task_checkpoint(folder, task))
    except FamilyError as error:
        raise FamilyError(
            error.what.replace("checkpoint for task", "statistics of task"),
            where=error.where,
            fix=f"collect them: svdh stats collect --task {task}=… --output-dir {folder}",
        ) from error


def _record_of(reader: CheckpointReader) -> StatisticsRecord | None:
    return read_record(reader.files[0])


def _refuse_other_weights(
    task: str, record: StatisticsRecord, reader: CheckpointReader, family: MeasuredFamily
) -> None:
    """Compare the weights that have statistics with those the statistics were collected on.

    Raises:
        FamilyError: they differ in a bit, or the record does not name them.
    """
    weights = family.base if record.ran == "base" else family.checkpoints.get(task)
    if weights is None:
        return
    for name in reader.infos:
        wanted = record.tensors.get(name)
        if name not in weights.infos or tensor_digest(weights.read(name)) != wanted:
            whose = "base" if record.ran == "base" else f"task {task!r}"
            raise FamilyError(
                f"statistics of task {task!r} were collected on other weights than this {whose}",
                where=f"tensor {name!r} in {weights.path}; statistics in {reader.path}",
                fix="collect them again with this checkpoint: svdh stats collect",
            )


def _record_notes(
    records: Mapping[str, StatisticsRecord | None], family: MeasuredFamily
) -> list[str]:
    notes = []
    unknown = [task for task, record in records.items() if record is None]
    if unknown:
        notes.append(f"statistics without a record of their model, unchecked: {shorten(unknown)}")
    unchecked = [
        task
        for task, record in records.items()
        if record is not None and record.ran == "task" and task not in family.checkpoints
    ]
    if unchecked:
        notes.append(
            "the fine-tunes are not at hand, so that the statistics belong to them is unchecked: "
            + shorten(unchecked)
        )
    return notes
