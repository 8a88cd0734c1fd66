"""One tensor of the result: base + expression over stored parts, rounded once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from svd_hybrid.artifact.fingerprint import check_names, check_tensor
from svd_hybrid.artifact.manifest import TensorRecord
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.delta.evaluate import (
    BeyondRangeError,
    ExactRows,
    RowSource,
    evaluate,
    matrix_shape,
)
from svd_hybrid.delta.expr import Exact
from svd_hybrid.delta.serial import expr_from_json
from svd_hybrid.errors import ArtifactError, UsageError
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.io.tensors import DTYPES, FLOATS, TensorInfo
from svd_hybrid.numerics.largest import all_finite
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
        UsageError: no float dtype of that name.
    """

    def __init__(
        self,
        artifact: ArtifactReader,
        base: CheckpointReader,
        selection: Selection,
        dtype: str | None = None,
    ) -> None:
        if dtype is not None and dtype not in FLOATS:
            raise UsageError(f"dtype is {dtype!r}", fix="use one of " + ", ".join(FLOATS))
        check_names(artifact.manifest, base)
        artifact.vouched = True
        self.artifact = artifact
        self.base = base
        self.selection = selection
        self.dtype = dtype or selection.dtype
        self._records = {tensor.name: tensor for tensor in artifact.manifest.tensors}

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Dtype and shape of every tensor of the result, in base order."""
        return {
            name: TensorInfo(self._dtype(name) or info.dtype, info.shape) if info.is_float else info
            for name, info in self.base.infos.items()
        }

    def _dtype(self, name: str) -> str | None:
        """Dtype of a float tensor of the result: as asked for, else an exact task's own."""
        if self.dtype is not None:
            return self.dtype
        expr = exact_task(self.artifact, self._records[name], self.selection)
        return None if expr is None else expr.dtype

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
        rebuilt = self.rebuild(record, base)
        return base.clone() if rebuilt is base else rebuilt

    def rebuild(self, record: TensorRecord, base: Tensor) -> Tensor:
        """One tensor of the result, from a base tensor that was checked; that itself if unchanged.

        Raises:
            ArtifactError, UsageError: as `tensor`.
        """
        try:
            return self._rebuilt(record, base)
        except ArtifactError as error:
            error.where = error.where or f"tensor {record.name!r}, {self.selection.label}"
            raise

    def _rebuilt(self, record: TensorRecord, base: Tensor) -> Tensor:
        name = record.name
        wanted = self._dtype(name) if base.is_floating_point() else None
        dtype = DTYPES[wanted] if wanted else base.dtype
        delta = selected_delta(self.artifact, record, self.selection, base)
        if delta is None and dtype == base.dtype:
            return base
        exact = exact_task(self.artifact, record, self.selection) is not None
        rows, columns = matrix_shape(record.shape)
        start = base.reshape(rows, columns)
        out = torch.empty((rows, columns), dtype=dtype)
        step = max(1, BLOCK_SCALARS // max(columns, 1))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            if exact and isinstance(delta, ExactRows):
                tuned = delta.tuned(first, last)
                same = tuned.dtype == dtype
                out[first:last] = tuned if same else round_once(tuned.to(torch.float64), dtype)
                self._check_fits(out[first:last], name)
                continue
            change = None if delta is None else delta.rows(first, last)
            out[first:last] = last_step(
                start[first:last], change, dtype, variance=record.buffer and is_variance(name)
            )
            self._check_fits(out[first:last], name)
        return out.reshape(record.shape)

    def _check_fits(self, block: Tensor, name: str) -> None:
        if not all_finite(block):
            fault = BeyondRangeError if self.dtype is None else UsageError
            raise fault(
                f"rebuilt tensor does not fit {block.dtype}: it would hold infinity",
                where=f"tensor {name!r}, {self.selection.label}",
                fix="pass --dtype F32, or smaller weights",
            )


def is_variance(name: str) -> bool:
    """Whether a buffer of that name may not become negative."""
    return name.endswith("running_var")


def last_step(base: Tensor, change: Tensor | None, dtype: torch.dtype, *, variance: bool) -> Tensor:
    """Base plus delta, rounded once; scalars whose delta is 0 are the base's.

    Args:
        base: (k, n) float.
        change: (k, n) float64, the delta, of which zeros change their sign; None for zeros.
        dtype: of the result.
        variance: whether negative results are 0.
    """
    block = base.to(torch.float64)
    if change is not None:
        change.masked_fill_(change == 0, -0.0)  # x + -0.0 is x, to the sign of a zero
        block = block + change
        if variance:
            block.masked_fill_(block < 0, 0.0)  # a variance stays one, for any weights
    return round_once(block, dtype)


def exact_task(
    artifact: ArtifactReader, record: TensorRecord, selection: Selection
) -> Exact | None:
    """The expression that gives a single task's tensor itself, if there is one."""
    mix = selection.buffer_mix if record.buffer else selection.mix
    if not (selection.is_task and mix.is_task):
        return None
    expr = selection.expression(artifact.owner(record))
    found = None if expr is None else expr_from_json(expr)
    return found if isinstance(found, Exact) else None


def selected_delta(
    artifact: ArtifactReader,
    record: TensorRecord,
    selection: Selection,
    base: Tensor | None = None,
) -> RowSource | None:
    """The delta of one tensor as a matrix to be read row by row; None where it is zero.

    Raises:
        UsageError: it is an exact one, and no base is given.
    """
    expr = selection.expression(artifact.owner(record))
    mix = selection.buffer_mix if record.buffer else selection.mix
    if expr is None or not (mix.weights or mix.total):
        return None
    shape = matrix_shape(record.shape)
    matrix = None if base is None else base.reshape(shape)
    return evaluate(expr_from_json(expr), artifact.parts(record), mix, shape, matrix)


def delta_tensor(artifact: ArtifactReader, record: TensorRecord, selection: Selection) -> Tensor:
    """The delta of one tensor alone, float32; zeros where nothing is stored."""
    delta = selected_delta(artifact, record, selection)
    if delta is None:
        return torch.zeros(record.shape)
    rows, _ = matrix_shape(record.shape)
    return delta.rows(0, rows).to(torch.float32).reshape(record.shape)
