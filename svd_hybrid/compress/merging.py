"""One tensor of a merge that is stored as such: result of the method → coded parts → errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import BitmaskCodec, Codec, HalfCodec, RawCodec
from svd_hybrid.compress.coded_merge import MergeCoding, code_merged
from svd_hybrid.compress.profiles.base import EncodedParts, encode_part
from svd_hybrid.compress.tensor import BLOCK_SCALARS, measure_tasks
from svd_hybrid.delta.evaluate import Mix, TensorParts, evaluate, matrix_shape
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
    parts_of,
    renamed,
)
from svd_hybrid.methods.base import MergeResult, Region, TensorContext
from svd_hybrid.numerics.metrics import ErrorSums

MERGED = Mix({}, shared=1.0)
DENSE = "merged"
"""The part that holds a merged delta number by number."""


@dataclass(frozen=True, slots=True)
class EncodedMerge:
    """What is stored of a merge for one tensor.

    Args:
        parts: by name, prefix included.
        merged: the merged delta before scaling; None when it is zero.
        task: the delta of a task, when the merge gives single tasks back; None when zero.
        error: of the merged delta against what the method gave; None when not measured.
        task_errors: of each task's delta against what went in; empty without `task`.
    """

    parts: Mapping[str, EncodedPart]
    merged: Expr | None
    task: Expr | None
    error: ErrorSums | None = None
    task_errors: tuple[ErrorSums, ...] = ()

    @property
    def nbytes(self) -> int:
        """Stored bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def form(self) -> str:
        """How the merged delta is stored, in a word."""
        return "zero" if self.merged is None else form_of(self.merged)


def form_of(expr: Expr) -> str:
    """The shape of an expression, in a word."""
    match expr:
        case Dense() | Exact():
            return "dense"
        case LowRank() | Tucker():
            return "factors"
        case Masked():
            return "masked"
        case Scattered():
            return "sparse"
        case Flat(inner) | Scale(_, inner) | Weighted(_, inner):
            return form_of(inner)
        case Sum(terms):
            return "+".join(dict.fromkeys(form_of(term) for term in terms))


def average_result(deltas: Tensor, ctx: TensorContext, *, per_task: bool) -> MergeResult:
    """The mean over tasks, which is what running statistics get from every method.

    Args:
        deltas: (N, *shape), not weighted.
        ctx: whose weights, normalised, are those of the mean.
        per_task: also keep every task's delta.
    """
    stack = deltas.reshape(deltas.shape[0], *matrix_shape(deltas.shape[1:]))
    mean = linear_sum(stack, normalised(ctx.weights))
    if not per_task:
        return MergeResult({"merged": mean}, Dense("merged"))
    parts = {"merged": mean, "coeff_tasks": stack}
    return MergeResult(parts, Dense("merged"), Dense("coeff_tasks"))


def linear_result(
    deltas: Tensor, ctx: TensorContext, mask: Tensor | None, regions: list[Region]
) -> MergeResult:
    """The merge of a linear method as a tensor of its own, for artifacts without task stacks.

    Args:
        deltas: (N, *shape), not weighted.
        ctx: whose weights are those of the sum.
        mask: combined mask of `shape`; None for the whole tensor.
        regions: what the method takes of a masked tensor.
    """
    stack = deltas.reshape(deltas.shape[0], *matrix_shape(deltas.shape[1:]))
    total = linear_sum(stack, ctx.weights)
    if mask is not None:
        gains = torch.zeros_like(total)
        inside = mask.reshape(total.shape)
        for region in regions:
            gains[inside if region.inside else ~inside] = region.gain
        total = total * gains
    return MergeResult({"merged": total}, Dense("merged"))


