"""Scale-SVD: every task's matrices as low rank + sparse, nearest under the inputs they see.

What is approximated is W diag(sqrt(s)), s being the second moments of the layer's inputs under the
task's own data. A merge is task arithmetic on the approximations, hence its scaling. Tensors whose
parts would not be smaller than the delta are stored as the dense sum of both.
Source: ArkNightmaster/AwRank-Merging, scale_svd_utils.py; OATS (stephenqz/OATS); methods.md §14.
Unlike the published code, each task has its own statistics and the low rank is refitted at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.delta.expr import Dense, Expr, LowRank, Scattered, Sum, Weighted
from svd_hybrid.methods.base import (
    MergeMethod,
    MergeResult,
    TensorContext,
    TensorStream,
    parameter,
)
from svd_hybrid.methods.steps.budgets import adaptive_budgets
from svd_hybrid.methods.steps.decomposition import (
    DecompositionParams,
    check_decomposition,
    decompose_tasks,
)
from svd_hybrid.methods.steps.spectral_classes import (
    FACTOR_LIMBS,
    dense_tasks,
    factor_parts,
    matrices,
    spectral_view,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics.lowrank_sparse import LowRankSparse
else:
    torch = lazy("torch")

MASK_SHARE = 1 / 32  # what a bit per scalar costs, in float32 scalars


@dataclass(frozen=True, slots=True)
class ScaleSvdParams(DecompositionParams):
    """Parameters of Scale-SVD."""

    scaling: float = parameter(0.3, "factor on the sum of the approximated deltas, as a merge")
    conv: Literal["keep", "matricize"] = parameter(
        "keep", "convolutions: unchanged, or as matrices of out x (in * height * width)"
    )

    def __post_init__(self) -> None:
        check_decomposition(self)


def scan(stream: TensorStream, params: ScaleSvdParams) -> dict[str, list[float]] | None:
    """Budgets per tensor and task, where they are adaptive."""
    if not params.adaptive:
        return None
    return adaptive_budgets(matrices(stream, params.exclude, params.conv), params)


def merge(deltas: Tensor, params: ScaleSvdParams, ctx: TensorContext) -> MergeResult:
    """Low rank + sparse of each task; deltas (N, *shape)."""
    stack = spectral_view(deltas, params.exclude, params.conv, ctx)
    if stack is None:
        return dense_tasks(deltas)
    found = decompose_tasks(stack, params, ctx)
    rank = max(task.left.shape[1] for task in found)
    count = max(int(task.sparse.count_nonzero()) for task in found)
    _, m, n = stack.shape
    size = rank * (m + n) + count + (m * n * MASK_SHARE if count else 0)
    if rank == 0 or size >= m * n or stack.dtype == torch.float64:
        return dense_tasks(torch.stack([task.whole for task in found]))
    return _stored(found, count)


def _stored(found: list[LowRankSparse], count: int) -> MergeResult:
    parts = factor_parts([(task.left, task.right) for task in found])
    task: Expr = LowRank("coeff_left", "coeff_right", FACTOR_LIMBS)
    if count:
        masks = torch.stack([selected(part.sparse, count) for part in found])
        numbers = [part.sparse[mask] for part, mask in zip(found, masks, strict=True)]
        parts |= {"mask_sparse": masks, "coeff_sparse": torch.stack(numbers).unsqueeze(-1)}
        task = Sum((task, Scattered("mask_sparse", Dense("coeff_sparse"))))
    return MergeResult(parts, merged=Weighted((1.0,) * len(found), task), task=task)


def selected(sparse: Tensor, count: int) -> Tensor:
    """Where the matrix is not 0, and its first zeros, `count` places in all; bool."""
    mask = sparse != 0
    missing = count - int(mask.sum())
    if missing:
        spare = torch.nonzero(~mask.flatten())[:missing, 0]
        mask.view(-1)[spare] = True
    return mask


SCALE_SVD = MergeMethod(
    name="scale-svd",
    version=1,
    summary="Each task as low rank + sparse, weighted by its inputs; merged by summing.",
    source="ArkNightmaster/AwRank-Merging, Scale-SVD; OATS, arXiv 2409.13652",
    params=ScaleSvdParams,
    merge=merge,
    scan=scan,
    per_task_reload=True,
    statistics="moment",
    without_statistics=("input_scaling", False),
)
