"""Trimming as a step of merge methods: its parameters, and the cuts of a whole model.

Methods differ in what they trim (tensor, row, or the whole model as one vector) and in who wins
when magnitudes tie; methods.md §3 lists the published rules. Not a method itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.methods.base import TensorContext, TensorStream, parameter
from svd_hybrid.methods.steps.checks import check_choices, require

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.delta import evaluate
    from svd_hybrid.numerics import blocks, trim
    from svd_hybrid.numerics import trimmed as stacks
else:
    torch, evaluate = lazy("torch"), lazy("svd_hybrid.delta.evaluate")
    trim, stacks = lazy("svd_hybrid.numerics.trim"), lazy("svd_hybrid.numerics.trimmed")
    blocks = lazy("svd_hybrid.numerics.blocks")

RULES = (
    "which of n scalars survive. exact: the floor(density n) largest, of equals the first; "
    "threshold: all >= the next smaller one (ties-merging, tall_masks); threshold-k: all >= the "
    "floor(density n)-th largest; threshold-drop: all >= the floor((1 - density) n)-th smallest "
    "(MergeLM); above-drop: all > that one (MergeLM pruning); norm-share, std: see those "
    "parameters; norm-share-last: also the last scalar of all, by a fault of ties-merging"
)


@dataclass(frozen=True, slots=True)
class TrimParams:
    """Parameters of the trim, shared by the methods that have one."""

    density: float = parameter(0.2, "fraction of scalars that are kept, (0, 1]; 1 trims nothing")
    trim_scope: Literal["global", "tensor", "row"] = parameter(
        "global", "what is trimmed as one vector: the whole model, a tensor, or a row of one"
    )
    trim_rule: Literal[
        "exact",
        "threshold",
        "threshold-k",
        "threshold-drop",
        "above-drop",
        "norm-share",
        "norm-share-last",
        "std",
    ] = parameter("exact", RULES)
    norm_share: float = parameter(
        0.9, "norm-share: keep the largest scalars that hold this share of the squared norm, (0, 1]"
    )
    std_factor: float = parameter(
        1.0, "std: keep scalars further than this many standard deviations from the mean, >= 0"
    )

    def trims(self, ctx: TensorContext) -> list[trim.Trim]:
        """How the delta of each task is trimmed."""
        own = dict.fromkeys(trim.SHARES, self.norm_share) | {"std": self.std_factor}
        if self.trim_rule in own:
            return [trim.Trim(self.trim_rule, own[self.trim_rule])] * len(ctx.tasks)
        densities = ctx.densities or (self.density,) * len(ctx.tasks)
        return [trim.Trim(self.trim_rule, density) for density in densities]


def check_trim(params: TrimParams) -> None:
    """Raise ParameterError where a parameter is none of its choices, or outside its range."""
    check_choices(params)
    for name in ("density", "norm_share"):
        require(0 < getattr(params, name) <= 1, name, getattr(params, name), "(0, 1]")
    require(params.std_factor >= 0, "std_factor", params.std_factor, "[0, inf)")


@dataclass(slots=True)
class ModelCuts:
    """The cuts of a trim over the whole model.

    Args:
        cuts: one per task, over all tensors by ascending name as one vector.
        last: name of the last tensor, where its last scalar is kept in any case; else empty.
        by_tensor: the cuts of each tensor that has been met; filled in stream order, because the
            first tensors get the scalars that are kept of those at the level.
    """

    cuts: list[trim.Cut]
    last: str = ""
    by_tensor: dict[str, tuple[trim.Cut, ...]] = field(default_factory=dict)

    @property
    def differ(self) -> bool:
        """Whether cuts differ from tensor to tensor."""
        return any(cut.splits_ties or cut.keeps_last for cut in self.cuts)

    def of(self, name: str, flat: Tensor) -> Sequence[trim.Cut]:
        """The cuts of one tensor (N, D); the first time in stream order."""
        if not self.differ:
            return self.cuts
        if name not in self.by_tensor:
            self.by_tensor[name] = tuple(
                replace(self._take(delta, task), keeps_last=name == self.last)
                for task, delta in enumerate(flat)
            )
        return self.by_tensor[name]

    def _take(self, values: Tensor, task: int) -> trim.Cut:
        cut = self.cuts[task]
        if not cut.splits_ties:
            return cut
        left = cut.ties - sum(earlier[task].ties for earlier in self.by_tensor.values())
        return replace(cut, ties=min(left, trim.ties_at(values, cut)))


def model_cuts(
    stream: TensorStream, params: TrimParams, *, values_only: bool = False
) -> ModelCuts | None:
    """The cuts of the whole model; None where the scope is smaller, or nothing is streamed.

    Args:
        stream: read twice, and a third time by whoever asks for the cuts of each tensor.
        params: the trim.
        values_only: it does not matter which zeros are kept.
    """
    if params.trim_scope != "global" or (first := next(iter(stream), None)) is None:
        return None
    cuts = trim.cuts_of_stream(stream, params.trims(first[1]), stream.scalars)
    if values_only:
        cuts = [cut if cut.level else replace(cut, ties=trim.ALL_TIES) for cut in cuts]
    if any(cut.keeps_last for cut in cuts):
        return ModelCuts(cuts, last=[ctx.name for _, ctx in stream][-1])
    return ModelCuts(cuts)


def settle(stream: TensorStream, cuts: ModelCuts | None) -> None:
    """Fix the cuts of every tensor, in stream order, where they differ between tensors."""
    if cuts is not None and cuts.differ:
        for deltas, ctx in stream:
            cuts.of(ctx.name, flat(deltas))


def flat(deltas: Tensor) -> Tensor:
    """(N, *shape) as (N, D)."""
    return deltas.reshape(len(deltas), -1)


def as_matrices(stack: Tensor, shape: Sequence[int]) -> Tensor:
    """(…, D) as (…, rows, columns) of the matrix view of one tensor of that shape."""
    return stack.reshape(*stack.shape[:-1], *evaluate.matrix_shape(tuple(shape)))


def kept_masks(
    deltas: Tensor, params: TrimParams, ctx: TensorContext, cuts: ModelCuts | None
) -> Tensor:
    """Which scalars survive the trim: (N, D) bool."""
    if params.trim_scope == "row":
        rows = as_matrices(flat(deltas), deltas.shape[1:])
        pairs = zip(rows, params.trims(ctx), strict=True)
        return flat(torch.stack([trim.kept_of_rows(matrix, rule) for matrix, rule in pairs]))
    numbers = flat(deltas)
    given = cuts_of(numbers, params, ctx, cuts)
    return torch.stack([trim.kept(*pair) for pair in zip(numbers, given, strict=True)])


def cuts_of(
    numbers: Tensor, params: TrimParams, ctx: TensorContext, cuts: ModelCuts | None
) -> Sequence[trim.Cut]:
    """The cuts of one tensor (N, D): those of the model, or its own."""
    if cuts is not None:
        return cuts.of(ctx.name, numbers)
    return [
        trim.cut_of(values, rule) for values, rule in zip(numbers, params.trims(ctx), strict=True)
    ]


def trimmed(
    deltas: Tensor, params: TrimParams, ctx: TensorContext, cuts: ModelCuts | None
) -> stacks.Trimmed:
    """The stack (N, *shape) after the trim, to be read by columns of (N, D)."""
    numbers = flat(deltas)
    if params.trim_scope == "row":
        masks = kept_masks(deltas, params, ctx, cuts)
        return stacks.ByMask(numbers, masks, masks.all(1).tolist())
    return stacks.trimmed_by(numbers, cuts_of(numbers, params, ctx, cuts))


def column_blocks(deltas: Tensor, source: stacks.Trimmed) -> Iterator[tuple[slice, Tensor]]:
    """Column blocks of the trimmed stack with their place."""
    for start, stop in blocks.spans(flat(deltas).shape[1]):
        yield slice(start, stop), source.columns(start, stop)