def linear_sum(stack: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Weighted sum over the first axis in task order, in float64, rounded to the stack's dtype."""
    total = torch.zeros(stack.shape[1:], dtype=torch.float64)
    for weight, delta in zip(weights, stack, strict=True):
        if weight:
            total += delta.to(torch.float64) * weight
    return total.to(stack.dtype)


def normalised(weights: tuple[float, ...]) -> tuple[float, ...]:
    """The weights divided by their sum; equal ones when they cancel."""
    total = math.fsum(weights)
    if total == 0:
        return (1.0 / len(weights),) * len(weights)
    return tuple(weight / total for weight in weights)


def encode_merge(
    result: MergeResult,
    deltas: Tensor,
    precise: Codec,
    prefix: str,
    *,
    measure: bool,
    coding: MergeCoding | None = None,
) -> EncodedMerge:
    """Code the parts of a result and measure what comes back.

    Args:
        result: over parts in memory.
        deltas: (N, *shape), what went in; for the errors of single tasks.
        precise: codec of numbers.
        prefix: put before the name of every part.
        measure: whether to decode and compare.
        coding: how the merged delta is coded in few bits; None to store its numbers.
    """
    matrix = matrix_shape(deltas.shape[1:])
    exact = result
    if coding is not None and result.task is None and result.merged is not None:
        merged = evaluate(result.merged, TensorParts(result.parts), MERGED, matrix)
        parts, expr = code_merged(merged.rows(0, matrix[0]), coding, prefix)
        if not measure:
            return EncodedMerge(parts, expr, None)
        source = EncodedParts({**coding.parts, **parts})
        return EncodedMerge(parts, expr, None, _merge_error(exact, source, expr, matrix))
    if DENSE in result.parts:
        result = _with_fewest_numbers(result, precise)
    coded = {
        prefix + name: encode_part(BitmaskCodec() if part.dtype == torch.bool else precise, part)
        for name, part in result.parts.items()
    }
    stored, stored_task = (
        None if expr is None else renamed(expr, prefix) for expr in (result.merged, result.task)
    )
    if not measure:
        return EncodedMerge(coded, stored, stored_task)
    error = _merge_error(exact, EncodedParts(coded), stored, matrix)
    task_errors: tuple[ErrorSums, ...] = ()
    if stored_task is not None:
        stack = deltas.reshape(deltas.shape[0], *matrix)
        task_errors = tuple(e.whole for e in measure_tasks(stack, coded, stored_task, None))
    return EncodedMerge(coded, stored, stored_task, error, task_errors)


def _with_fewest_numbers(result: MergeResult, precise: Codec) -> MergeResult:
    """The result with its dense part left out when zero, or reduced to its non-zero numbers."""
    dense = result.parts[DENSE]
    nonzero = int(torch.count_nonzero(dense))
    width = 2 if isinstance(precise, HalfCodec) else 4
    if nonzero == 0:
        rest = {name: part for name, part in result.parts.items() if name != DENSE}
        merged, task = (
            None if expr is None or DENSE in parts_of(expr) else expr
            for expr in (result.merged, result.task)
        )
        needed = {part for expr in (merged, task) if expr is not None for part in parts_of(expr)}
        return MergeResult({n: p for n, p in rest.items() if n in needed}, merged, task)
    if (dense.numel() - nonzero) * width <= dense.numel() / 8:  # the mask would cost more
        return result
    selected = dense != 0
    kept = np.compress(selected.numpy().ravel(), dense.numpy().ravel())  # a third of torch's time
    numbers = torch.from_numpy(kept).unsqueeze(1)
    parts = dict(result.parts) | {f"mask_{DENSE}": selected, DENSE: numbers}
    merged, task = (
        None if expr is None else _scattered(expr) for expr in (result.merged, result.task)
    )
    return MergeResult(parts, merged, task)


def _scattered(expr: Expr) -> Expr:
    """The expression with the dense part replaced by its non-zero scalars at their places."""
    match expr:
        case Dense(name) if name == DENSE:
            return Scattered(f"mask_{DENSE}", expr)
        case Dense() | LowRank() | Tucker() | Exact():
            return expr
        case Masked(mask, inner, inside):
            return Masked(mask, _scattered(inner), inside)
        case Scattered(mask, inner, inside):
            return Scattered(mask, _scattered(inner), inside)
        case Flat(inner):
            return Flat(_scattered(inner))
        case Scale(factor, inner):
            return Scale(factor, _scattered(inner))
        case Weighted(weights, inner):
            return Weighted(weights, _scattered(inner))
        case Sum(terms):
            return Sum(tuple(_scattered(term) for term in terms))


def _merge_error(
    result: MergeResult, stored: EncodedParts, expr: Expr | None, shape: tuple[int, int]
) -> ErrorSums:
    zero = Sum(())
    exact = evaluate(result.merged or zero, TensorParts(result.parts), MERGED, shape)
    rebuilt = evaluate(expr or zero, stored, MERGED, shape)
    error = ErrorSums()
    step = max(1, BLOCK_SCALARS // max(shape[1], 1))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        error.add(exact.rows(start, stop), rebuilt.rows(start, stop))
    return error


def precise_codec(merged_dtype: str) -> Codec:
    """Codec of the numbers of a stored merge."""
    return RawCodec() if merged_dtype == "fp32" else HalfCodec()
