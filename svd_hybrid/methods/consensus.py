"""Consensus merging: the multi-task vector where at least so many tasks use it.

Drops what no task uses ("catastrophic") and what one task uses alone ("selfish").
Source: Wang et al., arXiv 2405.07813, section 4.2; nik-dim/tall_masks; methods.md §7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svd_hybrid.delta.expr import Dense
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext, parameter
from svd_hybrid.methods.steps.checks import require
from svd_hybrid.methods.steps.multitask import (
    LocaliseParams,
    check_localise,
    multitask_vector,
    scan,
    tall_masks,
)
from svd_hybrid.methods.steps.trimming import as_matrices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ConsensusParams(LocaliseParams):
    """Parameters of consensus merging."""

    min_tasks: int = parameter(
        2, "tasks whose mask must keep an entry, >= 0; 0 keeps all, more than there are keeps none"
    )
    scaling: float = parameter(0.3, "factor on the merged delta")

    def __post_init__(self) -> None:
        check_localise(self)
        require(self.min_tasks >= 0, "min_tasks", self.min_tasks, "[0, inf)")


def merge(deltas: Tensor, params: ConsensusParams, ctx: TensorContext) -> MergeResult:
    """The multi-task vector of one tensor where enough masks agree; deltas (N, *shape)."""
    vector = multitask_vector(deltas, params, ctx, ctx.scan.ties)
    votes = tall_masks(deltas, vector, ctx, ctx.scan.lambdas).sum(0)
    merged = vector.masked_fill_(votes < params.min_tasks, 0.0)
    return MergeResult({"merged": as_matrices(merged, deltas.shape[1:])}, merged=Dense("merged"))


CONSENSUS = MergeMethod(
    name="consensus",
    version=1,
    summary="Multi-task vector without the entries that too few tasks use.",
    source="arXiv 2405.07813, section 4.2; nik-dim/tall_masks",
    params=ConsensusParams,
    merge=merge,
    scan=scan,
    own_weights=True,
    takes_masks="per-task",
)
