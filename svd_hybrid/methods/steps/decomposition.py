"""Input-aware low rank + sparse as a step of merge methods: its parameters, and the step.

Not a method itself. Source: methods.md §14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.base import TensorContext, parameter
from svd_hybrid.methods.steps.checks import check_choices, require
from svd_hybrid.methods.steps.spectral_classes import inputs_first
from svd_hybrid.patterns import matches_any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import lowrank_sparse
else:
    torch, lowrank_sparse = lazy("torch"), lazy("svd_hybrid.numerics.lowrank_sparse")

FUSED = ("*in_proj_weight", "*qkv.weight", "*c_attn.weight")
SMALLEST_MOMENT = 1e-8


@dataclass(frozen=True, slots=True)
class DecompositionParams:
    """Parameters of the low-rank + sparse decomposition."""

    scaling: float = parameter(1.0, "factor on the merged delta")
    sparsity: float = parameter(0.1, "share of the parameter budget given up, [0, 1)")
    rank_ratio: float = parameter(0.75, "share of what is kept that goes to the low rank, [0, 1]")
    num_iters: int = parameter(10, "rounds of low-rank and sparse updates, 1 or more")
    mask_strategy: Literal["row", "global", "element"] = parameter(
        "row", "where the sparse part keeps equally many: each row, or the matrix (two names)"
    )
    refit: bool = parameter(True, "update the low rank once more at the end; never worse")
    pattern: str = parameter("", "N:M keeps N of every M consecutive columns in the sparse part")
    input_scaling: bool = parameter(True, "weigh columns by the inputs' second moments")
    floor: Literal["relative", "absolute", "none"] = parameter(
        "relative", "moments of dead inputs: at least 1e-8 of the mean; 1e-8 added; as they are"
    )
    split_qkv: bool = parameter(False, "decompose fused query, key, value blocks one by one")
    transposed: tuple[str, ...] = parameter((), "names of matrices stored as inputs x outputs")
    adaptive: bool = parameter(False, "share the budget among layers and tasks by what it is worth")
    exclude: tuple[str, ...] = parameter(
        ("*text_projection*",), "names that are left alone though they are matrices"
    )

    def __post_init__(self) -> None:
        check_decomposition(self)

    @property
    def groups(self) -> tuple[int, int] | None:
        """N and M of the pattern."""
        if not self.pattern:
            return None
        kept, _, of = self.pattern.partition(":")
        return int(kept), int(of)


def check_decomposition(params: DecompositionParams) -> None:
    """Raise ParameterError where a parameter is outside its range."""
    check_choices(params)
    require(0 <= params.sparsity < 1, "sparsity", params.sparsity, "[0, 1)")
    require(0 <= params.rank_ratio <= 1, "rank_ratio", params.rank_ratio, "[0, 1]")
    require(params.num_iters >= 1, "num_iters", params.num_iters, "1 and above")
    if params.pattern:
        kept, colon, of = params.pattern.partition(":")
        legal = colon and kept.isdecimal() and of.isdecimal() and 0 < int(kept) <= int(of)
        if not legal or params.rank_ratio == 1 or params.adaptive:
            raise ParameterError(
                f"pattern is {params.pattern!r}",
                fix="write N:M with 0 < N <= M, a rank_ratio below 1, and no adaptive",
            )


def decompose_tasks(
    stack: Tensor, params: DecompositionParams, ctx: TensorContext, spare: int = 0
) -> list[lowrank_sparse.LowRankSparse]:
    """Each task's matrix as low rank + sparse.

    Args:
        stack: (N, m, n).
        params: with budgets of `ctx.scan` where they are adaptive.
        ctx: has the statistics.
        spare: directions the low-rank part always leaves out.
    """
    kept: Sequence[float] = [1 - params.sparsity] * len(stack)
    if params.adaptive:
        kept = ctx.scan[ctx.name]
    scales = input_scales(stack, params, ctx)
    return [
        decompose_one(delta, scale, budget_of(params, share, spare), params, ctx)
        for delta, scale, share in zip(stack, scales, kept, strict=True)
    ]


def input_scales(
    stack: Tensor, params: DecompositionParams, ctx: TensorContext
) -> Sequence[Tensor | None]:
    """Per task the weights (inputs,) of the columns; None where all count the same.

    Raises:
        ParameterError: statistics are missing, do not fit, or are not finite numbers >= 0.
    """
    if not params.input_scaling:
        return [None] * len(stack)
    if ctx.statistics is None:
        raise ParameterError(
            "input scaling needs the second moments of this tensor's inputs",
            where=f"tensor {ctx.name!r}",
            fix="pass layer statistics that cover it, --missing-statistics ones, or "
            "--set input_scaling=false",
        )
    axis = 1 if inputs_first(params.transposed, ctx) else 2
    return [_scale(moment, stack.shape[axis], params.floor, ctx) for moment in ctx.statistics]


def _scale(moment: Tensor, inputs: int, floor: str, ctx: TensorContext) -> Tensor:
    where = f"statistics of tensor {ctx.name!r}"
    if moment.ndim == 2:
        moment = moment.diagonal()
    if len(moment) != inputs:
        raise ParameterError(
            f"{len(moment)} second moments for {inputs} columns",
            where=where,
            fix="list it under `transposed` if it is stored as inputs x outputs",
        )
    if not bool(torch.isfinite(moment).all() and (moment >= 0).all() and moment.any()):
        raise ParameterError("second moments must be finite, >= 0 and not all 0", where=where)
    if floor == "relative":
        moment = moment.clamp_min(SMALLEST_MOMENT * float(moment.double().mean()))
    elif floor == "absolute":
        moment = moment + SMALLEST_MOMENT
    return moment.sqrt()


def budget_of(params: DecompositionParams, kept: float, spare: int = 0) -> lowrank_sparse.Budget:
    """The budget of a matrix that keeps this share of its parameters."""
    scope = "row" if params.mask_strategy == "row" else "global"
    return lowrank_sparse.Budget(kept, params.rank_ratio, scope, params.groups, spare)


def decompose_one(
    delta: Tensor,
    scale: Tensor | None,
    budget: lowrank_sparse.Budget,
    params: DecompositionParams,
    ctx: TensorContext,
) -> lowrank_sparse.LowRankSparse:
    """One matrix as it is stored, with the weights of its inputs."""
    if inputs_first(params.transposed, ctx):
        turned = _blocks(delta.T, scale, budget, params, ctx.name)
        return lowrank_sparse.LowRankSparse(turned.right, turned.left, turned.sparse.T)
    return _blocks(delta, scale, budget, params, ctx.name)


def _blocks(
    delta: Tensor,
    scale: Tensor | None,
    budget: lowrank_sparse.Budget,
    params: DecompositionParams,
    name: str,
) -> lowrank_sparse.LowRankSparse:
    """The matrix (outputs, inputs) at once, or query, key and value blocks of rows."""
    split = params.split_qkv and matches_any(FUSED, name) and delta.shape[0] % 3 == 0
    found = [
        lowrank_sparse.decompose(block, scale, budget, params.num_iters, refit=params.refit)
        for block in delta.chunk(3 if split else 1)
    ]
    if not split:
        return found[0]
    return lowrank_sparse.LowRankSparse(
        _block_diagonal([block.left for block in found]),
        torch.cat([block.right for block in found], dim=1),
        torch.cat([block.sparse for block in found]),
    )


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    rows, columns = (sum(block.shape[axis] for block in blocks) for axis in (0, 1))
    whole = blocks[0].new_zeros(rows, columns)
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole
