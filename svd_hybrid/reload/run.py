"""reload: base + artifact → weights, one tensor at a time. Knows expressions, never methods.

selection (task | weights | merge) ─► per tensor: base read and checked ─► expression evaluated in
row blocks ─► base + delta, rounded once ─► written
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.artifact.fingerprint import check_names, check_tensor
from svd_hybrid.artifact.manifest import Manifest, TensorRecord
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.delta.evaluate import Mix, evaluate, matrix_shape
from svd_hybrid.delta.serial import expr_from_json
from svd_hybrid.errors import ArtifactError, StorageError, UsageError, shorten
from svd_hybrid.io.lookup import match_name
from svd_hybrid.io.model_writer import DEFAULT_SHARD_BYTES, check_free, write_model
from svd_hybrid.io.reader import CheckpointReader, open_checkpoint
from svd_hybrid.io.tensors import DTYPES, FLOATS, TensorInfo
from svd_hybrid.numerics.reproducible import round_once

BLOCK_SCALARS = 2**20
"""Scalars rebuilt at a time; bounds memory, and changes no bit of the result."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Selection:
    """What to rebuild: one task, or a weighted sum of tasks.

    Args:
        label: for people: `task cars`, `merge merged`, `weights w.json`.
        weights: task index → weight, zero weights left out; scaling included.
        buffer_weights: the same for running statistics: they sum to 1, without scaling.
        is_task: one fine-tune as it was, rather than a merge.
    """

    label: str
    weights: Mapping[int, float]
    buffer_weights: Mapping[int, float]
    is_task: bool


def select(
    manifest: Manifest,
    *,
    task: str | None = None,
    weights: Mapping[str, float] | None = None,
    merge: str | None = None,
) -> Selection:
    """Resolve what was asked for; by default the artifact's default merge.

    Args:
        manifest: of the artifact.
        task: name of one fine-tune.
        weights: task → finite weight, every task of the artifact named.
        merge: name of a stored merge.

    Raises:
        UsageError: more than one of the three, or weights that do not fit the tasks.
        UnknownNameError: no such task or merge.
    """
    if sum(choice is not None for choice in (task, weights, merge)) > 1:
        raise UsageError("task, weights and merge exclude each other", fix="pass one of them")
    if task is not None:
        index = manifest.task_index(task)
        return Selection(f"task {task}", {index: 1.0}, {index: 1.0}, is_task=True)
    if weights is not None:
        given = _weights_in_order(manifest, weights)
        return _linear("given weights", given, 1.0)
    chosen = manifest.merge(merge)
    return _linear(f"merge {merge or manifest.default_merge}", list(chosen.weights), chosen.scaling)


def _weights_in_order(manifest: Manifest, weights: Mapping[str, float]) -> list[float]:
    by_task: dict[str, float] = {}
    for name, weight in weights.items():
        task = match_name(name, manifest.tasks, "task", "weights")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UsageError(f"weight of task {name!r} is {weight!r}, not a number")
        if not math.isfinite(weight):
            raise UsageError(f"weight of task {name!r} is {weight}, must be finite")
        by_task[task] = float(weight)
    missing = [task for task in manifest.tasks if task not in by_task]
    if missing:
        raise UsageError(
            f"no weight for task {shorten(missing)}", fix="name every task; 0 leaves one out"
        )
    return [by_task[task] for task in manifest.tasks]


def _linear(label: str, weights: list[float], scaling: float) -> Selection:
    total = math.fsum(weights)
    if total == 0:
        average = [1.0 / len(weights)] * len(weights)  # weights that cancel define no average
    else:
        average = [weight / total for weight in weights]
    return Selection(
        label,
        {index: weight * scaling for index, weight in enumerate(weights) if weight * scaling != 0},
        {index: weight for index, weight in enumerate(average) if weight != 0},
        is_task=False,
    )


