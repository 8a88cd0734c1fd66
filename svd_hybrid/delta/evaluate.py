"""Expression + parts + task weights → the delta, a block of rows at a time, in float64.

Every number that comes out is the same on every machine, thread count and block size: sums run in
a fixed order, and matrix products are exact on integer grids (numerics.reproducible).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, assert_never

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.delta.expr import (
    Dense,
    Exact,
    Expr,
    Flat,
    LowRank,
    Masked,
    Scale,
    Scattered,
    Sum,
    Tucker,
    Weighted,
)
from svd_hybrid.errors import ArtifactError, UsageError
from svd_hybrid.numerics.bit_patterns import PATTERN_BLOCK, integer_dtype, prediction, restored
from svd_hybrid.numerics.largest import all_finite
from svd_hybrid.numerics.reproducible import ReproducibleProduct, weighted_sum

EXACT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Dtypes of an `Exact`, as the manifest names them."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Which tasks an expression is evaluated for, and with what weights.

    Args:
        weights: task index → finite weight, in task order; empty for a merge that is stored as
            such.
        shared: what terms without a stacked part are multiplied by; None for the sum of weights.
    """

    weights: Mapping[int, float]
    shared: float | None = None

    @property
    def total(self) -> float:
        """What terms without a stacked part are multiplied by."""
        return math.fsum(self.weights.values()) if self.shared is None else self.shared

    @property
    def is_task(self) -> bool:
        """Whether it is one task as it is."""
        return list(self.weights.values()) == [1.0] and self.total == 1.0


class BeyondRangeError(ArtifactError):
    """A number does not fit the type it is to be rounded to."""


class PartSource(Protocol):
    """Where parts come from: an artifact, or the arrays an encoder has just made."""

    def is_stacked(self, part: str) -> bool:
        """Whether the part has one slice per task."""

    def shape(self, part: str) -> tuple[int, int]:
        """Rows and columns of the part (of one slice, when stacked)."""

    def decode(self, part: str, task: int | None) -> Tensor:
        """The part (rows, columns), float32, bool or integers; of one task when stacked."""


class TensorParts:
    """Parts as a method made them, in memory and exact (a PartSource).

    Args:
        parts: by name; (rows, columns) shared or (N, rows, columns) stacked.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = parts

    def is_stacked(self, part: str) -> bool:
        """Whether the part has one slice per task."""
        return self.parts[part].ndim == 3

    def shape(self, part: str) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.parts[part].shape[-2:]
        return rows, columns

    def decode(self, part: str, task: int | None) -> Tensor:
        """The part (of one task)."""
        return self.parts[part] if task is None else self.parts[part][task]


class RowSource(Protocol):
    """A matrix that can be computed row block by row block."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start:stop, float64."""


def evaluate(
    expr: Expr,
    parts: PartSource,
    mix: Mix,
    shape: tuple[int, int],
    base: Tensor | None = None,
) -> RowSource:
    """The delta of one tensor, ready to be read row by row.

    Args:
        expr: over the names of `parts`.
        parts: where to find them; each needed one is decoded here, once.
        mix: the tasks and their weights.
        shape: rows and columns of the tensor's matrix view.
        base: the base tensor as that matrix, in its own dtype; only `Exact` needs it.

    Returns:
        The delta; an `ExactRows` for an `Exact` of a single task, which can give the task itself.

    Raises:
        ArtifactError: a part does not fit the shape the expression needs.
        UsageError: the base is needed and missing.
    """
    match expr:
        case Dense(part):
            _expect(parts.shape(part) == shape, f"part {part!r}", parts.shape(part), shape)
            return _DenseRows(_leaf(parts, part, mix), _shared_factor(parts, mix, part))
        case LowRank(left, right, limbs):
            factors = (*parts.shape(left), *parts.shape(right))
            fits = factors == (factors[0], shape[0], factors[0], shape[1])
            _expect(fits, f"product of parts {left!r} and {right!r}", factors, shape)
            if parts.is_stacked(left) and parts.is_stacked(right) and not mix.is_task:
                return _task_by_task(expr, parts, mix, shape, base)
            return _ProductRows(
                ReproducibleProduct(_leaf(parts, left, mix).T, _leaf(parts, right, mix), limbs),
                _shared_factor(parts, mix, left, right),
            )
        case Tucker(left, core, right):
            if sum(map(parts.is_stacked, (left, core, right))) > 1 and not mix.is_task:
                return _task_by_task(expr, parts, mix, shape, base)
            return _tucker(expr, parts, mix, shape)
        case Exact(part, dtype):
            return _exact(part, EXACT_DTYPES[dtype], parts, mix, shape, base)
        case Masked(mask, inner, inside):
            if parts.is_stacked(mask) and not mix.is_task:
                return _task_by_task(expr, parts, mix, shape, base)
            return _MaskedRows(
                _mask(parts, mask, mix, shape, inside), evaluate(inner, parts, mix, shape, base)
            )
        case Scattered(mask, inner, inside):
            if parts.is_stacked(mask) and not mix.is_task:
                return _task_by_task(expr, parts, mix, shape, base)
            selected = _mask(parts, mask, mix, shape, inside)
            count = int(selected.sum())
            return _ScatteredRows(selected, evaluate(inner, parts, mix, (count, 1), base))
        case Flat(inner):
            return _FlatRows(evaluate(inner, parts, mix, (math.prod(shape), 1), base), shape[1])
        case Scale(factor, inner):
            return _ScaledRows(factor, evaluate(inner, parts, mix, shape, base))
        case Weighted(weights, inner):
            kept = {task: weight * mix.total for task, weight in enumerate(weights) if weight}
            if not kept:
                return _SumRows([], shape[1])
            return evaluate(inner, parts, Mix(kept), shape, base)
        case Sum(terms):
            return _SumRows([evaluate(term, parts, mix, shape, base) for term in terms], shape[1])
        case _ as unreachable:
            assert_never(unreachable)


