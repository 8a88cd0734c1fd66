"""Magnitude pruning: each delta without its small entries, then task arithmetic.

Source: huggingface/peft, magnitude_prune; yule-BUAA/MergeLM, mask_input_with_mask_rate;
methods.md §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.delta.expr import Dense
from svd_hybrid.methods.base import (
    MergeMethod,
    MergeResult,
    TensorContext,
    TensorStream,
    parameter,
)
from svd_hybrid.methods.steps.trimming import (
    ModelCuts,
    TrimParams,
    as_matrices,
    check_trim,
    column_blocks,
    flat,
    model_cuts,
    settle,
    trimmed,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import disjoint
    from svd_hybrid.numerics.trimmed import Trimmed
else:
    torch, disjoint = lazy("torch"), lazy("svd_hybrid.numerics.disjoint")


@dataclass(frozen=True, slots=True)
class MagnitudeParams(TrimParams):
    """Parameters of magnitude pruning."""

    rescale: Literal["none", "inverse_density"] = parameter(
        "none", "inverse_density: divide what is kept of a trimmed delta by the density"
    )
    scaling: float = parameter(0.3, "factor on the sum of the trimmed deltas")

    def __post_init__(self) -> None:
        check_trim(self)


def scan(stream: TensorStream, params: MagnitudeParams) -> ModelCuts | None:
    """The cuts of the model, when it is trimmed as one vector."""
    cuts = model_cuts(stream, params, values_only=True)
    settle(stream, cuts)
    return cuts


def merge(deltas: Tensor, params: MagnitudeParams, ctx: TensorContext) -> MergeResult:
    """Weighted sum of the trimmed deltas (N, *shape) of one tensor."""
    numbers = flat(deltas)
    source = trimmed(deltas, params, ctx, ctx.scan)
    factors = torch.tensor(_factors(params, ctx, source), dtype=deltas.dtype)[:, None]
    merged = numbers.new_empty(numbers.shape[1])
    for place, block in column_blocks(deltas, source):
        merged[place] = disjoint.total(block.mul_(factors))
    return MergeResult({"merged": as_matrices(merged, deltas.shape[1:])}, merged=Dense("merged"))


def _factors(params: MagnitudeParams, ctx: TensorContext, source: Trimmed) -> list[float]:
    """Weight of each task over its density; a vector too short to lose anything is not rescaled."""
    if params.rescale == "none":
        return list(ctx.weights)
    densities = ctx.densities or (params.density,) * len(ctx.tasks)
    return [
        weight if whole else weight / density
        for weight, density, whole in zip(ctx.weights, densities, source.whole, strict=True)
    ]


MAGNITUDE = MergeMethod(
    name="magnitude",
    version=1,
    summary="Scaled sum of the task deltas without their small entries.",
    source="huggingface/peft, merge_utils.magnitude_prune; arXiv 2311.03099, section 4",
    params=MagnitudeParams,
    merge=merge,
    scan=scan,
    own_weights=True,
)
