"""TIES: trim each delta, elect one sign per scalar, merge the entries that agree with it.

Trimming a whole model as one vector, as the authors do, takes two passes of histograms and a third
for the majority of the elected signs; per tensor, and with zeros elected as +, nothing is scanned.
Source: Yadav et al., "TIES-Merging", arXiv 2306.01708; methods.md §4. The variants are those of
prateeky2806/ties-merging, nik-dim/tall_masks, yule-BUAA/MergeLM, huggingface/peft and
arcee-ai/mergekit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.delta.expr import Dense
from svd_hybrid.methods.base import (
    MergeMethod,
    MergeResult,
    TensorContext,
    TensorStream,
    parameter,
)
from svd_hybrid.methods.steps.trimming import (
    ModelCuts,
    TrimParams,
    as_matrices,
    check_trim,
    column_blocks,
    flat,
    model_cuts,
    settle,
    trimmed,
)

if TYPE_CHECKING:
    from torch import Tensor

    from svd_hybrid.numerics import disjoint
else:
    disjoint = lazy("svd_hybrid.numerics.disjoint")

SUMS = ("sum", "plain-sum")


@dataclass(frozen=True, slots=True)
class TiesParams(TrimParams):
    """Parameters of TIES."""

    election: Literal["mass", "count", "none", "norm-mass", "norm-fraction"] = parameter(
        "mass",
        "how a sign is elected: by the sum of the trimmed entries, by their number, by the sum of "
        "their shares of each task's squared norm, by the largest such share, or not at all",
    )
    zero_sign: Literal["majority", "majority-or-none", "plus"] = parameter(
        "majority",
        "where the election is a draw: the model-wide majority of the elected signs (should that "
        "be a draw too, negative entries are selected, or none), or plus (peft, mergekit)",
    )
    merge_func: Literal["mean", "sum", "max", "plain-mean", "plain-sum", "median", "largest"] = (
        parameter(
            "mean",
            "mean, sum or max of the agreeing entries; plain-mean, plain-sum, median or largest of "
            "all trimmed entries, with the elected sign",
        )
    )
    weight_rule: Literal["peft", "mergekit", "seed004"] = parameter(
        "peft",
        "task weights: signs elected without them and the mean divided by the number of agreeing "
        "entries (peft) or by their weights (seed004), or both with them (mergekit)",
    )
    scaling: float | None = parameter(
        None, "factor on the merged delta; 1 unless set, 0.3 for sum and plain-sum"
    )

    def __post_init__(self) -> None:
        check_trim(self)
        if self.scaling is None:
            object.__setattr__(self, "scaling", 0.3 if self.merge_func in SUMS else 1.0)


@dataclass(frozen=True, slots=True)
class TiesScan:
    """Numbers of the whole model.

    Args:
        cuts: of the trim, when the model is trimmed as one vector.
        majority: sign of the sum of all elected signs: 1, 0 or -1; 0 where it is not asked for.
        squared_norms: of each task's trimmed model; empty where it is not asked for.
    """

    cuts: ModelCuts | None
    majority: float = 0.0
    squared_norms: tuple[float, ...] = ()


def scan(stream: TensorStream, params: TiesParams) -> TiesScan:
    """Cuts, norms and majority of the whole model: each only if the parameters need it."""
    found = TiesScan(model_cuts(stream, params, values_only=True))
    if params.election.startswith("norm-"):
        found = replace(found, squared_norms=_squared_norms(stream, params, found))
    if params.zero_sign != "plus" and params.election != "none":
        return replace(found, majority=_majority(stream, params, found))
    settle(stream, found.cuts)
    return found


def _trimmed_blocks(
    stream: TensorStream, params: TiesParams, found: TiesScan
) -> Iterator[tuple[Tensor, TensorContext]]:
    for deltas, ctx in stream:
        for _, block in column_blocks(deltas, trimmed(deltas, params, ctx, found.cuts)):
            yield block, ctx


def _squared_norms(stream: TensorStream, params: TiesParams, found: TiesScan) -> tuple[float, ...]:
    norms: list[float] = []
    for block, ctx in _trimmed_blocks(stream, params, found):
        norms = norms or [0.0] * len(ctx.tasks)
        for task, square in enumerate(block.double().square_().sum(1).tolist()):
            norms[task] += square
    return tuple(norms)


def _majority(stream: TensorStream, params: TiesParams, found: TiesScan) -> float:
    votes = 0
    for block, ctx in _trimmed_blocks(stream, params, found):
        rule = _rule(params, ctx, found)
        votes += int(disjoint.elected_signs(disjoint.candidates(block, rule), rule).sum())
    return float((votes > 0) - (votes < 0))


def _rule(params: TiesParams, ctx: TensorContext, found: TiesScan) -> disjoint.Rule:
    return disjoint.Rule(
        election=params.election,
        merge_func=params.merge_func,
        weight_rule=params.weight_rule,
        weights=ctx.weights,
        tie_sign=1.0 if params.zero_sign == "plus" else found.majority,
        zero_selects_negative=params.zero_sign == "majority",
        squared_norms=found.squared_norms,
    )


def merge(deltas: Tensor, params: TiesParams, ctx: TensorContext) -> MergeResult:
    """The merged delta of one tensor; deltas (N, *shape)."""
    merged = merged_vector(deltas, params, ctx, ctx.scan)
    return MergeResult({"merged": as_matrices(merged, deltas.shape[1:])}, merged=Dense("merged"))


def merged_vector(
    deltas: Tensor, params: TiesParams, ctx: TensorContext, found: TiesScan
) -> Tensor:
    """The merged delta (D,) before scaling, given the numbers of the whole model."""
    rule = _rule(params, ctx, found)
    merged = flat(deltas).new_empty(flat(deltas).shape[1])
    for place, block in column_blocks(deltas, trimmed(deltas, params, ctx, found.cuts)):
        merged[place] = disjoint.merge_block(block, rule)
    return merged


TIES = MergeMethod(
    name="ties",
    version=1,
    summary="Trim deltas, elect a sign per scalar, merge the entries that agree with it.",
    source="arXiv 2306.01708, section 4; prateeky2806/ties-merging",
    params=TiesParams,
    merge=merge,
    scan=scan,
    own_weights=True,
)
