"""Pruning by importance as a step of merge methods: its parameters, and the survivors.

Not a method itself. Entries are ranked by what removing them costs on calibration inputs, given as
the Gram matrix of each task's layer inputs; tensors without statistics are ranked by magnitude.
Source: methods.md §16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.base import TensorContext, parameter
from svd_hybrid.methods.steps.checks import check_choices, require
from svd_hybrid.methods.steps.spectral_classes import inputs_first, stacked

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import obs, seeds, trim
else:
    torch, obs = lazy("torch"), lazy("svd_hybrid.numerics.obs")
    seeds, trim = lazy("svd_hybrid.numerics.seeds"), lazy("svd_hybrid.numerics.trim")

SMALLEST_SCORE = 1e-300


@dataclass(frozen=True, slots=True)
class ImportanceParams:
    """How entries are ranked and pruned."""

    scaling: float = parameter(1.0, "factor on the merged delta")
    density: float = parameter(0.2, "share of the entries that survives, (0, 1]")
    score: Literal["obs", "obs_seq", "wanda", "magnitude", "obs_squared"] = parameter(
        "obs",
        "obs: delta^2 / [H^-1]_jj; obs_seq: SparseGPT's columns one after the other; wanda: "
        "|delta| sqrt(H_jj); magnitude; obs_squared: delta^2 / [H^-1]_jj^2, a mistake of test-2",
    )
    scope: Literal["tensor", "row", "block"] = parameter(
        "tensor", "what competes for survival: a tensor, a row of it, or a block of columns"
    )
    compensate: bool = parameter(False, "let surviving entries make up for pruned ones")
    percdamp: float = parameter(0.01, "share of the mean diagonal added to the Gram matrix, > 0")
    blocksize: int = parameter(128, "columns per block")
    pattern: str = parameter("", "with obs_seq: N:M keeps N of every M columns, not a density")
    transposed: tuple[str, ...] = parameter((), "names of matrices stored as inputs x outputs")
    others: Literal["merge", "base"] = parameter(
        "merge", "tensors without statistics: ranked by magnitude, or left at the base"
    )

    def __post_init__(self) -> None:
        check_importance(self)

    @property
    def groups(self) -> tuple[int, int]:
        """N and M of the pattern."""
        kept, _, of = self.pattern.partition(":")
        return int(kept), int(of)


def check_importance(params: ImportanceParams) -> None:
    """Raise ParameterError where a parameter is outside its range."""
    check_choices(params)
    require(0 < params.density <= 1, "density", params.density, "(0, 1]")
    require(params.percdamp > 0, "percdamp", params.percdamp, "(0, infinity)")
    require(params.blocksize >= 1, "blocksize", params.blocksize, "1 and above")
    if params.pattern:
        kept, colon, of = params.pattern.partition(":")
        legal = colon and kept.isdecimal() and of.isdecimal() and 0 < int(kept) <= int(of)
        if not legal or params.score != "obs_seq":
            raise ParameterError(
                f"pattern is {params.pattern!r}",
                fix="write N:M with 0 < N <= M, and set score=obs_seq",
            )


def pruned_tasks(deltas: Tensor, params: ImportanceParams, ctx: TensorContext) -> Tensor:
    """The deltas (N, rows, columns) with unimportant entries 0."""
    matrices = stacked(deltas)
    if ctx.statistics is None:
        if params.others == "base":
            return torch.zeros_like(matrices)
        rows = [_survivors(m, m.abs(), d, params) for m, d in _with_density(matrices, params, ctx)]
        return torch.stack(rows)
    turned = inputs_first(params.transposed, ctx)
    found = []
    for (matrix, density), gram in zip(
        _with_density(matrices, params, ctx), ctx.statistics, strict=True
    ):
        weights = matrix.T if turned else matrix
        kept = _pruned(weights, _hessian(weights, gram, params, ctx), density, params)
        found.append(kept.T if turned else kept)
    return torch.stack(found)


def _with_density(
    matrices: Tensor, params: ImportanceParams, ctx: TensorContext
) -> list[tuple[Tensor, float]]:
    densities: Sequence[float] = ctx.densities or (params.density,) * len(matrices)
    return list(zip(matrices, densities, strict=True))


def _hessian(
    weights: Tensor, gram: Tensor, params: ImportanceParams, ctx: TensorContext
) -> obs.Hessian:
    if gram.shape[0] != weights.shape[1]:
        raise ParameterError(
            f"statistics of {gram.shape[0]} inputs for {weights.shape[1]} columns",
            where=f"tensor {ctx.name!r}",
            fix="list it under `transposed` if it is stored as inputs x outputs",
        )
    return obs.prepared(gram, params.percdamp)


def _pruned(
    weights: Tensor, hessian: obs.Hessian, density: float, params: ImportanceParams
) -> Tensor:
    """One task's matrix (outputs, inputs), pruned and perhaps compensated."""
    if density >= 1 and not params.pattern:
        return weights
    if params.score != "obs_seq":
        scored = obs.scores(weights, params.score, hessian)
        kept = _survivors(weights, scored, density, params)
        if not params.compensate:
            return kept
        return obs.prune(weights, hessian, kept == 0, params.blocksize, zero_dead=False)
    block = params.blocksize if params.scope == "block" else weights.shape[1]
    if params.pattern:
        keep, group = params.groups
        select = obs.within_groups(keep, group)
        made = obs.prune(weights, hessian, select, block, group=group)
    else:
        select = _by_row(1 - density) if params.scope == "row" else obs.below_threshold(1 - density)
        made = obs.prune(weights, hessian, select, block)
    return made if params.compensate else weights.masked_fill(made == 0, 0.0)


