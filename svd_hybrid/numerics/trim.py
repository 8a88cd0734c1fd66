"""Trimming: which scalars of a delta survive.

A rule turns a vector into a cut, "larger than this, and so many of those that are equal", so that
a cut through tied magnitudes is exact and favours the lower flat index. Magnitudes of float64
deltas are ranked by their float32 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.numerics.magnitudes import Level, kth_largest, levels_of_stream

ALL_TIES = 2**63 - 1
ROUNDING = 1e-9
"""Relative error of sums of squares, in scalars at a level; far below one scalar."""


@dataclass(frozen=True, slots=True)
class Trim:
    """How one vector is trimmed.

    Args:
        rule: `exact`: the floor(d n) largest. `threshold`: >= the (floor(d n) + 1)-th largest.
            `threshold-k`: >= the floor(d n)-th largest. `threshold-drop`: >= the
            floor((1 - d) n)-th smallest. `above-drop`: > that one. `norm-share`: the fewest
            largest whose squares sum to `amount` of the total; `norm-share-last`: and the last
            scalar of all, by a fault of ties-merging. `std`: further than `amount` unbiased
            standard deviations from the mean.
        amount: density d, share of the squared norm, or number of deviations.
    """

    rule: str
    amount: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Keep |x - centre| > level, and the first `ties` scalars where it equals the level.

    With `keeps_last` also the last scalar of the vector.
    """

    level: float
    ties: int = 0
    centre: float = 0.0
    keeps_last: bool = False

    @property
    def splits_ties(self) -> bool:
        """Whether some, but not all, of the scalars at the level are kept."""
        return 0 < self.ties < ALL_TIES


SHARES = ("norm-share", "norm-share-last")
KEEP_ALL = Cut(-1.0)
DROP_ALL = Cut(math.inf)


def cut_of(values: Tensor, trim: Trim) -> Cut:
    """The cut of one vector (D,)."""
    if trim.rule in (*SHARES, "std"):
        return cuts_of_stream([(values[None], None)], [trim], values.numel())[0]
    rank = _rank(trim, values.numel())
    return rank if isinstance(rank, Cut) else _at(kth_largest(values, rank), trim.rule)


def cuts_of_stream(
    stream: Iterable[tuple[Tensor, Any]], trims: Sequence[Trim], scalars: int
) -> list[Cut]:
    """The cut of each task over all tensors as one vector, in the order of the stream.

    Args:
        stream: stacks (N, *shape); read twice, or not at all when nothing is trimmed.
        trims: one per task, all of one rule.
        scalars: of one task's deltas over the whole stream.
    """
    if trims[0].rule == "std":
        return _deviations(stream, trims, scalars)
    if trims[0].rule in SHARES:
        if all(trim.amount >= 1 for trim in trims):
            return [KEEP_ALL] * len(trims)
        levels = levels_of_stream(stream, [trim.amount for trim in trims], by_mass=True)
        return [_by_share(level, trim) for level, trim in zip(levels, trims, strict=True)]
    ranks = [_rank(trim, scalars) for trim in trims]
    if all(isinstance(rank, Cut) for rank in ranks):
        return [rank for rank in ranks if isinstance(rank, Cut)]
    levels = levels_of_stream(stream, [1 if isinstance(rank, Cut) else rank for rank in ranks])
    return [
        rank if isinstance(rank, Cut) else _at(level, trim.rule)
        for level, rank, trim in zip(levels, ranks, trims, strict=True)
    ]


def _rank(trim: Trim, scalars: int) -> int | Cut:
    """The rank (1 is the largest) whose magnitude is the level, or a cut that needs none."""
    if trim.amount >= 1 or not scalars:
        return KEEP_ALL
    kept = int(scalars * trim.amount)
    dropped = int(scalars * round(1 - trim.amount, 12))  # 1 - 0.71 is meant to be 0.29
    rank = {
        "exact": kept,
        "threshold": kept + 1,
        "threshold-k": kept,
        "threshold-drop": scalars - dropped + 1,
        "above-drop": scalars - dropped + 1,
    }[trim.rule]
    return DROP_ALL if rank < 1 else KEEP_ALL if rank > scalars else rank


def _at(level: Level, rule: str) -> Cut:
    if rule == "above-drop":
        return Cut(level.value)
    return _cut_at(level, int(level.missing) if rule == "exact" else ALL_TIES)


def _by_share(level: Level, trim: Trim) -> Cut:
    if trim.amount >= 1:
        return KEEP_ALL
    cut = DROP_ALL
    if level.value:
        cut = _cut_at(level, max(1, math.ceil(level.missing / level.value**2 - ROUNDING)))
    return replace(cut, keeps_last=trim.rule == "norm-share-last")


def _cut_at(level: Level, ties: int) -> Cut:
    return Cut(level.value, ties if ties < level.equal else ALL_TIES)


def _deviations(
    stream: Iterable[tuple[Tensor, Any]], trims: Sequence[Trim], scalars: int
) -> list[Cut]:
    """Cuts at so many standard deviations from the mean; two passes, so nothing cancels."""
    if scalars < 2:
        return [DROP_ALL] * len(trims)
    means = [0.0] * len(trims)
    squares = [0.0] * len(trims)
    for deltas, _ in stream:
        for task, delta in enumerate(deltas):
            means[task] += float(delta.sum(dtype=torch.float64)) / scalars
    for deltas, _ in stream:
        for task, delta in enumerate(deltas):
            squares[task] += float((delta.double() - means[task]).square_().sum())
    return [
        Cut(float(np.float32(trim.amount * math.sqrt(square / (scalars - 1)))), 0, mean)
        for trim, square, mean in zip(trims, squares, means, strict=True)
    ]


def kept(values: Tensor, cut: Cut) -> Tensor:
    """Which scalars of a vector (D,) survive: bool (D,)."""
    size = (values - cut.centre if cut.centre else values).abs().to(torch.float32)
    keep = size > cut.level
    if cut.ties:
        tied = torch.nonzero(size == cut.level)[:, 0]
        keep[tied[: cut.ties]] = True
    if cut.keeps_last:
        keep[-1:] = True
    return keep


def kept_of_rows(matrix: Tensor, trim: Trim) -> Tensor:
    """Which scalars survive where each row is trimmed as a vector of its own: bool (R, C)."""
    if trim.rule in (*SHARES, "std"):
        return torch.stack([kept(row, cut_of(row, trim)) for row in matrix])
    columns = matrix.shape[1]
    rank = _rank(trim, columns)
    if isinstance(rank, Cut):
        return torch.full(matrix.shape, rank == KEEP_ALL)
    sizes = np.abs(matrix.numpy()).astype(np.float32, copy=False)
    levels = np.partition(sizes, columns - rank, axis=1)[:, columns - rank, None]
    keep = sizes > levels
    if trim.rule != "above-drop":
        tied = sizes == levels
        if trim.rule == "exact":
            tied &= tied.cumsum(1) <= rank - keep.sum(1, keepdims=True)
        keep |= tied
    return torch.from_numpy(keep)


def ties_at(values: Tensor, cut: Cut) -> int:
    """How many scalars of a vector (D,) are exactly at the level."""
    return int((values.abs().to(torch.float32) == cut.level).sum())
