"""Iso-IASAD: isotropic merging after an input-aware low-rank + sparse approximation.

Each task's deviation E_t from the mean delta is approximated (see Scale-SVD); what is flattened is
M = N * mean + sum of the approximations, so with exact approximations it is Iso-C. Unlike the
published code, which never adds the mean back and so merges only approximation errors
(`mode=legacy`). `mode=whole` approximates the deltas themselves: Scale-SVD followed by Iso-C.
Source: ArkNightmaster/AwRank-Merging, iso_iasad.py; methods.md §15.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.methods import iso_c, iso_cts
from svd_hybrid.methods.base import (
    MergeMethod,
    MergeResult,
    TensorContext,
    TensorStream,
    parameter,
)
from svd_hybrid.methods.steps.budgets import adaptive_budgets
from svd_hybrid.methods.steps.checks import require
from svd_hybrid.methods.steps.decomposition import (
    DecompositionParams,
    check_decomposition,
    decompose_tasks,
)
from svd_hybrid.methods.steps.spectral_classes import (
    matrices,
    mean_result,
    spectral_view,
    storage_noise,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


@dataclass(frozen=True, slots=True)
class IsoIasadParams(DecompositionParams):
    """Parameters of Iso-IASAD."""

    mode: Literal["right", "legacy", "whole"] = parameter(
        "right",
        "what is approximated: deviations from the mean delta, which is added back (right) or, as "
        "published, is not (legacy), or the deltas themselves (whole)",
    )
    merge_rule: Literal["iso-c", "iso-cts"] = parameter(
        "iso-c", "how the approximations are merged"
    )
    common_space_fraction: float = parameter(
        0.8, "of iso-cts: share of the directions that stay common to the tasks, [0, 1]"
    )
    sigma_mean_over: Literal["r", "rank"] = parameter(
        "r", "mean singular value over all min(m, n), as published, or over those not zero"
    )
    null_space: Literal["drop", "ref"] = parameter(
        "drop", "directions of no energy: left out, or filled with arbitrary vectors as published"
    )
    conv: Literal["mean", "matricize"] = parameter(
        "mean", "convolutions: averaged, or merged as matrices of out x (in * height * width)"
    )

    def __post_init__(self) -> None:
        check_decomposition(self)
        fraction = self.common_space_fraction
        require(0 <= fraction <= 1, "common_space_fraction", fraction, "[0, 1]")


def scan(stream: TensorStream, params: IsoIasadParams) -> dict[str, list[float]] | None:
    """Budgets per tensor and task, where they are adaptive."""
    if not params.adaptive:
        return None
    views = matrices(stream, params.exclude, params.conv)
    parts = ((stack - _shared(stack, params), ctx) for stack, ctx in views)
    return adaptive_budgets(parts, params, _spare(params))


def merge(deltas: Tensor, params: IsoIasadParams, ctx: TensorContext) -> MergeResult:
    """The merged delta of one tensor; deltas (N, *shape)."""
    stack = spectral_view(deltas, params.exclude, params.conv, ctx)
    if stack is None:
        return mean_result(deltas)
    approximated = approximations(stack, params, ctx)
    stored = storage_noise(ctx.base, len(stack))
    if params.merge_rule == "iso-c":
        rule = iso_c.IsoCParams(
            sigma_mean_over=params.sigma_mean_over, null_space=params.null_space
        )
        return iso_c.flattened(approximated.sum(0), rule, stored)
    return iso_cts.merged_matrices(
        approximated,
        iso_cts.IsoCtsParams(
            common_space_fraction=params.common_space_fraction,
            sigma_mean_over=params.sigma_mean_over,
            null_space=params.null_space,
        ),
        stored,
    )


def approximations(stack: Tensor, params: IsoIasadParams, ctx: TensorContext) -> Tensor:
    """What stands for each task's delta, (N, m, n)."""
    shared = _shared(stack, params)
    found = decompose_tasks(stack - shared, params, ctx, _spare(params))
    made = torch.stack([task.whole for task in found])
    return made if params.mode == "legacy" else made + shared


def _shared(stack: Tensor, params: IsoIasadParams) -> Tensor:
    """The mean delta (m, n); 0 where the deltas themselves are approximated."""
    return torch.zeros_like(stack[0]) if params.mode == "whole" else stack.mean(0)


def _spare(params: IsoIasadParams) -> int:
    """Directions the low rank leaves out: one of deviations, none of deltas, as published."""
    return 0 if params.mode == "whole" else 1


ISO_IASAD = MergeMethod(
    name="iso-iasad",
    version=1,
    summary="Iso-C or Iso-CTS after an input-aware low-rank + sparse approximation of each task.",
    source="ArkNightmaster/AwRank-Merging, Iso-IASAD",
    params=IsoIasadParams,
    merge=merge,
    scan=scan,
    statistics="moment",
    without_statistics=("input_scaling", False),
    advice=iso_c.ADVICE,
)