def _task_by_task(
    expr: Expr, parts: PartSource, mix: Mix, shape: tuple[int, int], base: Tensor | None
) -> RowSource:
    """The weighted sum of an expression's values per task, for products of stacked parts."""
    if not mix.weights:
        raise ArtifactError("an expression has a value per task, but no task was asked for")
    terms: list[RowSource] = [
        _ScaledRows(weight, evaluate(expr, parts, Mix({task: 1.0}), shape, base))
        for task, weight in mix.weights.items()
    ]
    return _SumRows(terms, shape[1])


def _tucker(expr: Tucker, parts: PartSource, mix: Mix, shape: tuple[int, int]) -> RowSource:
    """Both products, the inner one rounded to float32 as if it were a stored factor."""
    names = (expr.left, expr.core, expr.right)
    (p, m), (rows, columns), (q, n) = (parts.shape(name) for name in names)
    what = "product of parts " + ", ".join(map(repr, names))
    _expect((rows, columns, m, n) == (p, q, *shape), what, (p, m, rows, columns, q, n), shape)
    left, core, right = (_leaf(parts, name, mix) for name in names)
    inner = ReproducibleProduct(core, right, expr.limbs).rows(0, rows).to(torch.float32)
    if not all_finite(inner):
        raise ArtifactError(f"{what} leaves float32")
    product = ReproducibleProduct(left.T, inner, expr.limbs)
    return _ProductRows(product, _shared_factor(parts, mix, *names))


def _expect(fits: bool, what: str, got: tuple[int, ...], want: tuple[int, ...]) -> None:
    if not fits:
        raise ArtifactError(f"{what} has shape {got}, which does not give {want}")


def _leaf(parts: PartSource, part: str, mix: Mix) -> Tensor:
    """The part, or the weighted sum of its slices rounded to float32."""
    if not parts.is_stacked(part):
        return _numbers(parts, part, None)
    if not mix.weights:
        raise ArtifactError(f"part {part!r} has a slice per task, but no task was asked for")
    if mix.is_task:
        return _numbers(parts, part, next(iter(mix.weights)))
    terms = ((weight, _numbers(parts, part, task)) for task, weight in mix.weights.items())
    mixed = weighted_sum(terms).to(torch.float32)
    if not all_finite(mixed):
        raise BeyondRangeError(f"part {part!r} leaves float32", fix="pass smaller weights")
    return mixed


def _numbers(parts: PartSource, part: str, task: int | None) -> Tensor:
    values = parts.decode(part, task)
    if not values.is_floating_point():
        what = "a mask" if values.dtype == torch.bool else "one of bit patterns"
        raise ArtifactError(f"part {part!r} is {what}, used as numbers")
    return values


def _shared_factor(parts: PartSource, mix: Mix, *names: str) -> float:
    """Total weight for a term without stacked leaf; 1 when a stacked leaf carries it."""
    return 1.0 if any(parts.is_stacked(name) for name in names) else mix.total


def _mask(parts: PartSource, part: str, mix: Mix, shape: tuple[int, int], inside: bool) -> Tensor:
    _expect(parts.shape(part) == shape, f"mask {part!r}", parts.shape(part), shape)
    mask = parts.decode(part, next(iter(mix.weights)) if parts.is_stacked(part) else None)
    if mask.dtype != torch.bool:
        raise ArtifactError(f"part {part!r} is used as a mask but is not one")
    return mask if inside else ~mask


def _exact(
    part: str,
    dtype: torch.dtype,
    parts: PartSource,
    mix: Mix,
    shape: tuple[int, int],
    base: Tensor | None,
) -> RowSource:
    """One task's own numbers, or the weighted sum of all tasks' differences to the base."""
    if base is None:
        raise UsageError(
            "these deltas are told apart from a base that was not given",
            fix="pass the base: exact tasks are stored as changes of its bit patterns",
        )
    _expect(parts.shape(part) == shape, f"part {part!r}", parts.shape(part), shape)
    _expect(tuple(base.shape) == shape, f"base of part {part!r}", tuple(base.shape), shape)
    if not parts.is_stacked(part):
        raise ArtifactError(f"part {part!r} holds a task's bit patterns, but is shared")
    if not mix.weights:
        raise ArtifactError(f"part {part!r} has a slice per task, but no task was asked for")
    rows = (ExactRows(_patterns(parts, part, task, dtype), base, dtype) for task in mix.weights)
    if mix.is_task:
        return next(rows)
    weighted = zip(mix.weights.values(), rows, strict=True)
    return _DenseRows(weighted_sum((w, r.rows(0, shape[0])) for w, r in weighted), 1.0)


