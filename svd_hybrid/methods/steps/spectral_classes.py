"""Which tensors spectral methods treat as matrices, and what they make of the others.

Matrices take the spectral path and start from the SUM of the deltas; vectors, excluded names and
(unless asked otherwise) convolutions take the MEAN. That is how the original programs do it, and it
changes results. Source: methods.md §0.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.delta.expr import Dense, LowRank, Weighted
from svd_hybrid.methods.base import (
    MergeResult,
    TensorContext,
    TensorStream,
    kind_of,
    parameter,
)
from svd_hybrid.methods.steps.checks import check_choices
from svd_hybrid.patterns import matches_any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.delta import evaluate
else:
    torch = lazy("torch")
    evaluate = lazy("svd_hybrid.delta.evaluate")

FACTOR_LIMBS = 2  # gives float32 products of float32 factors; float64 is kept whole


@dataclass(frozen=True, slots=True)
class SpectralParams:
    """What all spectral merges have in common."""

    scaling: float = parameter(1.0, "factor on the merged delta; worth tuning, 0.1 to 3")
    exclude: tuple[str, ...] = parameter(
        ("*text_projection*",), "names that are averaged though they are matrices"
    )
    conv: Literal["mean", "matricize"] = parameter(
        "mean", "convolutions: averaged, or merged as matrices of out x (in * height * width)"
    )
    null_space: Literal["drop", "ref"] = parameter(
        "drop", "directions of no energy: left out, or filled with arbitrary vectors as published"
    )

    def __post_init__(self) -> None:
        check_choices(self)


def spectral_view(
    deltas: Tensor, exclude: tuple[str, ...], conv: str, ctx: TensorContext
) -> Tensor | None:
    """The deltas as matrices (N, m, n), or None where the rule averages or keeps this tensor."""
    kind = kind_of(deltas.shape[1:])
    aside = kind == "vector" or (kind == "conv" and conv != "matricize")
    if aside or not deltas.numel() or matches_any(exclude, ctx.name):
        return None
    return deltas.flatten(2)


def storage_noise(base: Tensor, tasks: int) -> float:
    """Largest singular value of the noise a sum of `tasks` deltas has from how they were stored.

    Base + delta was rounded to the base's dtype, by up to 2^-24 of the base in float32: a matrix of
    independent entries of that size. A low-rank update merged into its base comes back with it.
    Coarser checkpoints are left alone, as by the published code: theirs is as large as the update.
    """
    if base.dtype not in (torch.float32, torch.float64) or not base.numel() or base.ndim < 2:
        return 0.0
    m, n = evaluate.matrix_shape(tuple(base.shape))
    size = float(base.double().norm()) * torch.finfo(base.dtype).eps / 2 / (m * n) ** 0.5
    return float(size * (m**0.5 + n**0.5) * tasks**0.5)


def matrices(
    stream: TensorStream, exclude: tuple[str, ...], conv: str
) -> Iterator[tuple[Tensor, TensorContext]]:
    """The tensors of a scan that are matrices to a method, (N, m, n), with their contexts."""
    for deltas, ctx in stream:
        stack = spectral_view(deltas, exclude, conv, ctx)
        if stack is not None:
            yield stack, ctx


def inputs_first(patterns: tuple[str, ...], ctx: TensorContext) -> bool:
    """Whether a matrix is stored inputs x outputs, by the user's word or by its statistics'."""
    return ctx.inputs_first or matches_any(patterns, ctx.name)


def stacked(deltas: Tensor) -> Tensor:
    """Deltas (N, *shape) as a stacked part (N, rows, columns)."""
    return deltas.reshape(-1, *evaluate.matrix_shape(tuple(deltas.shape[1:])))


def mean_result(deltas: Tensor) -> MergeResult:
    """The mean of the deltas."""
    return dense_result(stacked(deltas).mean(0))


def dense_result(merged: Tensor) -> MergeResult:
    """A merged delta (m, n) as one part."""
    return MergeResult({"merged": merged.contiguous()}, merged=Dense("merged"))


def product_result(left: Tensor, right: Tensor) -> MergeResult:
    """The merged delta left @ right.T as factors where these are smaller, else as one part.

    Args:
        left: (m, r) float.
        right: (n, r), same dtype.
    """
    (m, rank), n = left.shape, right.shape[0]
    if rank * (m + n) >= m * n or rank == 0 or left.dtype == torch.float64:
        return dense_result(left @ right.T)
    parts = {"coeff_left": left.T.contiguous(), "coeff_right": right.T.contiguous()}
    return MergeResult(parts, merged=LowRank("coeff_left", "coeff_right", FACTOR_LIMBS))


def dense_tasks(deltas: Tensor) -> MergeResult:
    """What each task has, stored whole (N, rows, columns); the merge is their sum."""
    once = (1.0,) * len(deltas)
    parts = {"coeff": stacked(deltas).contiguous()}
    return MergeResult(parts, merged=Weighted(once, Dense("coeff")), task=Dense("coeff"))


def factor_parts(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Left (m, k_t) and right (n, k_t) factors of each task as parts of one rank.

    Returns:
        coeff_left (N, k, m) and coeff_right (N, k, n), padded with zeros to the largest k.
    """
    rank = max(left.shape[1] for left, _ in pairs)
    return {
        "coeff_left": torch.stack([_padded(left, rank) for left, _ in pairs]),
        "coeff_right": torch.stack([_padded(right, rank) for _, right in pairs]),
    }


def _padded(factor: Tensor, rank: int) -> Tensor:
    rows = factor.new_zeros(rank, factor.shape[0])
    rows[: factor.shape[1]] = factor.T
    return rows
