"""Where deltas come from: a family of checkpoints (io.family), or an artifact and its base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from svd_hybrid.artifact.fingerprint import check_names, check_tensor
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.io.family import Stack
from svd_hybrid.io.reader import CheckpointReader, file_bytes, open_checkpoint
from svd_hybrid.reload.rebuild import Rebuilder, selected_delta
from svd_hybrid.reload.selection import select


class DeltaSource(Protocol):
    """Base tensors and the tasks' deltas, one tensor at a time, as often as asked for."""

    @property
    def base(self) -> CheckpointReader:
        """Reader of the base."""

    @property
    def task_names(self) -> list[str]:
        """Tasks in order."""

    @property
    def bytes_replaced(self) -> int:
        """Size of the tasks' files."""

    def has_deltas(self, name: str) -> bool:
        """Whether deltas are formed for this tensor of the base."""

    def stack(self, name: str) -> Stack:
        """The base tensor and its deltas."""

    def tuned(self, name: str) -> Iterator[Tensor]:
        """Every task's tensor in its own dtype, in order; where there are deltas.

        What `stack` counts as unchanged has the base's values here.
        """

    def recycle(self, deltas: Tensor) -> None:
        """Take back a stack that nothing refers to any more; its memory may be used again."""

    def same_everywhere(self, name: str, other: str) -> bool:
        """Whether two tensors of one base content have equal deltas in every task."""

    def all_notes(self) -> Sequence[str]:
        """What the user should know, once the tensors have been read."""


class ArtifactSource:
    """Deltas decoded from an artifact; the fine-tunes are not needed.

    Args:
        folder: the artifact.
        base: the base it was made from.

    Raises:
        BaseMismatchError: another base.
        UsageError: the artifact holds merges only, no single tasks.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.artifact = ArtifactReader.open(folder)
        self.base = open_checkpoint(base)
        manifest = self.artifact.manifest
        check_names(manifest, self.base)
        self.task_names = list(manifest.tasks)
        self.bytes_replaced = len(self.task_names) * file_bytes(self.base)
        self._records = {tensor.name: tensor for tensor in manifest.tensors}
        self._tasks = [select(manifest, task=task) for task in manifest.tasks]

    def has_deltas(self, name: str) -> bool:
        """Whether the tensor is a float one."""
        return self.base.infos[name].is_float

    def stack(self, name: str) -> Stack:
        """The base tensor, checked, and the deltas that the artifact gives back.

        Raises:
            BaseMismatchError: the base tensor is another one.
            ArtifactError: stored parts are damaged.
        """
        record = self._records[name]
        base = self.base.read(name)
        check_tensor(record, base, self.base.path)
        if not self.has_deltas(name):
            return Stack(base, None)
        deltas = self._deltas(name, base)
        return Stack(base, deltas, bool(deltas.any()))

    def tuned(self, name: str) -> Iterator[Tensor]:
        """The tasks' tensors as the artifact gives them back."""
        for selection in self._tasks:
            yield Rebuilder(self.artifact, self.base, selection).tensor(name)

    def recycle(self, deltas: Tensor) -> None:
        """Nothing to keep: decoding needs fresh memory anyway."""

    def _deltas(self, name: str, base: Tensor) -> Tensor:
        record = self._records[name]
        wide = torch.float64 if record.dtype == "F64" else torch.float32
        deltas = torch.zeros((len(self.task_names), *record.shape), dtype=wide)
        rows, _ = matrix_shape(record.shape)
        for index, selection in enumerate(self._tasks):
            delta = selected_delta(self.artifact, record, selection, base)
            if delta is not None:
                deltas[index] = delta.rows(0, rows).to(wide).reshape(record.shape)
        return deltas

    def same_everywhere(self, name: str, other: str) -> bool:
        """Whether the artifact stores the two tensors once."""
        owners = [self.artifact.owner(self._records[key]).name for key in (name, other)]
        return owners[0] == owners[1]

    def all_notes(self) -> list[str]:
        """Where the deltas came from."""
        artifact_id = self.artifact.manifest.artifact_id
        return [f"deltas were read from artifact {artifact_id[:16]}, as exact as that keeps them"]
