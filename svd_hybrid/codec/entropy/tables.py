"""Frequency tables of an artifact: one per class, symmetric, out of 4096.

A table is an escape frequency (at least 1), frequencies of the magnitudes 1 … m (each sign), and
0 takes the rest. Frequencies lie on a grid of four significant bits: it costs 0.02 % and makes a
stored table five bytes long. A class too rare to repay them keeps its built-in table.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import (
    BY_MAGNITUDE,
    CLASSES,
    ESCAPE,
    LARGEST,
    SYMBOLS,
    Ints,
    class_shift,
)
from svd_hybrid.codec.entropy.bitstream import BitReader, pack, to_bits, unzigzag, zigzag
from svd_hybrid.codec.entropy.defaults import DEFAULT_ESCAPE, default_magnitudes
from svd_hybrid.codec.entropy.escapes import ESCAPE_BITS, EXPONENT_BITS
from svd_hybrid.codec.entropy.grid import grid_index, grid_value, nearest_index
from svd_hybrid.codec.entropy.rans import TOTAL, Table
from svd_hybrid.errors import ArtifactError

Row = tuple[int, ...]  # escape, then magnitudes 1 … m

PRIOR = 8.0  # numbers of built-in statistics mixed into each class
TOTAL_LOG = float(np.log2(TOTAL))
NEW_ESCAPE_BITS = float(EXPONENT_BITS[6]) + 6.0  # a number beyond LARGEST, about


def default_row(c: int) -> Row:
    """The built-in table of class c."""
    return DEFAULT_ESCAPE, *default_magnitudes(c)


def expand(row: Row) -> Ints:
    """(SYMBOLS,) int64 frequencies; 0 takes what the others leave."""
    freqs = np.zeros(SYMBOLS, np.int64)
    magnitudes = np.arange(1, len(row))
    freqs[LARGEST + magnitudes] = freqs[LARGEST - magnitudes] = row[1:]
    freqs[ESCAPE] = row[0]
    freqs[LARGEST] = TOTAL - freqs.sum()
    return freqs


def price(row: Row, c: int) -> NDArray[np.float64]:
    """(SYMBOLS,) bits of each symbol of class c, raw low bits and escapes included."""
    freqs = expand(row)
    escape = TOTAL_LOG - np.log2(freqs[ESCAPE])
    bits = np.empty(SYMBOLS)
    bits[:ESCAPE] = escape + ESCAPE_BITS
    held = freqs[:ESCAPE] > 0
    bits[:ESCAPE][held] = TOTAL_LOG - np.log2(freqs[:ESCAPE][held])
    bits[ESCAPE] = escape + NEW_ESCAPE_BITS
    return bits + class_shift(c)


class Tables:
    """The tables of all classes; immutable.

    Args:
        rows: for each class 1 … CLASSES - 1 its row, or None for the built-in one.

    Raises:
        ArtifactError: a row leaves nothing for 0, or an escape frequency is 0.
    """

    DEFAULT: ClassVar[Tables]

    def __init__(self, rows: tuple[Row | None, ...]) -> None:
        if len(rows) != CLASSES - 1:
            raise ArtifactError(f"frequency tables for {len(rows)} classes, not {CLASSES - 1}")
        for c, row in enumerate(rows, 1):
            if row is not None and (row[0] < 1 or row[0] + 2 * sum(row[1:]) >= TOTAL):
                raise ArtifactError(f"the frequency table of class {c} does not add up to {TOTAL}")
        self.rows = rows
        self._tables: dict[int, Table] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tables) and self.rows == other.rows

    def __hash__(self) -> int:
        return hash(self.rows)

    def row(self, c: int) -> Row:
        """Escape and magnitudes of class c."""
        return self.rows[c - 1] or default_row(c)

    def table(self, c: int) -> Table:
        """The coder's table of class c, 1 … CLASSES - 1."""
        if c not in self._tables:
            self._tables[c] = Table(expand(self.row(c)), BY_MAGNITUDE)
        return self._tables[c]

    @cached_property
    def bits(self) -> NDArray[np.float64]:
        """(CLASSES, SYMBOLS) float64: what a number costs, by class and symbol.

        Symbol k + LARGEST is the shifted value k, symbol ESCAPE one beyond LARGEST (on average).
        Class 0 costs 0 for the value 0 and infinity for others.
        """
        bits = np.full((CLASSES, SYMBOLS), np.inf)
        bits[0, LARGEST] = 0.0
        for c in range(1, CLASSES):
            bits[c] = price(self.row(c), c)
        return bits

    def escape_symbol_bits(self, c: int) -> float:
        """Bits of an escape of class c without what says which number it is."""
        return float(TOTAL_LOG - np.log2(self.row(c)[0]) + class_shift(c))

    @classmethod
    def fit(cls, counts: Ints) -> Tables:
        """Tables for numbers counted by `count`, where they are worth their bytes.

        Args:
            counts: (CLASSES, SYMBOLS) int64.
        """
        rows: list[Row | None] = []
        for c in range(1, CLASSES):
            row = fit_row(counts[c], c)
            saved = counts[c] @ (price(default_row(c), c) - price(row, c))
            rows.append(row if saved > len(to_fields(row, c)) - 1 else None)
        return cls(tuple(rows))

    def to_bytes(self) -> bytes:
        """The stored form: one bit per class, and the fields of `to_fields` where it is 1."""
        unset = np.zeros(1, np.uint8)
        rows = enumerate(self.rows, 1)
        fields = [unset if row is None else to_fields(row, c) for c, row in rows]
        return pack(np.concatenate(fields))

    @classmethod
    def from_bytes(cls, data: bytes) -> Tables:
        """Read `to_bytes`.

        Raises:
            ArtifactError: too short, too long, or not frequency tables.
        """
        reader = BitReader(data)
        rows = tuple(from_fields(reader, c) for c in range(1, CLASSES))
        reader.close()
        return cls(rows)


