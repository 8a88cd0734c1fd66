"""What the presets share: the scalars of a region as rows, and the parts that hold them.

Without a mask the rows are those of the matrix. Under a mask the selected scalars are one long
row, and nothing else is coded: a group or a scale then spans what is next to each other in it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import AnyCodec, RawCodec, ResidualAffineCodec
from svd_hybrid.compress.profiles.base import (
    EncodedStack,
    decode_part,
    encode_part,
    join_slices,
)
from svd_hybrid.delta.expr import Dense, Expr, LowRank, Sum

ONE = "one"
"""A part with the number 1: a row of scalars times it is the column that `Scattered` takes."""


class RegionParts:
    """The parts of one region, and the terms that add up to a task's delta.

    Args:
        prefix: put before the name of every part.
        flat: whether parts hold the selected scalars in a row, (1, D), instead of the matrix.
    """

    def __init__(self, prefix: str, *, flat: bool) -> None:
        self.prefix = prefix
        self.flat = flat
        self.parts: dict[str, EncodedPart] = {}
        self.terms: list[Expr] = []

    def keep(self, name: str, codec: AnyCodec, slices: Iterable[Tensor]) -> str:
        """A part with a slice per task, each (R, C), coded one at a time; returns its full name."""
        coded = [encode_part(codec, rows.unsqueeze(0)) for rows in slices]
        self.parts[self.prefix + name] = join_slices(coded)
        return self.prefix + name

    def add(self, name: str, codec: AnyCodec, slices: Iterable[Tensor]) -> None:
        """As `keep`, and the term that reads the part."""
        self._add_term(self.keep(name, codec, slices))

    def add_shared(self, name: str, codec: AnyCodec, rows: Tensor) -> Tensor:
        """A term that is the same for every task; returns it as a reader will see it."""
        part = self.parts[self.prefix + name] = encode_part(codec, rows)
        self._add_term(self.prefix + name)
        return decode_part(part, None)

    def _add_term(self, full: str) -> None:
        if not self.flat:
            self.terms.append(Dense(full))
            return
        one = self.prefix + ONE
        if one not in self.parts:
            self.parts[one] = encode_part(RawCodec(), torch.ones(1, 1))
        self.terms.append(LowRank(full, one))

    def stored(self, scalars: int, *, directions: int = 0, energy: float = 1.0) -> EncodedStack:
        """The region, once all terms are there; `energy` is the share the directions hold."""
        return EncodedStack(
            self.parts,
            self.terms[0] if len(self.terms) == 1 else Sum(tuple(self.terms)),
            flat=self.flat,
            rank=directions,
            directions=directions,
            scalars=scalars,
            energy_retained=energy,
        )


def selected_rows(stack: Tensor, mask: Tensor | None) -> Tensor:
    """(N, m, n) without a mask; with one the D selected scalars, (N, 1, D)."""
    return stack if mask is None else stack[:, mask].unsqueeze(1)


def store_each(
    codec: AnyCodec, stack: Tensor, mask: Tensor | None, prefix: str
) -> EncodedStack | None:
    """Every task's scalars in one part of that codec; None when all are zero."""
    rows = selected_rows(stack, mask)
    if not bool(rows.any()):
        return None
    region = RegionParts(prefix, flat=mask is not None)
    region.add("coeff", codec, rows)
    return region.stored(rows[0].numel())


def is_dense(stack: Tensor, dense_below: int) -> bool:
    """Whether a tensor is one that the papers leave as it is: a vector, or a small matrix.

    Args:
        stack: (N, m, n); a vector has one row.
        dense_below: scalars of the smallest matrix that is not small.
    """
    _, m, n = stack.shape
    return m == 1 or m * n < dense_below


def affine_codec(bits: int, group_size: int) -> ResidualAffineCodec:
    """One min-max quantiser; a whole slice has one float32 step, groups have float16 ones."""
    return ResidualAffineCodec(bits, 1, group_size, "F16" if group_size else "F32")
