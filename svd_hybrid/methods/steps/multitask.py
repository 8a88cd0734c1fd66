"""The multi-task vector and the TALL masks over it, shared by the methods that localise.

A mask keeps an entry where the fine-tuned weight is further from the base than lambda times its
distance from the merged weight. Not a method itself.
Source: Wang et al., "Localizing Task Information", arXiv 2405.07813, section 3; methods.md §6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.errors import ParameterError
from svd_hybrid.methods import ties
from svd_hybrid.methods.base import TensorContext, TensorStream, parameter
from svd_hybrid.methods.steps.checks import check_choices, require
from svd_hybrid.methods.steps.trimming import flat

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import blocks
else:
    torch, blocks = lazy("torch"), lazy("svd_hybrid.numerics.blocks")

GRID = (0.2, 0.3, 0.4, 0.5, 0.6)
MIDDLE = 0.4
TIES_SUM = ties.TiesParams(density=0.2, trim_rule="threshold", merge_func="sum")
"""The TIES vector of the authors: top 20 % of the model, ties kept, agreeing entries summed."""


@dataclass(frozen=True, slots=True)
class LocaliseParams:
    """Parameters of the multi-task vector and its masks."""

    vector: Literal["sum", "ties"] = parameter(
        "sum", "multi-task vector: the sum of the deltas, or TIES (top 20 %, sum)"
    )
    lambdas: tuple[float, ...] = parameter(
        (), "mask threshold of all tasks, or one per task, >= 0; smaller is denser; 0.4 unless set"
    )
    lambda_choice: Literal["fixed", "auto"] = parameter(
        "fixed", "auto: per task the one of 0.2, 0.3 … 0.6 that rebuilds its delta best"
    )


def check_localise(params: LocaliseParams) -> None:
    """Raise ParameterError where a parameter is outside its range."""
    check_choices(params)
    for value in params.lambdas:
        require(0 <= value < math.inf, "a value of lambdas", value, "[0, inf)")
    if params.lambdas and params.lambda_choice == "auto":
        raise ParameterError("lambdas are given, and to be chosen as well", fix="leave one out")


@dataclass(frozen=True, slots=True)
class LocaliseScan:
    """Numbers of the whole model.

    Args:
        lambdas: one per task.
        ties: what the TIES vector needs; None for the sum.
    """

    lambdas: tuple[float, ...]
    ties: ties.TiesScan | None


def scan(stream: TensorStream, params: LocaliseParams) -> LocaliseScan:
    """Thresholds of the masks, and the numbers of the multi-task vector."""
    found = ties.scan(stream, TIES_SUM) if params.vector == "ties" else None
    first = next(iter(stream), None)
    if first is None:
        return LocaliseScan((), found)
    tasks = len(first[1].tasks)
    if params.lambda_choice == "auto" and first[1].masks is None:
        return LocaliseScan(_best_lambdas(stream, params, found, tasks), found)
    given = params.lambdas or (MIDDLE,)
    if len(given) not in (1, tasks):
        raise ParameterError(
            f"there are {len(given)} lambdas for {tasks} tasks", fix="give one, or one per task"
        )
    return LocaliseScan(given * tasks if len(given) == 1 else given, found)


def _best_lambdas(
    stream: TensorStream, params: LocaliseParams, found: ties.TiesScan | None, tasks: int
) -> tuple[float, ...]:
    """Per task the lambda of GRID that minimises |delta - mask * vector|; of equals the first."""
    errors = [[0.0] * len(GRID) for _ in range(tasks)]
    for deltas, ctx in stream:
        vector = multitask_vector(deltas, params, ctx, found)
        for task, far, near, place in _distances(deltas, vector, ctx):
            delta = flat(deltas)[task, place].double()
            gain = (delta - vector[place]).square_() - delta.square()
            start = float(delta.square().sum())
            for index, value in enumerate(GRID):
                kept = far > near * value
                errors[task][index] += start + float(gain[kept].sum())
    return tuple(GRID[row.index(min(row))] for row in errors)


def multitask_vector(
    deltas: Tensor, params: LocaliseParams, ctx: TensorContext, found: ties.TiesScan | None
) -> Tensor:
    """The multi-task vector (D,) of one tensor; deltas (N, *shape)."""
    if found is not None and params.vector == "ties":
        return ties.merged_vector(deltas, TIES_SUM, ctx, found)
    return summed(deltas, ctx)


def summed(deltas: Tensor, ctx: TensorContext) -> Tensor:
    """The weighted sum of the deltas (N, *shape), in task order: (D,)."""
    merged = flat(deltas).new_zeros(flat(deltas).shape[1])
    for delta, weight in zip(flat(deltas), ctx.weights, strict=True):
        merged.add_(delta if weight == 1 else delta * weight)
    return merged


def tall_masks(
    deltas: Tensor, vector: Tensor, ctx: TensorContext, lambdas: tuple[float, ...]
) -> Tensor:
    """One mask per task: (N, D) bool; those the user gave, where there are any."""
    if ctx.masks is not None:
        return flat(ctx.masks)
    masks = torch.empty(flat(deltas).shape, dtype=torch.bool)
    for task, far, near, place in _distances(deltas, vector, ctx):
        torch.gt(far, near * lambdas[task], out=masks[task, place])
    return masks


def _distances(
    deltas: Tensor, vector: Tensor, ctx: TensorContext
) -> Iterator[tuple[int, Tensor, Tensor, slice]]:
    """Per task and block |base - tuned| and |base + vector - tuned|, rounded as the authors do.

    They compare weights, not deltas, in float32; which rounds otherwise near equality.
    """
    base = ctx.base.reshape(-1).to(deltas.dtype)
    for start, stop in blocks.spans(base.numel()):
        place = slice(start, stop)
        merged = base[place] + vector[place]
        for task, delta in enumerate(flat(deltas)):
            tuned = (base[place].double() + delta[place]).to(deltas.dtype)
            yield task, (base[place] - tuned).abs_(), (merged - tuned).abs_(), place
