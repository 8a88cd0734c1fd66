"""SparseGPT importance: which entries of a delta matter to the layer's outputs, in TIES and DARE.

TIES elects signs among the survivors and averages what agrees; DARE sums them, selected or drawn
with fitting probabilities.
Source: arXiv 2301.00774 (IST-DASLab/sparsegpt); Shahriar-Ferdoush/test-2; methods.md §16. Unlike
test-2, the inverse Hessian counts once, compensated values are used where they are computed, no
Hessian is damped twice, and a deterministic selection is not divided by its density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext, parameter
from svd_hybrid.methods.steps.importance import (
    ImportanceParams,
    check_importance,
    drawn_tasks,
    pruned_tasks,
)
from svd_hybrid.methods.steps.spectral_classes import dense_result

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import disjoint
else:
    torch, disjoint = lazy("torch"), lazy("svd_hybrid.numerics.disjoint")


@dataclass(frozen=True, slots=True)
class SparseGptTiesParams(ImportanceParams):
    """Parameters of TIES with importance in place of magnitudes."""

    weight_rule: Literal["peft", "mergekit", "seed004"] = parameter(
        "peft",
        "task weights: signs elected without them and the mean divided by the number of agreeing "
        "entries (peft) or by their weights (seed004), or both with them (mergekit)",
    )

    def __post_init__(self) -> None:
        check_importance(self)


def merge_ties(deltas: Tensor, params: SparseGptTiesParams, ctx: TensorContext) -> MergeResult:
    """Elect a sign per entry and average the survivors that agree; deltas (N, *shape)."""
    survivors = pruned_tasks(deltas, params, ctx)
    rule = disjoint.Rule("mass", "mean", params.weight_rule, ctx.weights)
    merged = disjoint.merge_block(survivors.flatten(1), rule)
    return dense_result(merged.view(survivors.shape[1:]))


@dataclass(frozen=True, slots=True)
class SparseGptDareParams(ImportanceParams):
    """Parameters of DARE with importance in place of chance."""

    selection: Literal["best", "sample"] = parameter(
        "best", "the best-scored entries, or a draw with p ~ sqrt(score) that keeps the mean"
    )
    rescale: Literal["none", "density", "kept"] = parameter(
        "none", "best: divide survivors by nothing, the density, or the share actually kept"
    )
    seed: int = parameter(0, "sample: of the draw; each tensor and task has its own")

    def __post_init__(self) -> None:
        check_importance(self)
        if self.selection == "sample" and (
            self.score == "obs_seq" or self.compensate or self.rescale != "none"
        ):
            raise ParameterError(
                "a draw goes with neither obs_seq, compensate nor rescale",
                fix="set selection=best, or leave these as they are by default",
            )


def merge_dare(deltas: Tensor, params: SparseGptDareParams, ctx: TensorContext) -> MergeResult:
    """The sum of the survivors; deltas (N, *shape), weighted."""
    draw = params.selection == "sample" and (ctx.statistics or params.others == "merge")
    if draw:
        survivors = drawn_tasks(deltas, params, ctx, params.seed)
    else:
        survivors = pruned_tasks(deltas, params, ctx)
    divisors = torch.ones(len(deltas), dtype=survivors.dtype)
    if params.rescale == "density":
        divisors[:] = torch.tensor(ctx.densities or [params.density] * len(deltas))
    elif params.rescale == "kept":
        divisors[:] = (survivors != 0).flatten(1).double().mean(1).clamp_min(1e-12)
    return dense_result((survivors / divisors[:, None, None]).sum(0))


SPARSEGPT_TIES = MergeMethod(
    name="sparsegpt-ties",
    version=1,
    summary="TIES whose trim keeps what matters to the layers' outputs.",
    source="arXiv 2301.00774 and 2306.01708; Shahriar-Ferdoush/test-2",
    params=SparseGptTiesParams,
    merge=merge_ties,
    own_weights=True,
    statistics="gram",
    without_statistics=("score", "magnitude"),
)

SPARSEGPT_DARE = MergeMethod(
    name="sparsegpt-dare",
    version=1,
    summary="Sum of deltas pruned to what matters to the layers' outputs.",
    source="arXiv 2301.00774 and 2311.03099; Shahriar-Ferdoush/test-2",
    params=SparseGptDareParams,
    merge=merge_dare,
    statistics="gram",
    without_statistics=("score", "magnitude"),
)
