"""Iso-CTS: the common directions of the summed deltas, joined by directions of single tasks.

The weakest directions of M = sum of deltas make room for the strongest ones of what each task has
outside the common left space. Both sides are made orthonormal and get one singular value, the mean
of all that went in. The common left vectors are orthogonal to every task's own ones, so on the left
only these few need it.
Source: arXiv 2502.04959; danielm1405/iso-merging, iso.py; methods.md §12.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svd_hybrid._lazy import lazy
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext, parameter
from svd_hybrid.methods.iso_c import ADVICE, IsoCParams
from svd_hybrid.methods.steps.checks import check_choices, require
from svd_hybrid.methods.steps.spectral_classes import (
    mean_result,
    product_result,
    spectral_view,
    storage_noise,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import spectral, subspace
else:
    torch = lazy("torch")
    spectral, subspace = lazy("svd_hybrid.numerics.spectral"), lazy("svd_hybrid.numerics.subspace")

DEPENDENT = 1e-6  # joined unit vectors: singular values up to this are those of dependent ones


@dataclass(frozen=True, slots=True)
class IsoCtsParams(IsoCParams):
    """Parameters of Iso-CTS."""

    common_space_fraction: float = parameter(
        0.8, "share of the directions that stay common to the tasks, [0, 1]"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        fraction = self.common_space_fraction
        require(0 <= fraction <= 1, "common_space_fraction", fraction, "[0, 1]")


def split(size: int, tasks: int, fraction: float) -> tuple[int, int]:
    """How many directions are common, and how many each task adds.

    Unlike the published code, which can ask for a negative common space, at most size // tasks.

    >>> split(768, 8, 0.8), split(768, 14, 0.8), split(768, 20, 0.8), split(768, 14, 0.0)
    ((616, 19), (614, 11), (608, 8), (12, 54))
    """
    own = round((size - math.floor(size * fraction)) / tasks)  # half to even, as published
    own = min(own, size // tasks)
    return size - own * tasks, own


def merge(deltas: Tensor, params: IsoCtsParams, ctx: TensorContext) -> MergeResult:
    """The merged delta of one tensor; deltas (N, *shape)."""
    stack = spectral_view(deltas, params.exclude, params.conv, ctx)
    if stack is None:
        return mean_result(deltas)
    return merged_matrices(stack, params, storage_noise(ctx.base, len(stack)))


def merged_matrices(stack: Tensor, params: IsoCtsParams, stored: float) -> MergeResult:
    """The merge of matrices (N, m, n); `stored` as in `iso_c.flattened`."""
    count, own = split(min(stack.shape[1:]), len(stack), params.common_space_fraction)
    if params.null_space == "ref":
        common, tasks = _as_published(stack, count, own)
    else:
        common, tasks = subspace.common_and_own(stack, count, own, stored)
    strengths = torch.cat([common.s, *(task.s for task in tasks)])
    if not strengths.any():
        return product_result(
            stack.new_zeros(stack.shape[1], 0), stack.new_zeros(stack.shape[2], 0)
        )
    left = torch.cat([task.u for task in tasks], dim=1)
    right = torch.cat([task.v for task in tasks], dim=1)
    if params.null_space == "ref":
        both = (torch.cat([left, common.u], dim=1), torch.cat([right, common.v], dim=1))
        left, right = (spectral.polar_by_svd(side, spectral.ALL).whole for side in both)
    else:
        left = torch.cat([spectral.polar(left, DEPENDENT).whole, common.u], dim=1)
        right = subspace.polar_beside(right, common.v, DEPENDENT)
    divisor = min(stack.shape[1:]) if params.sigma_mean_over == "r" else len(strengths)
    return product_result(left * float(strengths.double().sum() / divisor), right)


def _as_published(
    stack: Tensor, count: int, own: int
) -> tuple[spectral.Triplets, list[spectral.Triplets]]:
    """Common and own triplets by LAPACK's SVD, null vectors included."""
    common = spectral.singular_triplets(stack.sum(0)).first(count)
    outside = (delta - common.u @ (common.u.T @ delta) for delta in stack)
    return common, [spectral.singular_triplets(delta).first(own) for delta in outside]


ISO_CTS = MergeMethod(
    name="iso-cts",
    version=1,
    summary="Iso-C whose weakest common directions give way to directions of single tasks.",
    source="arXiv 2502.04959, Iso-CTS; danielm1405/iso-merging",
    params=IsoCtsParams,
    merge=merge,
    advice=ADVICE,
)
