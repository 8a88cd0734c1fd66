"""Iso-C: the sum of the deltas with all its singular values replaced by their mean.

With M = sum of deltas = U S V^T the merge is mean(S) * U V^T: a multiple of the polar factor of M,
so no singular vectors are formed. Where M has low rank only the directions it has are used; unlike
the published code, nothing arbitrary fills the others (`null_space=ref` does).
Source: arXiv 2502.04959; danielm1405/iso-merging, iso.py; methods.md §11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext, parameter
from svd_hybrid.methods.steps.checks import check_choices
from svd_hybrid.methods.steps.spectral_classes import (
    SpectralParams,
    dense_result,
    mean_result,
    product_result,
    spectral_view,
    storage_noise,
)

if TYPE_CHECKING:
    from torch import Tensor

    from svd_hybrid.numerics import spectral
else:
    spectral = lazy("svd_hybrid.numerics.spectral")


ADVICE = (
    "scaling 1 is only a start for isotropic merging: published models of 8 tasks use 1.3 to 1.9, "
    "so try several"
)


@dataclass(frozen=True, slots=True)
class IsoCParams(SpectralParams):
    """Parameters of Iso-C."""

    sigma_mean_over: Literal["r", "rank"] = parameter(
        "r", "mean singular value over all min(m, n), as published, or over those not zero"
    )

    def __post_init__(self) -> None:
        check_choices(self)


def merge(deltas: Tensor, params: IsoCParams, ctx: TensorContext) -> MergeResult:
    """The merged delta of one tensor; deltas (N, *shape)."""
    stack = spectral_view(deltas, params.exclude, params.conv, ctx)
    if stack is None:
        return mean_result(deltas)
    return flattened(stack.sum(0), params, storage_noise(ctx.base, len(stack)))


def flattened(total: Tensor, params: IsoCParams, stored: float) -> MergeResult:
    """The matrix (m, n) with a flat spectrum, stored as factors where these are smaller.

    Args:
        total: sum of the deltas.
        params: of the rule.
        stored: noise of the sum from how checkpoints are stored, as a singular value.
    """
    if params.null_space == "ref":
        found = spectral.polar_by_svd(total, spectral.ALL)
    else:
        found = spectral.polar(total, max(spectral.noise_level(total), stored))
    count = min(total.shape) if params.sigma_mean_over == "r" else found.rank
    mean = found.nuclear / count if found.rank else 0.0
    if found.right is None:
        return dense_result(found.left * mean)
    return product_result(found.left * mean, found.right)


ISO_C = MergeMethod(
    name="iso-c",
    version=1,
    summary="Sum of the deltas with all singular values replaced by their mean.",
    source="arXiv 2502.04959, Iso-C; danielm1405/iso-merging",
    params=IsoCParams,
    merge=merge,
    advice=ADVICE,
)
