"""Weight averaging: the mean of the fine-tuned weights, written as base + mean of the deltas.

Source: yule-BUAA/MergeLM, average_merging; methods.md §1.
"""

from __future__ import annotations

from dataclasses import dataclass

from svd_hybrid.methods.base import MergeMethod, parameter
from svd_hybrid.methods.steps.checks import check_choices


@dataclass(frozen=True, slots=True)
class WeightAveragingParams:
    """Parameters of weight averaging."""

    scaling: float = parameter(1.0, "factor on the merged delta; 1 is the average")

    def __post_init__(self) -> None:
        check_choices(self)


WEIGHT_AVERAGING = MergeMethod(
    name="weight-averaging",
    version=1,
    summary="Average of the fine-tuned weights.",
    source="yule-BUAA/MergeLM; Wortsman et al., arXiv 2203.05482",
    params=WeightAveragingParams,
    weights="average",
    per_task_reload=True,
    aliases=("average", "linear"),
)