def load_weights(path: Path) -> dict[str, float]:
    """A JSON object task → weight.

    Raises:
        StorageError: the file cannot be read.
        UsageError: it is no such object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(
            f"weights file cannot be read: {error.strerror}", where=str(path)
        ) from error
    except ValueError as error:
        raise UsageError(f"weights file is not JSON: {error}", where=str(path)) from error
    if not isinstance(record, dict):
        raise UsageError("weights file is not an object task → weight", where=str(path))
    return record


class Rebuilder:
    """Rebuilds tensors of one selection from an open artifact and a base.

    Args:
        artifact: opened artifact.
        base: the base it was made from; its headers are compared here, its data as it is read.
        selection: what to rebuild.
        dtype: dtype name for float tensors; None keeps the base's.

    Raises:
        BaseMismatchError: names, shapes or dtypes of the base differ.
    """

    def __init__(
        self,
        artifact: ArtifactReader,
        base: CheckpointReader,
        selection: Selection,
        dtype: str | None = None,
    ) -> None:
        check_names(artifact.manifest, base)
        self.artifact = artifact
        self.base = base
        self.selection = selection
        self.dtype = dtype
        self._records = {tensor.name: tensor for tensor in artifact.manifest.tensors}

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Dtype and shape of every tensor of the result, in base order."""
        return {
            name: TensorInfo(self.dtype or info.dtype, info.shape) if info.is_float else info
            for name, info in self.base.infos.items()
        }

    def stream(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors of the result, one at a time."""
        for name in names:
            yield name, self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor of the result, contiguous, on the CPU.

        Raises:
            BaseMismatchError: the base tensor differs in a bit from the one compressed against.
            ArtifactError: stored parts are damaged, or the result overflows its dtype.
        """
        record = self._records[name]
        base = self.base.read(name)
        check_tensor(record, base, self.base.path)
        dtype = DTYPES[self.dtype] if self.dtype and base.is_floating_point() else base.dtype
        owner = self._records[record.alias] if record.alias else record
        expr = owner.task
        if not self.selection.is_task and owner.blend is not None:
            expr = owner.blend
        weights = self.selection.buffer_weights if record.buffer else self.selection.weights
        if expr is None or not weights:
            return base.clone() if dtype == base.dtype else self._checked(base.to(dtype), name)
        rows, columns = matrix_shape(record.shape)
        delta = evaluate(
            expr_from_json(expr), self.artifact.parts(record), Mix(weights), (rows, columns)
        )
        start = base.reshape(rows, columns)
        out = torch.empty((rows, columns), dtype=dtype)
        step = max(1, BLOCK_SCALARS // max(columns, 1))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            block = start[first:last].to(torch.float64) + delta.rows(first, last)
            if record.buffer and name.endswith("running_var"):
                block.clamp_(min=0)  # a variance stays one, whatever the weights
            out[first:last] = round_once(block, dtype)
        return self._checked(out.reshape(record.shape), name)

    def _checked(self, tensor: Tensor, name: str) -> Tensor:
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(
                f"rebuilt tensor does not fit {tensor.dtype}: it would hold infinity",
                where=f"tensor {name!r}, {self.selection.label}",
                fix="pass --dtype F32, or smaller weights",
            )
        return tensor


def delta_tensor(artifact: ArtifactReader, record: TensorRecord, selection: Selection) -> Tensor:
    """The delta of one tensor alone, float32; zeros where nothing is stored."""
    manifest = {tensor.name: tensor for tensor in artifact.manifest.tensors}
    owner = manifest[record.alias] if record.alias else record
    expr = owner.task if selection.is_task else owner.blend or owner.task
    weights = selection.buffer_weights if record.buffer else selection.weights
    if expr is None or not weights:
        return torch.zeros(record.shape)
    rows, columns = matrix_shape(record.shape)
    delta = evaluate(expr_from_json(expr), artifact.parts(record), Mix(weights), (rows, columns))
    return delta.rows(0, rows).to(torch.float32).reshape(record.shape)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload wrote.

    Args:
        output_path: file or folder.
        selection: for people.
        artifact_id: of the artifact it came from.
        tensors: tensors written.
        bytes_written: size of the output.
        wall_s, cpu_s: time of the run.
    """

    output_path: Path
    selection: str
    artifact_id: str
    tensors: int
    bytes_written: int
    wall_s: float
    cpu_s: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "output_path": str(self.output_path),
            "selection": self.selection,
            "artifact_id": self.artifact_id,
            "tensors": self.tensors,
            "bytes_written": self.bytes_written,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }


def run_reload(
    artifact_dir: Path,
    base: Path,
    output_path: Path,
    *,
    task: str | None = None,
    weights: Mapping[str, float] | None = None,
    merge: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ReloadResult:
    """Rebuild a model and write it.

    Args:
        artifact_dir: what compress wrote.
        base: the base checkpoint it was made from.
        output_path: `*.safetensors`, `*.pt|.pth|.bin`, or a folder in HF layout.
        task: one fine-tune; at most one of task, weights and merge, see `select`.
        weights: task → weight.
        merge: a stored merge.
        dtype: F64, F32, F16 or BF16 for float tensors; None keeps the base's dtypes.
        max_shard_bytes: largest weight file of an HF folder.
        overwrite: replace an existing output.
        progress: called with ("reload", done, total).

    Raises:
        SvdhError: each with its class: usage, artifact, base mismatch, storage.
    """
    wall, cpu = time.monotonic(), time.process_time()
    if dtype is not None and dtype not in FLOATS:
        raise UsageError(f"dtype is {dtype!r}", fix="use one of " + ", ".join(FLOATS))
    if max_shard_bytes < 1:
        raise UsageError(f"max_shard_bytes is {max_shard_bytes}, must be 1 or more")
    artifact = ArtifactReader.open(artifact_dir)
    selection = select(artifact.manifest, task=task, weights=weights, merge=merge)
    check_free(output_path, overwrite)
    rebuilder = Rebuilder(artifact, open_checkpoint(base), selection, dtype)
    infos = rebuilder.infos
    done = 0

    def stream(names: list[str]) -> Iterator[tuple[str, Tensor]]:
        nonlocal done
        for name, tensor in rebuilder.stream(names):
            yield name, tensor
            done += 1
            if progress:
                progress("reload", done, len(infos))

    write_model(
        output_path,
        infos,
        stream,
        base=base,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
    )
    return ReloadResult(
        output_path,
        selection.label,
        artifact.manifest.artifact_id,
        len(infos),
        _size(output_path),
        time.monotonic() - wall,
        time.process_time() - cpu,
    )


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
