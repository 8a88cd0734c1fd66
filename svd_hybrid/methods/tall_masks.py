"""TALL masks: one multi-task vector, and per task a mask that finds its share of it.

Reload of a task: base + mask * vector. Source: Wang et al., "Localizing Task Information for
Improved Model Merging and Compression", arXiv 2405.07813; nik-dim/tall_masks; methods.md §6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svd_hybrid.delta.expr import Dense, Masked
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext, parameter
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
class TallMasksParams(LocaliseParams):
    """Parameters of TALL masks."""

    scaling: float = parameter(1.0, "factor on the merged delta; a task is rebuilt with 1")

    def __post_init__(self) -> None:
        check_localise(self)


def merge(deltas: Tensor, params: TallMasksParams, ctx: TensorContext) -> MergeResult:
    """The multi-task vector and the masks of one tensor; deltas (N, *shape)."""
    shape = deltas.shape[1:]
    vector = multitask_vector(deltas, params, ctx, ctx.scan.ties)
    masks = tall_masks(deltas, vector, ctx, ctx.scan.lambdas)
    parts = {"merged": as_matrices(vector, shape), "mask": as_matrices(masks, shape)}
    return MergeResult(parts, merged=Dense("merged"), task=Masked("mask", Dense("merged")))


TALL_MASKS = MergeMethod(
    name="tall-masks",
    version=1,
    summary="Multi-task vector, and per task a mask that localises its share of it.",
    source="arXiv 2405.07813, equation 4; nik-dim/tall_masks",
    params=TallMasksParams,
    merge=merge,
    scan=scan,
    own_weights=True,
    per_task_reload=True,
    takes_masks="per-task",
    aliases=("tall-mask", "tall"),
)