def fit_row(counts: Ints, c: int) -> Row:
    """The grid frequencies nearest to the counts of one class (SYMBOLS,)."""
    prior = expand(default_row(c)) * (PRIOR / TOTAL)
    weights = counts + prior
    folded = weights[LARGEST + 1 : ESCAPE] + weights[LARGEST - 1 :: -1]
    share = TOTAL / weights.sum()
    wanted = folded * share / 2
    kept = [nearest_index(value) if value > 0.35 else 0 for value in wanted.tolist()]
    while kept and kept[-1] == 0:
        kept.pop()
    lost = (
        weights[ESCAPE] + folded[[i for i in range(LARGEST) if i >= len(kept) or not kept[i]]].sum()
    )
    escape = max(1, nearest_index(float(lost) * share))
    indices = [escape, *kept]
    while (values := [grid_value(i) for i in indices])[0] + 2 * sum(values[1:]) >= TOTAL:
        indices[int(np.argmax(indices))] -= 1
    return tuple(grid_value(i) for i in indices)


def predictions(c: int) -> list[int]:
    """Grid steps expected from one stored field to the next: escape, then each magnitude."""
    indices = [grid_index(value) for value in default_magnitudes(c)]
    steps = [after - before for before, after in pairwise(indices)]
    return [1, indices[0], *steps] + [-3] * (LARGEST - len(indices))


def to_fields(row: Row, c: int) -> NDArray[np.uint8]:
    """Bits of one stored table: 1, m in five, then 1 + m grid steps off the prediction.

    A step is folded by zigzag and written as v // 2 ones, a zero, and the low bit of v.
    """
    indices = [grid_index(value) for value in row]
    fields = [np.ones(1, np.uint8), to_bits(np.array([len(row) - 1]), 5)]
    before = 0
    for place, (index, expected) in enumerate(zip(indices, predictions(c), strict=False)):
        folded = int(zigzag(np.array(index - before - expected)))
        fields.append(np.array([1] * (folded // 2) + [0, folded & 1], np.uint8))
        before = index if place else 0
    return np.concatenate(fields)


def from_fields(reader: BitReader, c: int) -> Row | None:
    """Undo `to_fields`."""
    if not reader.number(1):
        return None
    count = reader.number(5) + 1
    row, before = [], 0
    for place, expected in enumerate(predictions(c)[:count]):
        ones = 0
        while reader.number(1):
            ones += 1
        step = int(unzigzag(np.array(2 * ones + reader.number(1))))
        index = before + expected + step
        row.append(grid_value(index))
        before = index if place else 0
    return tuple(row)


Tables.DEFAULT = Tables((None,) * (CLASSES - 1))
