"""What `auto` reaches at the bytes of every other way: between its own points, by interpolation."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rate_distortion.measure import Row

QUALITY, LEAST_ERROR = "auto", "auto, least error"
OWN = (QUALITY, LEAST_ERROR, "max")
LOSSLESS = 1e-9
"""Relative error from which something was lost."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of another series beside `auto` at its bytes.

    Args:
        row: of the other series.
        error: relative error of `auto` with the objective `error` there; None beyond its points.
        drop: mean drop of `auto` there; None beyond its points, or if not scored.
    """

    row: Row
    error: float | None
    drop: float | None


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Every row that loses something and is not `auto`'s own."""
    ours = {series: _sorted(rows, series) for series in (QUALITY, LEAST_ERROR)}
    return [
        Comparison(
            row,
            _at(ours[LEAST_ERROR], row.bits, lambda r: math.log(r.relative_error), math.exp),
            _at([r for r in ours[QUALITY] if r.drops], row.bits, _drop, float),
        )
        for row in rows
        if row.series not in OWN and row.relative_error > LOSSLESS
    ]


def _sorted(rows: Sequence[Row], series: str) -> list[Row]:
    return sorted((row for row in rows if row.series == series), key=lambda row: row.bits)


def _drop(row: Row) -> float:
    assert row.mean_drop is not None  # rows without scores are left out
    return row.mean_drop


def _at(
    rows: Sequence[Row],
    bits: float,
    value: Callable[[Row], float],
    back: Callable[[float], float],
) -> float | None:
    """A value between the two rows on either side, along log bits; None outside."""
    place = bisect([row.bits for row in rows], bits)
    if not 0 < place < len(rows):
        return None
    low, high = rows[place - 1], rows[place]
    share = math.log(bits / low.bits) / math.log(high.bits / low.bits)
    return back(value(low) + share * (value(high) - value(low)))
