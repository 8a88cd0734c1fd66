"""Optimal Brain Surgeon on a matrix: what removing an entry costs, and how to make up for it.

With H the Gram matrix of the layer's inputs, removing entry (i, j) while the others of its row move
to compensate costs w_ij**2 / [H^-1]_jj / 2. Column by column from left to right, the inverse is
that of the columns still to come; its diagonal is that of the squared upper Cholesky factor R of
H^-1 = R^T R, and compensation is a rank-one update by a row of R.
Source: IST-DASLab/sparsegpt, sparsegpt.py (arXiv 2301.00774); methods.md §16. Any factor on H
cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svd_hybrid.numerics.lowrank_sparse import smallest

Selection = Callable[[Tensor, Tensor], Tensor]
"""(values, scores), both (m, columns) → which entries are pruned, bool."""


@dataclass(frozen=True, slots=True)
class Hessian:
    """A damped Gram matrix, ready for scoring and pruning.

    Args:
        diagonal: (n,) of H before damping; inverse_diagonal: (n,) of the damped inverse.
        factor: (n, n) upper triangular R with R^T R = damped inverse.
        dead: (n,) bool, inputs that were always 0.
    """

    diagonal: Tensor
    inverse_diagonal: Tensor
    factor: Tensor
    dead: Tensor


def prepared(gram: Tensor, damping: float) -> Hessian:
    """The Gram matrix with dead inputs repaired, damped and inverted; the input stays as it is.

    Args:
        gram: (n, n), or (n,) for a diagonal one; float.
        damping: share of the mean diagonal that is added to it, > 0 (`percdamp`).

    Returns:
        Everything in float64.
    """
    h = (torch.diag(gram) if gram.ndim == 1 else gram).to(torch.float64).clone()
    diagonal = h.diagonal().clone()
    dead = diagonal == 0
    h.diagonal()[dead] = 1.0
    h.diagonal().add_(damping * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    factor = torch.linalg.cholesky(inverse).T.contiguous()
    return Hessian(diagonal, inverse.diagonal().clone(), factor, dead)


def scores(weights: Tensor, score: str, hessian: Hessian | None) -> Tensor:
    """What each entry (m, n) is worth, float64; a dead input's entries are worth nothing.

    Args:
        weights: (m, n).
        score: `magnitude`, `wanda` (times the root of H_jj), `obs`, `obs_seq` (by the inverse of
            the columns from j on), or `obs_squared` (the inverse diagonal squared: a known mistake
            of Shahriar-Ferdoush/test-2).
        hessian: None is allowed for `magnitude`.
    """
    wide = weights.to(torch.float64)
    if score == "magnitude" or hessian is None:
        return wide.abs()
    if score == "wanda":
        return wide.abs() * hessian.diagonal.sqrt()
    if score == "obs_squared":
        return wide.square() / (hessian.inverse_diagonal + 1e-10).square()
    divisor = hessian.factor.diagonal().square() if score == "obs_seq" else hessian.inverse_diagonal
    return (wide.square() / divisor).masked_fill(hessian.dead, 0.0)


def below_threshold(share: float) -> Selection:
    """Prune what is at most the score at index floor(entries * share): the rule of SparseGPT.

    One entry more than the share, and all that tie with it.
    """

    def select(values: Tensor, scored: Tensor) -> Tensor:
        rank = min(int(scored.numel() * share) + 1, scored.numel())
        return scored <= scored.flatten().kthvalue(rank).values

    return select


def within_groups(keep: int, group: int) -> Selection:
    """Prune all but the `keep` best of every `group` consecutive columns, row by row."""

    def select(values: Tensor, scored: Tensor) -> Tensor:
        return torch.cat(
            [smallest(part, part.shape[1] - keep) for part in torch.split(scored, group, 1)], dim=1
        )

    return select


def prune(
    weights: Tensor,
    hessian: Hessian,
    select: Selection | Tensor,
    block: int,
    *,
    rounding: Callable[[Tensor], Tensor] | None = None,
    group: int = 0,
    zero_dead: bool = True,
) -> Tensor:
    """Prune column by column; later columns make up for what earlier ones lose.

    Args:
        weights: (m, n) float.
        hessian: of the inputs.
        select: which entries of a block go, asked when earlier blocks are done; or all of them
            at once, a bool (m, n).
        block: columns per block, >= 1.
        rounding: a column (m,) → what can be stored of it; the error is made up for as well.
        group: ask `select` anew every so many columns of a block instead (N:M patterns).
        zero_dead: weights of dead inputs become 0.

    Returns:
        (m, n), dtype of `weights`; pruned entries are 0.
    """
    w = weights.to(torch.float64).clone()
    if zero_dead:
        w[:, hessian.dead] = 0.0
    n = w.shape[1]
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = torch.zeros(len(w), stop - start, dtype=torch.float64)
        for first in range(start, stop, group or block):
            last = min(first + (group or block), stop)
            pruned = _chosen(select, w, hessian, first, last)
            for j in range(first, last):
                kept = w[:, j].masked_fill(pruned[:, j - first], 0.0)
                kept = kept if rounding is None else rounding(kept)
                errors[:, j - start] = (w[:, j] - kept) / hessian.factor[j, j]
                w[:, j + 1 : stop] -= torch.outer(
                    errors[:, j - start], hessian.factor[j, j + 1 : stop]
                )
                w[:, j] = kept
        w[:, stop:] -= errors @ hessian.factor[start:stop, stop:]
    return w.to(weights.dtype)


def _chosen(
    select: Selection | Tensor, w: Tensor, hessian: Hessian, first: int, last: int
) -> Tensor:
    """Entries to prune in columns first:last of the current values, bool."""
    if isinstance(select, Tensor):
        return select[:, first:last]
    values = w[:, first:last]
    divisor = hessian.factor.diagonal()[first:last].square()
    return select(values, values.square() / divisor)


@dataclass(frozen=True, slots=True)
class RowGrid:
    """An asymmetric uniform grid per row that contains 0, found on the dense matrix.

    Source: IST-DASLab/sparsegpt, quant.py.

    Args:
        scale: (m,) step; zero: (m,) code of 0; levels: codes run from 0 to this.
    """

    scale: Tensor
    zero: Tensor
    levels: int

    @staticmethod
    def of(weights: Tensor, bits: int) -> RowGrid:
        """The grid that spans each row of (m, n) and 0."""
        levels = 2**bits - 1
        low = weights.double().amin(1).clamp_max(0.0)
        high = weights.double().amax(1).clamp_min(0.0)
        empty = low == high
        low, high = low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)
        scale = (high - low) / levels
        return RowGrid(scale, (-low / scale).round(), levels)

    def __call__(self, column: Tensor) -> Tensor:
        """The nearest values on the grid to a column (m,)."""
        codes = ((column / self.scale).round() + self.zero).clamp(0, self.levels)
        return (codes - self.zero) * self.scale


def keep_probabilities(scored: Tensor, density: float) -> Tensor:
    """Chances min(1, c * sqrt(score)) whose mean is the density.

    They are 1 wherever a score is not 0 if these are too few.

    Args:
        scored: any shape, >= 0.
        density: (0, 1].

    Returns:
        float64, same shape.
    """
    size = scored.to(torch.float64).sqrt()
    wanted = density * size.numel()
    positive = size[size > 0].sort().values.flip(0)
    if len(positive) <= wanted:
        return (size > 0).to(torch.float64)
    # With the j largest capped at 1 the others share what is left: c = (wanted - j) / their sum.
    rest = positive.flip(0).cumsum(0).flip(0)
    capped = torch.arange(len(positive), dtype=torch.float64)
    factor = (wanted - capped) / rest
    right = int((factor * positive <= 1).to(torch.int8).argmax())  # the first j that caps no more
    return (size * factor[right]).clamp_max(1.0)
