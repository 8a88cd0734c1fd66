"""Whether parts have the shapes that their expressions need, told from the manifest alone.

A reader that knows this decodes nothing larger than the tensors of the base call for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias, assert_never

from svd_hybrid.artifact.records import PartRecord
from svd_hybrid.delta.expr import (
    Dense,
    Exact,
    Expr,
    Flat,
    LowRank,
    Masked,
    Scale,
    Scattered,
    Sum,
    Tucker,
    Weighted,
)
from svd_hybrid.errors import ArtifactError

Wanted: TypeAlias = tuple[int | None, int]
"""Rows and columns; rows are None for the scalars that a mask selects, whose number it knows."""


def check_shapes(
    expr: Expr, parts: Mapping[str, PartRecord], wanted: Wanted, most_rows: int
) -> None:
    """Compare the shapes of parts with what an expression makes of them.

    Args:
        expr: over the names of `parts`, all of which are there.
        parts: part records by name.
        wanted: shape of the result.
        most_rows: that it may have where `wanted` leaves it open.

    Raises:
        ArtifactError: a part does not fit.
    """
    match expr:
        case Dense(part) | Exact(part):
            _require(_is(parts[part], wanted, most_rows), f"part {part!r}", parts[part])
        case LowRank(left, right):
            a, b = parts[left], parts[right]
            fits = a.rows == b.rows and b.columns == wanted[1]
            fits = fits and _fits(a.columns, wanted[0], most_rows)
            _require(fits, f"product of parts {left!r} and {right!r}", a, b)
        case Tucker(left, core, right):
            a, c, b = parts[left], parts[core], parts[right]
            fits = (c.rows, c.columns, b.columns) == (a.rows, b.rows, wanted[1])
            fits = fits and _fits(a.columns, wanted[0], most_rows)
            _require(fits, f"product of parts {left!r}, {core!r} and {right!r}", a, c, b)
        case Masked(mask, inner):
            _require(_is(parts[mask], wanted, most_rows), f"mask {mask!r}", parts[mask])
            check_shapes(inner, parts, wanted, most_rows)
        case Scattered(mask, inner):
            _require(_is(parts[mask], wanted, most_rows), f"mask {mask!r}", parts[mask])
            check_shapes(inner, parts, (None, 1), most_rows * wanted[1])
        case Flat(inner):
            rows = None if wanted[0] is None else math.prod((wanted[0], wanted[1]))
            check_shapes(inner, parts, (rows, 1), most_rows * wanted[1])
        case Scale(_, inner) | Weighted(_, inner):
            check_shapes(inner, parts, wanted, most_rows)
        case Sum(terms):
            for term in terms:
                check_shapes(term, parts, wanted, most_rows)
        case _ as unreachable:
            assert_never(unreachable)


def _is(part: PartRecord, wanted: Wanted, most_rows: int) -> bool:
    return _fits(part.rows, wanted[0], most_rows) and part.columns == wanted[1]


def _fits(rows: int, wanted: int | None, most_rows: int) -> bool:
    return rows <= most_rows if wanted is None else rows == wanted


def _require(fits: bool, what: str, *parts: PartRecord) -> None:
    if not fits:
        shapes = " and ".join(f"{part.rows} x {part.columns}" for part in parts)
        raise ArtifactError(f"{what} does not fit the tensor: {shapes}")
