"""DARE: drop scalars of each delta at random, rescale the others, then merge.

`dare-linear` adds what is left, `dare-ties` merges it by sign election. Unlike yule-BUAA/MergeLM
and fusion_bench, `dare-ties` does not trim again unless `extra_trim` is on (huggingface/peft and
arcee-ai/mergekit do not). Source: arXiv 2311.03099, section 3; methods.md §5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from svd_hybrid.delta.expr import Dense
from svd_hybrid.methods import ties
from svd_hybrid.methods.base import (
    MergeMethod,
    MergeResult,
    TensorContext,
    TensorStream,
    parameter,
)
from svd_hybrid.methods.steps.dropping import DropParams, DroppedStream, check_drop, dropped
from svd_hybrid.methods.steps.multitask import summed
from svd_hybrid.methods.steps.trimming import as_matrices

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_SUM = 1e-8


@dataclass(frozen=True, slots=True)
class DareLinearParams(DropParams):
    """Parameters of dare-linear."""

    merge: Literal["sum", "average"] = parameter(
        "sum", "what is left of the deltas is added, or averaged by the task weights"
    )
    scaling: float | None = parameter(
        None, "factor on the merged delta; 0.3 unless set, 1 for average"
    )

    def __post_init__(self) -> None:
        check_drop(self)
        if self.scaling is None:
            object.__setattr__(self, "scaling", 0.3 if self.merge == "sum" else 1.0)


def merge_linear(deltas: Tensor, params: DareLinearParams, ctx: TensorContext) -> MergeResult:
    """Weighted sum or average of the dropped deltas (N, *shape) of one tensor."""
    merged = summed(dropped(deltas, params, ctx), ctx)
    total = sum(ctx.weights)
    if params.merge == "average" and abs(total) >= SMALLEST_SUM:
        merged.div_(total)
    return MergeResult({"merged": as_matrices(merged, deltas.shape[1:])}, merged=Dense("merged"))


@dataclass(frozen=True, slots=True)
class DareTiesParams(DropParams):
    """Parameters of dare-ties; those of the election and the extra trim as in `ties`."""

    extra_trim: bool = parameter(False, "trim what is left by magnitude, as `ties` does")
    trim_density: float = parameter(0.2, "fraction of all scalars the extra trim keeps, (0, 1]")
    trim_scope: Literal["global", "tensor", "row"] = parameter(
        "global", "what the extra trim takes as one vector"
    )
    trim_rule: Literal["exact", "threshold", "threshold-k", "threshold-drop", "above-drop"] = (
        parameter("exact", "who survives the extra trim")
    )
    election: Literal["mass", "count", "none"] = parameter("mass", "how a sign is elected")
    zero_sign: Literal["majority", "majority-or-none", "plus"] = parameter(
        "plus", "where the election is a draw"
    )
    merge_func: Literal["mean", "sum", "max"] = parameter("mean", "merge of the agreeing entries")
    weight_rule: Literal["peft", "mergekit", "seed004"] = parameter("peft", "task weights")
    scaling: float | None = parameter(None, "factor on the merged delta; 1 unless set, 0.5 for sum")

    def __post_init__(self) -> None:
        check_drop(self)
        if self.scaling is None:
            object.__setattr__(self, "scaling", 0.5 if self.merge_func == "sum" else 1.0)
        _ = self.ties

    @property
    def ties(self) -> ties.TiesParams:
        """The step after the drop."""
        return ties.TiesParams(
            density=self.trim_density if self.extra_trim else 1.0,
            trim_scope=self.trim_scope,
            trim_rule=self.trim_rule,
            election=self.election,
            zero_sign=self.zero_sign,
            merge_func=self.merge_func,
            weight_rule=self.weight_rule,
            scaling=self.scaling,
        )


def scan_ties(stream: TensorStream, params: DareTiesParams) -> ties.TiesScan:
    """What TIES needs to know of the whole dropped model."""
    return ties.scan(DroppedStream(stream, params), params.ties)


def merge_ties(deltas: Tensor, params: DareTiesParams, ctx: TensorContext) -> MergeResult:
    """TIES on the dropped deltas (N, *shape) of one tensor."""
    sparse = dropped(deltas, params, ctx)
    return ties.merge(sparse, params.ties, replace(ctx, densities=()))


DARE_LINEAR = MergeMethod(
    name="dare-linear",
    version=1,
    summary="Drop scalars of each delta at random, rescale the others, add.",
    source="arXiv 2311.03099, section 3",
    params=DareLinearParams,
    merge=merge_linear,
    own_weights=True,
    takes_masks="per-task",
    aliases=("dare",),
)

DARE_TIES = MergeMethod(
    name="dare-ties",
    version=1,
    summary="Drop scalars of each delta at random, rescale the others, merge by sign election.",
    source="arXiv 2311.03099, section 3, and arXiv 2306.01708, section 4",
    params=DareTiesParams,
    merge=merge_ties,
    scan=scan_ties,
    own_weights=True,
    takes_masks="per-task",
)
