"""One tensor of the result: base + expression over stored parts, rounded once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from svd_hybrid.artifact.fingerprint import check_names, check_tensor
from svd_hybrid.artifact.manifest import TensorRecord
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.delta.evaluate import RowSource, evaluate, matrix_shape
from svd_hybrid.delta.serial import expr_from_json
from svd_hybrid.errors import ArtifactError, UsageError
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.io.tensors import DTYPES, TensorInfo
from svd_hybrid.numerics.reproducible import round_once
from svd_hybrid.reload.selection import Selection

BLOCK_SCALARS = 2**20
"""Scalars rebuilt at a time; bounds memory, and changes no bit of the result."""


class Rebuilder:
    """Rebuilds tensors of one selection from an open artifact and a base.

    Args:
        artifact: opened artifact.
        base: the base it was made from; its headers are compared here, its data as it is read.
        selection: what to rebuild.
        dtype: dtype name for float tensors; None for what the merge says, else the base's.

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
        self.dtype = dtype or selection.dtype
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
            ArtifactError: stored parts are damaged, or the result overflows the base's dtype.
            UsageError: the result overflows the dtype that was asked for.
        """
        record = self._records[name]
        base = self.base.read(name)
        check_tensor(record, base, self.base.path)
        dtype = DTYPES[self.dtype] if self.dtype and base.is_floating_point() else base.dtype
        delta = selected_delta(self.artifact, record, self.selection)
        if delta is None and dtype == base.dtype:
            return base.clone()
        rows, columns = matrix_shape(record.shape)
        start = base.reshape(rows, columns)
        out = torch.empty((rows, columns), dtype=dtype)
        step = max(1, BLOCK_SCALARS // max(columns, 1))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            block = start[first:last].to(torch.float64)
            if delta is not None:
                change = delta.rows(first, last)
                change.masked_fill_(change == 0, -0.0)  # x + -0.0 is x, to the sign of a zero
                block = block + change
                if record.buffer and name.endswith("running_var"):
                    block.masked_fill_(block < 0, 0.0)  # a variance stays one, for any weights
            out[first:last] = round_once(block, dtype)
            self._check_fits(out[first:last], name)
        return out.reshape(record.shape)

    def _check_fits(self, block: Tensor, name: str) -> None:
        if not bool(torch.isfinite(block).all()):
            fault = ArtifactError if self.dtype is None else UsageError
            raise fault(
                f"rebuilt tensor does not fit {block.dtype}: it would hold infinity",
                where=f"tensor {name!r}, {self.selection.label}",
                fix="pass --dtype F32, or smaller weights",
            )


def selected_delta(
    artifact: ArtifactReader, record: TensorRecord, selection: Selection
) -> RowSource | None:
    """The delta of one tensor as a matrix to be read row by row; None where it is zero."""
    expr = selection.expression(artifact.owner(record))
    mix = selection.buffer_mix if record.buffer else selection.mix
    if expr is None or not (mix.weights or mix.total):
        return None
    shape = matrix_shape(record.shape)
    return evaluate(expr_from_json(expr), artifact.parts(record), mix, shape)


def delta_tensor(artifact: ArtifactReader, record: TensorRecord, selection: Selection) -> Tensor:
    """The delta of one tensor alone, float32; zeros where nothing is stored."""
    delta = selected_delta(artifact, record, selection)
    if delta is None:
        return torch.zeros(record.shape)
    rows, _ = matrix_shape(record.shape)
    return delta.rows(0, rows).to(torch.float32).reshape(record.shape)
