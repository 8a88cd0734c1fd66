"""Layer statistics of the tasks: input second moments or Grams, by exact parameter name.

A folder holds one safetensors file per task, `<task>.safetensors`, with a vector (n,) or a matrix
(n, n) under the name of each weight whose input has n features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.errors import FamilyError, UsageError, shorten
from svd_hybrid.io.lookup import find_task_checkpoint
from svd_hybrid.io.reader import CheckpointReader, open_checkpoint
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.methods.base import MergeMethod


class FamilyStatistics:
    """Statistics by task.

    Args:
        files: reader by task; empty when no folder was given.
        infos: of the base's tensors.
        kind: what the method can use.
        missing: what a matrix without statistics means.
    """

    def __init__(
        self,
        files: Mapping[str, CheckpointReader],
        infos: Mapping[str, TensorInfo],
        kind: Literal["", "moment", "gram"],
        missing: Literal["error", "ones"],
    ) -> None:
        self.files = files
        self.infos = infos
        self.kind = kind
        self.missing = missing
        self.without: set[str] = set()

    @classmethod
    def open(
        cls,
        folder: Path | None,
        tasks: Sequence[str],
        infos: Mapping[str, TensorInfo],
        method: MergeMethod,
        settings: Iterable[Any],
        missing: Literal["error", "ones"],
    ) -> FamilyStatistics:
        """Find the file of every task and compare its names with the base.

        Args:
            folder: with one file per task; None when none was given.
            tasks: task names in order.
            infos: of the base's tensors.
            method: that is to read them.
            settings: its parameters, as some tensor has them.
            missing: what a matrix without statistics means.

        Raises:
            UsageError: statistics that the method does not read, or none where it needs them.
            StorageError, FamilyError: the folder or a file is missing, unreadable, or of another
                model.
        """
        reads = any(method.reads_statistics(params) for params in settings)
        if folder is None and reads:
            name, value = method.without_statistics
            raise UsageError(
                f"method {method.name} reads layer statistics, and none were given",
                fix=f"pass --statistics-dir DIR, or --set {name}={str(value).lower()}",
            )
        if folder is None:
            return cls({}, infos, method.statistics, missing)
        if not reads:
            raise UsageError(
                f"method {method.name} reads no layer statistics with these parameters",
                fix="drop --statistics-dir",
            )
        files = {task: open_checkpoint(find_task_checkpoint(folder, task)) for task in tasks}
        for task, reader in files.items():
            unknown = [name for name in reader.infos if name not in infos]
            if unknown:
                raise FamilyError(
                    f"statistics of task {task!r} name {unknown[0]!r}, which the base lacks",
                    where=str(reader.path),
                    fix="pass statistics of this model; names must match exactly",
                )
        return cls(files, infos, method.statistics, missing)

    @property
    def notes(self) -> list[str]:
        """What the user should know, once the tensors have been read."""
        if not self.without:
            return []
        meant = "trimmed by magnitude" if self.kind == "gram" else "all inputs count alike"
        return [f"no layer statistics, so {meant}: {shorten(sorted(self.without))}"]

    def of(self, name: str) -> list[Tensor] | None:
        """One float32 tensor per task, (n,) or (n, n); None when none were given for it.

        A method that cannot do without them says so itself; it may leave the tensor alone.

        Raises:
            FamilyError: some tasks have statistics for it and others do not, under `error`; or a
                shape or value is impossible.
        """
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
        features = matrix_shape(self.infos[name].shape)[1]
        if name not in reader.infos:
            self.without.add(name)
            return torch.ones(features)
        value = reader.read(name).to(torch.float32)
        shapes = [(features,)] if self.kind == "moment" else [(features,), (features, features)]
        if self.kind == "moment" and value.shape == (features, features):
            value = value.diagonal().clone()
        if (
            tuple(value.shape) not in shapes
            and tuple(value.shape)[:1]
            != (
                self.infos[name].shape[:1]  # weights stored [in, out]
            )
        ):
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
