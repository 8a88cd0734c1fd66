"""Budgets of the low-rank + sparse parts, shared among layers and tasks by what they are worth.

Each matrix of each task is decomposed at a few budgets; greedily, the step that lowers the total
input-weighted error most per scalar is taken until the overall budget is spent. Ours; no paper.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svd_hybrid._lazy import lazy
from svd_hybrid.methods.base import TensorContext
from svd_hybrid.methods.steps.decomposition import (
    DecompositionParams,
    budget_of,
    decompose_one,
    input_scales,
)
from svd_hybrid.methods.steps.spectral_classes import inputs_first

if TYPE_CHECKING:
    from torch import Tensor

    from svd_hybrid.numerics import lowrank_sparse
else:
    lowrank_sparse = lazy("svd_hybrid.numerics.lowrank_sparse")

GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the budget: what one matrix may get


@dataclass(frozen=True, slots=True)
class Choice:
    """What a matrix of one task costs and misses at each budget it may get.

    Args:
        tensor: its name.
        kept: budgets, ascending.
        costs: scalars stored at each.
        errors: squared, weighted, at each.
    """

    tensor: str
    kept: tuple[float, ...]
    costs: tuple[int, ...]
    errors: tuple[float, ...]

    def step(self, at: int) -> tuple[float, int]:
        """The larger budget that lowers the error most per scalar: minus that, and its index."""
        steps = [
            ((self.errors[to] - self.errors[at]) / max(self.costs[to] - self.costs[at], 1), to)
            for to in range(at + 1, len(self.kept))
        ]
        return min(steps, default=(0.0, at))


def adaptive_budgets(
    stacks: Iterable[tuple[Tensor, TensorContext]], params: DecompositionParams, spare: int = 0
) -> dict[str, list[float]]:
    """Budgets per tensor and task, together at most what the sparsity leaves.

    Args:
        stacks: matrices (N, m, n) that will be decomposed, with their contexts.
        params: the decomposition.
        spare: directions the low-rank part always leaves out.
    """
    found, total = [], 0
    for stack, ctx in stacks:
        found += choices(stack, params, ctx, spare)
        total += stack.numel()
    return allocate(found, (1 - params.sparsity) * total)


def choices(
    stack: Tensor, params: DecompositionParams, ctx: TensorContext, spare: int = 0
) -> list[Choice]:
    """The choices of every task for one tensor (N, m, n)."""
    shares = tuple(dict.fromkeys(min(share * (1 - params.sparsity), 1.0) for share in GRID))
    turned = inputs_first(params.transposed, ctx)
    found = []
    for delta, scale in zip(stack, input_scales(stack, params, ctx), strict=True):
        weights = scale[:, None] if scale is not None and turned else scale
        made = [
            decompose_one(delta, scale, budget_of(params, share, spare), params, ctx)
            for share in shares
        ]
        costs = tuple(one.scalars for one in made)
        errors = tuple(lowrank_sparse.weighted_error(delta, one, weights) for one in made)
        found.append(Choice(ctx.name, shares, costs, errors))
    return found


def allocate(found: Sequence[Choice], budget: float) -> dict[str, list[float]]:
    """Budgets per tensor and task that lower the total error most for what they cost.

    Every matrix starts with its smallest budget; the step with the largest gain per scalar is
    taken as long as the total stays within `budget`. Of equal steps the first matrix goes first.

    Args:
        found: choices, in stream order.
        budget: scalars in all.
    """
    level = [0] * len(found)
    spent = sum(choice.costs[0] for choice in found)
    steps = []
    for index, choice in enumerate(found):
        change, to = choice.step(0)
        steps.append((change, index, to))
    heapq.heapify(steps)
    while steps:
        change, index, to = heapq.heappop(steps)
        choice = found[index]
        cost = choice.costs[to] - choice.costs[level[index]]
        if change >= 0 or spent + cost > budget:
            continue
        spent += cost
        level[index] = to
        change, following = choice.step(to)
        heapq.heappush(steps, (change, index, following))
    kept: dict[str, list[float]] = {}
    for choice, at in zip(found, level, strict=True):
        kept.setdefault(choice.tensor, []).append(choice.kept[at])
    return kept
