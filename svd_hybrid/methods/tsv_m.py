"""TSV-Merge: the leading singular directions of every task, made orthogonal across tasks.

Each task gives its k = min(m, n) // N strongest singular triplets. Side by side the left (and the
right) vectors of different tasks overlap; each set is replaced by its polar factor, the nearest
orthonormal set, before the products are summed. Tasks of low rank give only the directions they
have: unlike the published code, nothing arbitrary fills their share (`null_space=ref` does).
Source: arXiv 2412.00081; AntoAndGar/task_singular_vectors, TSVM_utils.py; methods.md §9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext, parameter
from svd_hybrid.methods.steps.checks import check_choices, require
from svd_hybrid.methods.steps.spectral_classes import (
    SpectralParams,
    mean_result,
    product_result,
    spectral_view,
    storage_noise,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import spectral
else:
    torch, spectral = lazy("torch"), lazy("svd_hybrid.numerics.spectral")

DEPENDENT = 1e-6  # joined unit vectors: singular values up to this are those of dependent ones


@dataclass(frozen=True, slots=True)
class TsvMParams(SpectralParams):
    """Parameters of TSV-Merge."""

    rank_fraction: float | None = parameter(
        None, "share of the directions each task keeps, (0, 1]; unset is one part in N"
    )
    orthogonalize: bool = parameter(
        True, "make the tasks' directions orthogonal; false sums the truncated deltas"
    )
    variant: Literal["eigen", "svd"] = parameter(
        "eigen", "how decompositions are computed: fast and in float64, or LAPACK's SVD"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.rank_fraction is not None:
            require(0 < self.rank_fraction <= 1, "rank_fraction", self.rank_fraction, "(0, 1]")


def directions_per_task(size: int, tasks: int, fraction: float | None) -> int:
    """How many of `size` directions each of `tasks` keeps.

    >>> directions_per_task(98, 49, None), directions_per_task(20, 4, 0.5)
    (2, 10)
    """
    return size // tasks if fraction is None else math.floor(size * fraction)


def merge(deltas: Tensor, params: TsvMParams, ctx: TensorContext) -> MergeResult:
    """The merged delta of one tensor; deltas (N, *shape)."""
    stack = spectral_view(deltas, params.exclude, params.conv, ctx)
    if stack is None:
        return mean_result(deltas)
    count = directions_per_task(min(stack.shape[1:]), len(stack), params.rank_fraction)
    stored = storage_noise(ctx.base, 1)
    triplets = [_truncated(delta, count, params, stored) for delta in stack]
    left = torch.cat([task.u for task in triplets], dim=1)
    right = torch.cat([task.v for task in triplets], dim=1)
    strengths = torch.cat([task.s for task in triplets])
    if params.orthogonalize:
        left, right = _orthogonal(left, params), _orthogonal(right, params)
    return product_result(left * strengths, right)


def _truncated(delta: Tensor, count: int, params: TsvMParams, stored: float) -> spectral.Triplets:
    level = max(spectral.noise_level(delta), stored)
    if params.null_space == "ref":
        return spectral.singular_triplets(delta).first(count)
    if params.variant == "svd":
        return spectral.singular_triplets(delta).above(level).first(count)
    return spectral.leading(delta, count, level)


def _orthogonal(columns: Tensor, params: TsvMParams) -> Tensor:
    """The nearest matrix with orthonormal columns (rows, if there are more columns than rows)."""
    if params.null_space == "ref":
        return spectral.polar_by_svd(columns, spectral.ALL).whole
    if params.variant == "svd":
        return spectral.polar_by_svd(columns, DEPENDENT).whole
    return spectral.polar(columns, DEPENDENT).whole


TSV_M = MergeMethod(
    name="tsv-m",
    version=1,
    summary="Sum of the tasks' leading singular directions, made orthogonal across tasks.",
    source="arXiv 2412.00081, TSV-Merge; AntoAndGar/task_singular_vectors",
    params=TsvMParams,
    merge=merge,
    aliases=("tsvm",),
)
