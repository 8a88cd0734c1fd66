"""SVD-Hybrid: a weighted average of task deltas, localised by masks, on a shared SVD basis.

What the rule decides is which scalars count (masks, noise region) and how much (weights, scaling).
With all directions kept U U^T (tau - mu) + mu = tau, so the merge is the weighted average on the
mask up to quantisation error: the SVD changes how it is stored, not what comes out.
Source: the SVD-Hybrid method document of mgradyn/SVD-Quantization-Task-Merging; methods.md §21.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal

from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.base import MergeMethod, Region

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SvdHybridParams:
    """Parameters of the merge rule; those of the storage are the profile's."""

    scaling: float = field(
        default=1.0, metadata={"help": "factor on the merged delta; 1 is the weighted average"}
    )
    mask_strategy: Literal["union", "intersection", "majority"] = field(
        default="union", metadata={"help": "how the tasks' masks are combined"}
    )
    majority_threshold: float = field(
        default=0.5,
        metadata={"help": "share of the masks that must agree for majority, inclusive, (0, 1]"},
    )
    include_noise: bool = field(
        default=False, metadata={"help": "also store the scalars outside the mask"}
    )
    noise_shrink: float = field(
        default=0.5, metadata={"help": "factor on those scalars in merges, [0, 1]"}
    )
    min_mask_size: int = field(
        default=10,
        metadata={"help": "a mask that selects fewer scalars is ignored; the tensor is kept whole"},
    )

    def __post_init__(self) -> None:
        if not math.isfinite(self.scaling):
            raise ParameterError(f"scaling is {self.scaling}, must be finite")
        if self.mask_strategy not in ("union", "intersection", "majority"):
            raise ParameterError(
                f"mask_strategy is {self.mask_strategy!r}",
                fix="use union, intersection or majority",
            )
        if not 0 < self.majority_threshold <= 1:
            raise ParameterError(f"majority_threshold is {self.majority_threshold}, outside (0, 1]")
        if not 0 <= self.noise_shrink <= 1:
            raise ParameterError(f"noise_shrink is {self.noise_shrink}, outside [0, 1]")
        if self.min_mask_size < 0:
            raise ParameterError(f"min_mask_size is {self.min_mask_size}, below 0")


def combine_masks(masks: list[Tensor], params: SvdHybridParams) -> Tensor:
    """One mask from those of the tasks.

    Args:
        masks: at least one; bool, of one shape.
        params: strategy and threshold. A majority of 0.5 is inclusive: 2 of 4 count.

    Returns:
        bool, same shape.
    """
    votes = sum((mask.int() for mask in masks[1:]), start=masks[0].int())
    needed = {
        "union": 1,
        "intersection": len(masks),
        "majority": next(v for v in count(1) if v / len(masks) >= params.majority_threshold),
    }[params.mask_strategy]
    return votes >= needed


def regions(mask: Tensor, params: SvdHybridParams) -> list[Region]:
    """The signal region, and the noise region when asked for; each only if it holds a scalar."""
    selected = int(mask.sum())
    found = [Region(inside=True, gain=1.0)] if selected else []
    if params.include_noise and selected < mask.numel():
        found.append(Region(inside=False, gain=params.noise_shrink))
    return found


SVD_HYBRID = MergeMethod(
    name="svd-hybrid",
    version=1,
    summary="Weighted average of task deltas, optionally masked, stored on a shared SVD basis.",
    source="mgradyn/SVD-Quantization-Task-Merging, method document; masks: arXiv 2405.07813",
    params=SvdHybridParams,
    regions=regions,
    weights="average",
    per_task_reload=True,
    takes_masks="combined",
)
