"""Weight selection: per scalar the median, or the largest, of the fine-tuned weights.

Baselines that look at weights, not at deltas; what is stored is the delta of the chosen task.
Source: prateeky2806/ties-merging, merge_utils.basic_merging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.delta.expr import Dense
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext, parameter
from svd_hybrid.methods.steps.checks import check_choices
from svd_hybrid.methods.steps.trimming import as_matrices, flat

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import blocks
else:
    torch, blocks = lazy("torch"), lazy("svd_hybrid.numerics.blocks")


@dataclass(frozen=True, slots=True)
class WeightSelectParams:
    """Parameters of weight selection."""

    rule: Literal["median", "largest"] = parameter(
        "median",
        "median of the weights (the lower one of an even number), or the one largest in magnitude",
    )
    scaling: float = parameter(1.0, "factor on the merged delta; 1 gives the chosen weights")

    def __post_init__(self) -> None:
        check_choices(self)


def merge(deltas: Tensor, params: WeightSelectParams, ctx: TensorContext) -> MergeResult:
    """The delta of the task with the chosen weight, per scalar; deltas (N, *shape)."""
    base = ctx.base.reshape(-1)
    merged = flat(deltas).new_empty(base.shape)
    for start, stop in blocks.spans(base.numel()):
        block = flat(deltas)[:, start:stop]
        weights = base[start:stop].double() + block.double()
        order = (weights if params.rule == "median" else -weights.abs()).argsort(stable=True, dim=0)
        place = (len(block) - 1) // 2 if params.rule == "median" else 0
        merged[start:stop] = block.gather(0, order[place : place + 1])[0]
    return MergeResult({"merged": as_matrices(merged, deltas.shape[1:])}, merged=Dense("merged"))


WEIGHT_SELECT = MergeMethod(
    name="weight-select",
    version=1,
    summary="Per scalar the median or the largest of the fine-tuned weights.",
    source="prateeky2806/ties-merging, basic_merging",
    params=WeightSelectParams,
    merge=merge,
)
