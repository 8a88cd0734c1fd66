"""The encoder's choice of classes: least bits.

Every row is priced in every class from a histogram of its numbers, so a choice is an exact
minimum and not an estimate of scale. Neighbouring rows are then drawn together where a step costs
more than it saves. Column offsets come from a few alternations and stay if the bits say so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import (
    CLASSES,
    LARGEST,
    LAST_UNSHIFTED,
    UNIT_CLASS,
    Ints,
    split,
)
from svd_hybrid.codec.entropy.class_sources import class_bits
from svd_hybrid.codec.entropy.classes import FARTHEST_OFFSET, ZERO_COLUMN, Classes
from svd_hybrid.codec.entropy.lines import FARTHEST, choose_law, law_bits, line_symbols

Matrix = NDArray[np.int32]
Floats = NDArray[np.float64]

NEAR = 3  # classes tried on either side of the one the rms names, for rows with large numbers
ROUNDS = 3
BLOCK = 64  # rows counted at once, so that they stay in the cache
TINY = np.float32(1e-9)
NEVER = 1e18  # bits; finite, so that differences stay numbers


def classify(matrix: Matrix) -> Classes:
    """The classes `encode` will choose.

    Args:
        matrix: (rows, columns) int32.
    """
    rows, columns = matrix.shape
    zero: NDArray[np.bool_] = ~(matrix != 0).any(axis=1)
    bits = line_bits(matrix, np.zeros(columns, np.int64))
    plain = settle(bits, zero)
    if rows < 2 or columns < 2 or zero.all():
        return Classes(plain.astype(np.uint8))
    offsets = column_offsets(matrix, plain)
    if not offsets[offsets != ZERO_COLUMN].any() and (offsets != ZERO_COLUMN).mean() > 0.9:
        return Classes(plain.astype(np.uint8))
    before = total(bits, plain, zero)
    dead = offsets == ZERO_COLUMN
    both = line_bits(matrix, offsets)
    chosen = settle(both, zero)
    after = total(both, chosen, zero) + choose_law(line_symbols(offsets, dead, 0))[1] + 8
    if after >= before:
        return Classes(plain.astype(np.uint8))
    return Classes(chosen.astype(np.uint8), offsets.astype(np.int8))


def total(bits: Floats, classes: Ints, zero: NDArray[np.bool_]) -> float:
    """Bits of the numbers and of the classes of their rows."""
    own = bits[np.arange(len(classes)), classes][~zero].sum()
    first = int(classes[~zero][0]) if not zero.all() else 0
    return float(own) + choose_law(line_symbols(classes, zero, first))[1]


def line_bits(matrix: Matrix, offsets: Ints) -> Floats:
    """Bits of every row in every class.

    Args:
        matrix: (rows, columns) int32.
        offsets: (columns,) int64 added to the class; ZERO_COLUMN leaves a column out.

    Returns:
        (rows, CLASSES) float64; class 0 is NEVER, classes far from the row's scale are guessed.
    """
    bits = np.zeros((len(matrix), CLASSES))
    for offset in np.unique(offsets).tolist():
        if offset == ZERO_COLUMN:
            continue
        used = offsets == offset
        part = _bits_at_unit(matrix if used.all() else matrix[:, used])
        moved = np.clip(np.arange(CLASSES) + offset, 1, CLASSES - 1)
        bits += part[:, moved]
    bits[:, 0] = NEVER
    return bits


def _bits_at_unit(matrix: Matrix) -> Floats:
    """Bits of every row in every class, all columns alike."""
    rows, columns = matrix.shape
    bits = np.full((rows, CLASSES), NEVER)
    counts = np.concatenate([_histograms(matrix[i : i + BLOCK]) for i in range(0, rows, BLOCK)])
    prices = class_bits()
    small = LAST_UNSHIFTED + 1
    bits[:, 1:small] = counts @ prices.T[:, 1:small]
    # a class too high costs half a bit a number for each step, one too low escapes
    bits[:, small:] = bits[:, small - 1 : small] + 0.5 * columns * np.arange(1, CLASSES - small + 1)
    large = np.flatnonzero(counts[:, LARGEST // 2 :].any(axis=1))
    wide = matrix[large].astype(np.float64)
    rms = np.sqrt(np.einsum("ij,ij->i", wide, wide) / max(columns, 1))
    nearest = np.rint(2 * np.log2(rms)).astype(np.int64) + UNIT_CLASS
    nearest = np.clip(nearest, small, CLASSES - 1)
    for centre in np.unique(nearest).tolist():
        at = large[nearest == centre]
        for c in range(max(small, centre - NEAR), min(CLASSES, centre + NEAR + 1)):
            shifted, _ = split(matrix[at], c)
            bits[at, c] = prices[c][np.minimum(np.abs(shifted), LARGEST + 1)].sum(axis=1)
        for c in range(small, centre - NEAR):
            bits[at, c] = bits[at, centre - NEAR] + columns * 2.0 * (centre - NEAR - c)
        for c in range(centre + NEAR + 1, CLASSES):
            bits[at, c] = bits[at, centre + NEAR] + columns * 0.5 * (c - centre - NEAR)
    return bits


def _histograms(matrix: Matrix) -> Ints:
    """(rows, LARGEST + 2) counts of the magnitudes of each row, larger ones in the last column."""
    magnitudes = np.minimum(np.abs(matrix).view(np.uint32), LARGEST + 1)
    keys = magnitudes + np.arange(len(matrix))[:, None] * (LARGEST + 2)
    return np.bincount(keys.ravel(), minlength=len(matrix) * (LARGEST + 2)).reshape(-1, LARGEST + 2)


def settle(bits: Floats, zero: NDArray[np.bool_]) -> Ints:
    """The class of each line: least bits of its numbers and of the steps to its neighbours.

    Args:
        bits: (n, CLASSES) bits of each line in each class.
        zero: (n,) bool, lines without a number.

    Returns:
        (n,) int64, 0 where `zero`.
    """
    classes = np.zeros(len(bits), np.int64)
    used = np.flatnonzero(~zero)
    own = bits[used, 1:]
    chosen = own.argmin(axis=1)
    every = np.arange(own.shape[1])
    for _ in range(ROUNDS if len(used) > 1 else 0):
        law, _ = choose_law(line_symbols(chosen, np.zeros(len(chosen), np.bool_), int(chosen[0])))
        steps = law_bits()[law]
        for parity in (0, 1):
            at = np.arange(parity, len(used), 2)
            cost = own[at]
            here = at[at > 0]
            cost[at > 0] += steps[every - chosen[here - 1, None] + 1 + FARTHEST]
            here = at[at < len(used) - 1]
            cost[at < len(used) - 1] += steps[chosen[here + 1, None] - every + 1 + FARTHEST]
            chosen[at] = cost.argmin(axis=1)
    classes[used] = chosen + 1
    return classes


def column_offsets(matrix: Matrix, rows: Ints) -> Ints:
    """Half octaves by which each column lies above the classes of the rows.

    Args:
        matrix: (rows, columns) int32.
        rows: (rows,) int64 classes, 0 for zero rows.

    Returns:
        (columns,) int64 in ±FARTHEST_OFFSET, median 0; ZERO_COLUMN for a column entirely zero.
    """
    classes = rows[rows > 0]
    squares = (matrix if len(classes) == len(rows) else matrix[rows > 0]).astype(np.float32) ** 2
    energy = np.exp2((classes - UNIT_CLASS).astype(np.float32))
    for _ in range(ROUNDS):
        column = (1 / energy) @ squares / np.float32(len(energy))
        live = column > 0
        used = squares if live.all() else squares[:, live]
        energy = np.maximum(used @ (1 / column[live]) / np.float32(live.sum()), TINY)
    offsets = np.full(len(column), ZERO_COLUMN, np.int64)
    steps = np.log2(column[live])
    offsets[live] = np.clip(np.rint(steps - np.median(steps)), -FARTHEST_OFFSET, FARTHEST_OFFSET)
    return offsets