def _patterns(parts: PartSource, part: str, task: int, dtype: torch.dtype) -> Tensor:
    values = parts.decode(part, task)
    if values.dtype != integer_dtype(dtype):
        raise ArtifactError(f"part {part!r} holds {values.dtype}, used as patterns of {dtype}")
    return values


class ExactRows:
    """One task of an `Exact`: its numbers, or their difference to the base (a RowSource).

    Args:
        integers: (m, n), the task's part.
        base: (m, n), in its own dtype.
        dtype: of the task.
    """

    def __init__(self, integers: Tensor, base: Tensor, dtype: torch.dtype) -> None:
        self.integers = integers.reshape(-1)
        self.base = base
        self.dtype = dtype
        self._block: tuple[int, Tensor] = (-1, torch.empty(0, dtype=dtype))  # the last one made

    def rows(self, start: int, stop: int) -> Tensor:
        """The task minus the base, rounded to float64."""
        tuned = self.tuned(start, stop).to(torch.float64)
        return tuned.sub_(self.base[start:stop].to(torch.float64))

    def tuned(self, start: int, stop: int) -> Tensor:
        """The task's rows, in its dtype, bit for bit."""
        columns = self.base.shape[1]
        first, last = start * columns, stop * columns
        out = torch.empty(last - first, dtype=self.dtype)
        for block in range(first // PATTERN_BLOCK, -(-last // PATTERN_BLOCK)):
            begin = block * PATTERN_BLOCK
            low, high = max(first, begin), min(last, begin + PATTERN_BLOCK)
            out[low - first : high - first] = self._restored(block)[low - begin : high - begin]
        return out.reshape(stop - start, columns)

    def _restored(self, block: int) -> Tensor:
        if self._block[0] != block:
            where = slice(block * PATTERN_BLOCK, (block + 1) * PATTERN_BLOCK)
            predicted = prediction(self.base.reshape(-1)[where], self.dtype)
            self._block = (block, restored(self.integers[where], predicted))
        return self._block[1]


@dataclass(frozen=True, slots=True)
class _DenseRows:
    values: Tensor
    factor: float

    def rows(self, start: int, stop: int) -> Tensor:
        block = self.values[start:stop].to(torch.float64)
        return block if self.factor == 1.0 else block * self.factor


@dataclass(frozen=True, slots=True)
class _ProductRows:
    product: ReproducibleProduct
    factor: float

    def rows(self, start: int, stop: int) -> Tensor:
        block = self.product.rows(start, stop)
        return block if self.factor == 1.0 else block * self.factor


@dataclass(frozen=True, slots=True)
class _MaskedRows:
    mask: Tensor
    inner: RowSource

    def rows(self, start: int, stop: int) -> Tensor:
        return self.inner.rows(start, stop).masked_fill_(~self.mask[start:stop], 0.0)


class _ScatteredRows:
    def __init__(self, mask: Tensor, inner: RowSource) -> None:
        self.mask = mask
        self.inner = inner
        self.before = [0, *mask.sum(1).cumsum(0).tolist()]  # selected scalars above each row

    def rows(self, start: int, stop: int) -> Tensor:
        block = torch.zeros((stop - start, self.mask.shape[1]), dtype=torch.float64)
        selected = self.inner.rows(self.before[start], self.before[stop])
        if selected.numel():  # NumPy fills a mask in a third of torch's time
            np.place(block.numpy(), self.mask[start:stop].numpy(), selected[:, 0].numpy())
        return block


@dataclass(frozen=True, slots=True)
class _FlatRows:
    inner: RowSource
    columns: int

    def rows(self, start: int, stop: int) -> Tensor:
        block = self.inner.rows(start * self.columns, stop * self.columns)
        return block.reshape(stop - start, self.columns)


@dataclass(frozen=True, slots=True)
class _ScaledRows:
    factor: float
    inner: RowSource

    def rows(self, start: int, stop: int) -> Tensor:
        return self.inner.rows(start, stop) * self.factor


@dataclass(frozen=True, slots=True)
class _SumRows:
    terms: list[RowSource]
    columns: int

    def rows(self, start: int, stop: int) -> Tensor:
        if not self.terms:
            return torch.zeros((stop - start, self.columns), dtype=torch.float64)
        total = self.terms[0].rows(start, stop)
        for term in self.terms[1:]:
            total = total + term.rows(start, stop)
        return total


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The matrix view of a tensor: first axis by all others; one row for fewer than two axes.

    >>> matrix_shape((4, 3, 2, 2)), matrix_shape((5,)), matrix_shape(())
    ((4, 12), (1, 5), (1, 1))
    """
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])
