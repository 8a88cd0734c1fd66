"""A matrix as low rank plus sparse, nearest under input weights, by alternating projections.

Minimises ||(W - L - S) diag(d)||_F with rank(L) <= k and S sparse, d being the root of the inputs'
second moments. Starting from S = 0 each round takes the best L for S, then the best S for L.
Source: OATS (stephenqz/OATS), Scale-SVD (ArkNightmaster/AwRank-Merging); methods.md §14.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svd_hybrid.numerics.spectral import Triplets, leading


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a matrix is kept, and how.

    Args:
        kept: share of the dense parameter count, (0, 1]; with `pattern` it follows from that.
        rank_ratio: share of that budget for the low-rank part, [0, 1].
        scope: `row`: each row of the sparse part keeps as many entries; `global`: the matrix.
        pattern: (N, M): N of every M consecutive columns of a row instead; None without.
        spare: directions the low-rank part always leaves out (1 in Iso-IASAD as published).
    """

    kept: float
    rank_ratio: float
    scope: str = "row"
    pattern: tuple[int, int] | None = None
    spare: int = 0

    def rank(self, m: int, n: int) -> int:
        """Rank of the low-rank part.

        >>> Budget(0.9, 0.75).rank(3, 4), Budget(0.9, 0.75).rank(768, 768)
        (1, 259)
        """
        kept = self.kept
        if self.pattern is not None:
            kept = self.pattern[0] / self.pattern[1] / (1 - self.rank_ratio)
        return max(1, min(int(self.rank_ratio * kept * m * n / (m + n)), min(m, n) - self.spare))

    @property
    def zeros(self) -> float:
        """Share of the sparse part that is zero."""
        return 1 - (1 - self.rank_ratio) * self.kept


@dataclass(frozen=True, slots=True)
class LowRankSparse:
    """W ~ left @ right.T + sparse: left (m, k), right (n, k), sparse (m, n)."""

    left: Tensor
    right: Tensor
    sparse: Tensor

    @property
    def whole(self) -> Tensor:
        """(m, n)."""
        return self.left @ self.right.T + self.sparse

    @property
    def scalars(self) -> int:
        """Numbers that have to be stored, without where the sparse ones are."""
        return self.left.numel() + self.right.numel() + int(self.sparse.count_nonzero())


def decompose(
    matrix: Tensor, scale: Tensor | None, budget: Budget, rounds: int, *, refit: bool
) -> LowRankSparse:
    """The alternating decomposition.

    Args:
        matrix: (m, n) float.
        scale: (n,) positive weights d of the columns; None for ones.
        budget: sizes of the parts.
        rounds: low-rank and sparse updates, >= 1.
        refit: update the low-rank part once more at the end; never worse. The published Scale-SVD
            leaves that out, Iso-IASAD does it.

    Returns:
        Factors with the roots of the singular values in both, dtype of `matrix`.
    """
    weighted = matrix if scale is None else matrix * scale
    rank = budget.rank(*matrix.shape)
    sparse = torch.zeros_like(weighted)
    for _ in range(rounds):
        low = leading(weighted - sparse, rank, 0.0)
        sparse = sparsified(weighted - _product(low), budget)
    if refit:
        low = leading(weighted - sparse, rank, 0.0)
    root = low.s.sqrt()
    left, right = low.u * root, low.v * root
    if scale is None:
        return LowRankSparse(left, right, sparse)
    return LowRankSparse(left, right / scale[:, None], sparse / scale)


def sparsified(matrix: Tensor, budget: Budget) -> Tensor:
    """The matrix (m, n) with its smallest entries zeroed; of equal ones the first goes first."""
    m, n = matrix.shape
    if budget.pattern is not None:
        keep, group = budget.pattern
        padding = -n % group
        padded = torch.nn.functional.pad(matrix.abs(), (0, padding), value=-1.0)
        small = smallest(padded.reshape(-1, group), group - keep)
        return matrix.masked_fill(small.reshape(m, n + padding)[:, :n], 0.0)
    if budget.scope == "row":
        return matrix.masked_fill(smallest(matrix.abs(), int(n * budget.zeros)), 0.0)
    small = smallest(matrix.abs().reshape(1, -1), int(m * n * budget.zeros))
    return matrix.masked_fill(small.reshape(m, n), 0.0)


def smallest(values: Tensor, count: int) -> Tensor:
    """Where the `count` smallest of each row are; of equal ones those further left.

    >>> smallest(torch.tensor([[2.0, 1.0, 3.0, 2.0]]), 2).tolist()
    [[True, True, False, False]]
    """
    if count <= 0 or not values.numel():
        return torch.zeros_like(values, dtype=torch.bool)
    edge = values.kthvalue(count, dim=1, keepdim=True).values
    below = values < edge
    equal = values == edge
    missing = count - below.sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) > missing).any()):
        equal &= equal.cumsum(1) <= missing
    return below | equal


def weighted_error(matrix: Tensor, found: LowRankSparse, scale: Tensor | None) -> float:
    """Squared ||(matrix - found) diag(scale)||_F."""
    rest = (matrix - found.whole).double()
    return float((rest if scale is None else rest * scale).square().sum())


def _product(low: Triplets) -> Tensor:
    return (low.u * low.s) @ low.v.T
