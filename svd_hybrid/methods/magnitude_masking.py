"""Magnitude masking: one shared vector, and per task the mask of its own largest entries.

The baseline that TALL masks are compared with. Reload of a task: base + mask * shared vector.
Source: nik-dim/tall_masks, create_task_vector (mag_masking); methods.md §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svd_hybrid.delta.expr import Dense, Masked
from svd_hybrid.methods.base import (
    MergeMethod,
    MergeResult,
    TensorContext,
    TensorStream,
    parameter,
)
from svd_hybrid.methods.steps.multitask import summed
from svd_hybrid.methods.steps.trimming import (
    ModelCuts,
    TrimParams,
    as_matrices,
    check_trim,
    kept_masks,
    model_cuts,
    settle,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class MagnitudeMaskingParams(TrimParams):
    """Parameters of magnitude masking."""

    density: float = parameter(0.1, "fraction of scalars in a task's mask, (0, 1]")
    scaling: float = parameter(1.0, "factor on the merged delta; a task is rebuilt with 1")

    def __post_init__(self) -> None:
        check_trim(self)


def scan(stream: TensorStream, params: MagnitudeMaskingParams) -> ModelCuts | None:
    """The cuts of the model, when it is trimmed as one vector."""
    cuts = model_cuts(stream, params)
    settle(stream, cuts)
    return cuts


def merge(deltas: Tensor, params: MagnitudeMaskingParams, ctx: TensorContext) -> MergeResult:
    """The shared vector and the masks of one tensor; deltas (N, *shape)."""
    shape = deltas.shape[1:]
    masks = kept_masks(deltas, params, ctx, ctx.scan)
    parts = {
        "merged": as_matrices(summed(deltas, ctx), shape),
        "mask": as_matrices(masks, shape),
    }
    return MergeResult(parts, merged=Dense("merged"), task=Masked("mask", Dense("merged")))


MAGNITUDE_MASKING = MergeMethod(
    name="magnitude-masking",
    version=1,
    summary="Sum of the task deltas, and per task a mask of its own largest entries.",
    source="arXiv 2405.07813, baselines; nik-dim/tall_masks",
    params=MagnitudeMaskingParams,
    merge=merge,
    scan=scan,
    own_weights=True,
    per_task_reload=True,
)
