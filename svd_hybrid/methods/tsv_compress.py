"""TSV-Compress: every task's deltas as truncated singular value decompositions.

Only storage is compressed: a task is rebuilt from its own factors, with the square roots of the
singular values folded into both, and a merge is task arithmetic on the truncated deltas (hence the
scaling of task arithmetic). Tensors whose factors would not be smaller are stored whole.
Source: arXiv 2412.00081, TSV-Compress; AntoAndGar/task_singular_vectors, TSVC_utils.py;
methods.md §10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svd_hybrid._lazy import lazy
from svd_hybrid.delta.expr import LowRank, Weighted
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext, parameter
from svd_hybrid.methods.steps.checks import check_choices, require
from svd_hybrid.methods.steps.spectral_classes import (
    FACTOR_LIMBS,
    dense_tasks,
    factor_parts,
    spectral_view,
)
from svd_hybrid.methods.tsv_m import directions_per_task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import energy, spectral
else:
    torch = lazy("torch")
    energy, spectral = lazy("svd_hybrid.numerics.energy"), lazy("svd_hybrid.numerics.spectral")


@dataclass(frozen=True, slots=True)
class TsvCompressParams:
    """Parameters of TSV-Compress."""

    scaling: float = parameter(0.3, "factor on the sum of the truncated deltas, as a merge")
    rank_fraction: float | None = parameter(
        None, "share of the singular triplets kept, (0, 1]; unset is one part in N"
    )
    energy: float | None = parameter(
        None, "instead: keep the fewest that hold this share of the squared norm, (0, 1]"
    )
    rank_cap: int = parameter(0, "keep at most so many; 0 is no limit")

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("rank_fraction", "energy"):
            share = getattr(self, name)
            require(share is None or 0 < share <= 1, name, share, "(0, 1]")
        require(self.rank_cap >= 0, "rank_cap", self.rank_cap, "0 and above")


def merge(deltas: Tensor, params: TsvCompressParams, ctx: TensorContext) -> MergeResult:
    """Factors of each task's delta; deltas (N, *shape)."""
    stack = spectral_view(deltas, (), "keep", ctx)
    if stack is None:
        return dense_tasks(deltas)
    pairs = [_factors(delta, len(stack), params) for delta in stack]
    rank = max(left.shape[1] for left, _ in pairs)
    _, m, n = stack.shape
    if rank == 0 or rank * (m + n) >= m * n or stack.dtype == torch.float64:
        return dense_tasks(torch.stack([left @ right.T for left, right in pairs]))
    task = LowRank("coeff_left", "coeff_right", FACTOR_LIMBS)
    return MergeResult(factor_parts(pairs), merged=Weighted((1.0,) * len(stack), task), task=task)


def _factors(delta: Tensor, tasks: int, params: TsvCompressParams) -> tuple[Tensor, Tensor]:
    """Left (m, k) and right (n, k), each with the square roots of the singular values."""
    size = min(delta.shape)
    if params.energy is None:
        count = directions_per_task(size, tasks, params.rank_fraction)
    else:
        narrow = delta if delta.shape[0] >= delta.shape[1] else delta.T
        count = energy.rank_for_energy(spectral.spectrum(narrow).energies, params.energy)
    found = spectral.leading(
        delta, min(count, params.rank_cap or size), spectral.noise_level(delta)
    )
    root = found.s.sqrt()
    return found.u * root, found.v * root


TSV_COMPRESS = MergeMethod(
    name="tsv-compress",
    version=1,
    summary="Each task's deltas as truncated singular value decompositions; merged by summing.",
    source="arXiv 2412.00081, TSV-Compress; AntoAndGar/task_singular_vectors",
    params=TsvCompressParams,
    merge=merge,
    per_task_reload=True,
    aliases=("tsv-c", "tsvc"),
)
