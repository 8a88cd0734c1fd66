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
    Expr,
    Flat,
    LowRank,
    Masked,
    Scale,
    Scattered,
    Sum,
    Weighted,
)
from svd_hybrid.errors import ArtifactError
from svd_hybrid.numerics.reproducible import ReproducibleProduct, weighted_sum


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


class PartSource(Protocol):
    """Where parts come from: an artifact, or the arrays an encoder has just made."""

    def is_stacked(self, part: str) -> bool:
        """Whether the part has one slice per task."""

    def shape(self, part: str) -> tuple[int, int]:
        """Rows and columns of the part (of one slice, when stacked)."""

    def decode(self, part: str, task: int | None) -> Tensor:
        """The part (rows, columns), float32 or bool; of one task when stacked."""


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


def evaluate(expr: Expr, parts: PartSource, mix: Mix, shape: tuple[int, int]) -> RowSource:
    """The delta of one tensor, ready to be read row by row.

    Args:
        expr: over the names of `parts`.
        parts: where to find them; each needed one is decoded here, once.
        mix: the tasks and their weights.
        shape: rows and columns of the tensor's matrix view.

    Raises:
        ArtifactError: a part does not fit the shape the expression needs.
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
                return _task_by_task(expr, parts, mix, shape)
            return _ProductRows(
                ReproducibleProduct(_leaf(parts, left, mix).T, _leaf(parts, right, mix), limbs),
                _shared_factor(parts, mix, left, right),
            )
        case Masked(mask, inner, inside):
            if parts.is_stacked(mask) and not mix.is_task:
                return _task_by_task(expr, parts, mix, shape)
            return _MaskedRows(
                _mask(parts, mask, mix, shape, inside), evaluate(inner, parts, mix, shape)
            )
        case Scattered(mask, inner, inside):
            if parts.is_stacked(mask) and not mix.is_task:
                return _task_by_task(expr, parts, mix, shape)
            selected = _mask(parts, mask, mix, shape, inside)
            count = int(selected.sum())
            return _ScatteredRows(selected, evaluate(inner, parts, mix, (count, 1)))
        case Flat(inner):
            return _FlatRows(evaluate(inner, parts, mix, (math.prod(shape), 1)), shape[1])
        case Scale(factor, inner):
            return _ScaledRows(factor, evaluate(inner, parts, mix, shape))
        case Weighted(weights, inner):
            kept = {task: weight * mix.total for task, weight in enumerate(weights) if weight}
            return evaluate(inner, parts, Mix(kept), shape) if kept else _SumRows([], shape[1])
        case Sum(terms):
            return _SumRows([evaluate(term, parts, mix, shape) for term in terms], shape[1])
        case _ as unreachable:
            assert_never(unreachable)


def _task_by_task(expr: Expr, parts: PartSource, mix: Mix, shape: tuple[int, int]) -> RowSource:
    """The weighted sum of an expression's values per task, for products of stacked parts."""
    if not mix.weights:
        raise ArtifactError("an expression has a value per task, but no task was asked for")
    terms: list[RowSource] = [
        _ScaledRows(weight, evaluate(expr, parts, Mix({task: 1.0}), shape))
        for task, weight in mix.weights.items()
    ]
    return _SumRows(terms, shape[1])


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
    if not bool(torch.isfinite(mixed).all()):
        raise ArtifactError(f"part {part!r} leaves float32", fix="pass smaller weights")
    return mixed


def _numbers(parts: PartSource, part: str, task: int | None) -> Tensor:
    values = parts.decode(part, task)
    if values.dtype == torch.bool:
        raise ArtifactError(f"part {part!r} is a mask, used as numbers")
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
