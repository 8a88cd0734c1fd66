"""EMR merging: elect one unified vector, mask it per task, rescale it per task.

Reload of a task: base + gain * mask * unified vector, with one gain per task for the whole model,
so that its absolute sum is that of the task's delta. Task weights count in the election only.
Source: Huang et al., "EMR-Merging", arXiv 2405.17461, section 3.2; methods.md §8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.delta.expr import Dense, Masked
from svd_hybrid.methods.base import (
    MergeMethod,
    MergeResult,
    TensorContext,
    TensorStream,
    parameter,
)
from svd_hybrid.methods.steps.checks import check_choices
from svd_hybrid.methods.steps.trimming import as_matrices, flat

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import blocks, disjoint
else:
    torch, disjoint = lazy("torch"), lazy("svd_hybrid.numerics.disjoint")
    blocks = lazy("svd_hybrid.numerics.blocks")


@dataclass(frozen=True, slots=True)
class EmrParams:
    """Parameters of EMR merging."""

    rescale_norm: Literal["global_l1", "tensor_mean"] = parameter(
        "global_l1",
        "gain of a task: ratio of absolute sums over the model (paper), or of the sums of each "
        "tensor's absolute mean (the authors' vision code)",
    )
    scaling: float = parameter(1.0, "factor on the merged delta; a task is rebuilt with its gain")

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, slots=True)
class EmrScan:
    """Numbers of the whole model.

    Args:
        task_gains: one factor per task.
    """

    task_gains: tuple[float, ...]


def scan(stream: TensorStream, params: EmrParams) -> EmrScan:
    """The gain of every task: absolute sum of its delta over that of its masked unified vector."""
    wanted: list[float] = []
    got: list[float] = []
    for deltas, ctx in stream:
        wanted = wanted or [0.0] * len(ctx.tasks)
        got = got or [0.0] * len(ctx.tasks)
        share = 1 / max(1, flat(deltas).shape[1]) if params.rescale_norm == "tensor_mean" else 1.0
        for place, unified, masks in _elected(deltas, ctx):
            own = flat(deltas)[:, place].abs().sum(1, dtype=torch.float64).tolist()
            masked = torch.where(masks, unified.abs(), 0.0).sum(1, dtype=torch.float64).tolist()
            wanted = [a + b * share for a, b in zip(wanted, own, strict=True)]
            got = [a + b * share for a, b in zip(got, masked, strict=True)]
    return EmrScan(tuple(a / b if b else 1.0 for a, b in zip(wanted, got, strict=True)))


def _elected(deltas: Tensor, ctx: TensorContext) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Per block its place, the unified vector (C,) and the masks (N, C)."""
    weights = torch.tensor(ctx.weights, dtype=deltas.dtype)[:, None]
    for start, stop in blocks.spans(flat(deltas).shape[1]):
        place = slice(start, stop)
        weighted = flat(deltas)[:, place] * weights
        signs = torch.where(disjoint.total(weighted) > 0, 1.0, -1.0).to(deltas.dtype)
        unified = signs * (weighted * signs).clamp_min_(0.0).amax(0)
        yield place, unified, flat(deltas)[:, place] * signs > 0


def merge(deltas: Tensor, params: EmrParams, ctx: TensorContext) -> MergeResult:
    """The unified vector and the masks of one tensor; deltas (N, *shape)."""
    del params
    shape = deltas.shape[1:]
    vector = flat(deltas).new_empty(flat(deltas).shape[1])
    masks = torch.empty(flat(deltas).shape, dtype=torch.bool)
    for place, unified, selected in _elected(deltas, ctx):
        vector[place] = unified
        masks[:, place] = selected
    parts = {"merged": as_matrices(vector, shape), "mask": as_matrices(masks, shape)}
    return MergeResult(parts, merged=Dense("merged"), task=Masked("mask", Dense("merged")))


EMR = MergeMethod(
    name="emr",
    version=1,
    summary="Elected unified vector, and per task a mask and one gain.",
    source="arXiv 2405.17461, section 3.2; harveyhuang18/EMR_Merging",
    params=EmrParams,
    merge=merge,
    scan=scan,
    own_weights=True,
    per_task_reload=True,
    aliases=("emr-merging",),
)