def _by_row(share: float) -> obs.Selection:
    def select(values: Tensor, scored: Tensor) -> Tensor:
        return torch.cat([obs.below_threshold(share)(values, row[None]) for row in scored])

    return select


def _survivors(weights: Tensor, scored: Tensor, density: float, params: ImportanceParams) -> Tensor:
    """The matrix with all but the best-scored share of each tensor, row or block 0."""
    if params.scope == "row":
        pieces, axis = torch.split(scored, 1), 0
    elif params.scope == "block":
        pieces, axis = torch.split(scored, params.blocksize, 1), 1
    else:
        pieces, axis = torch.split(scored, max(len(scored), 1)), 0
    keep = [_best(piece, density) for piece in pieces]
    return weights.masked_fill(~torch.cat(keep, dim=axis), 0.0)


def _best(scored: Tensor, density: float) -> Tensor:
    flat = scored.flatten()
    flat = flat / flat.max().clamp_min(SMALLEST_SCORE)  # the cut is found in float32
    return trim.kept(flat, trim.cut_of(flat, trim.Trim("exact", density))).view_as(scored)


def drawn_tasks(deltas: Tensor, params: ImportanceParams, ctx: TensorContext, seed: int) -> Tensor:
    """Entries drawn with probability p ~ sqrt(score), divided by p: their mean is the delta."""
    found = []
    turned = inputs_first(params.transposed, ctx) and ctx.statistics is not None
    for number, (matrix, density) in enumerate(_with_density(stacked(deltas), params, ctx)):
        weights = matrix.T if turned else matrix
        hessian = None
        if ctx.statistics is not None:
            hessian = _hessian(weights, ctx.statistics[number], params, ctx)
        score = params.score if hessian is not None else "magnitude"
        chance = obs.keep_probabilities(obs.scores(weights, score, hessian), density)
        random = seeds.generator(seed, "dare", ctx.name, ctx.tasks[number])
        keep = torch.bernoulli(chance, generator=random).bool()
        scaled = torch.where(keep, weights.double() / chance, 0.0).to(weights.dtype)
        found.append(scaled.T if turned else scaled)
    return torch.stack(found)
