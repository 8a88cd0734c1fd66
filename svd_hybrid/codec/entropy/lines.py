"""Classes of rows, and offsets of columns, as symbols of the rANS stream.

A line (row or column) that is entirely zero is symbol 0. Any other is 1 + FARTHEST + its step
from the last line that was not. Steps follow one of 256 two-sided geometric laws that one byte
names and integer arithmetic expands, so a few rows cost little and many decode in lanes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import Ints
from svd_hybrid.codec.entropy.source import Source
from svd_hybrid.codec.entropy.tables import TOTAL
from svd_hybrid.errors import ArtifactError

FARTHEST = 42
LINE_SYMBOLS = 2 * FARTHEST + 2
LAWS = 256

ZERO = (0, 64, 512, 1536, 2560, 3328, 3712, 3904)  # of 4096: lines entirely zero
STAY = (4, 12, 20, 28, 36, 44, 52, 60)  # of 64: no step
FALL = (8, 13)  # of 16: steps downwards
DECAY = (1, 5)  # of 8: a step over one half or one class further, per class


def law_frequencies(law: int) -> Ints:
    """(LINE_SYMBOLS,) int64, sum 4096, of the law 0 … LAWS - 1.

    Bits 0 … 2 choose ZERO, 3 … 5 STAY, 6 FALL, 7 DECAY. Every step has at least 1.
    """
    freqs = np.ones(LINE_SYMBOLS, np.int64)
    freqs[0] = max(1, ZERO[law & 7]) if law & 7 else 0
    left = TOTAL - int(freqs.sum())
    moving = left - left * STAY[law >> 3 & 7] // 64
    down = moving * FALL[law >> 6 & 1] // 16
    for mass, way in ((down, -1), (moving - down, 1)):
        for far in range(1, FARTHEST + 1):
            part = mass * (8 - DECAY[law >> 7]) // 8
            freqs[1 + FARTHEST + way * far] += part
            mass -= part
    freqs[1 + FARTHEST] += TOTAL - int(freqs.sum())
    return freqs


@cache
def law_source(law: int) -> Source:
    """The source of lines under one law."""
    return Source(law_frequencies(law).tolist())


@cache
def law_bits() -> NDArray[np.float64]:
    """(LAWS, LINE_SYMBOLS) bits of each symbol under each law."""
    freqs = np.stack([law_frequencies(law) for law in range(LAWS)])
    with np.errstate(divide="ignore"):
        return np.log2(TOTAL / freqs)


def line_symbols(values: Ints, zero: NDArray[np.bool_], start: int) -> NDArray[np.uint8]:
    """Symbols of lines.

    Args:
        values: (n,) int64; ignored where `zero`.
        zero: (n,) bool, lines entirely zero.
        start: what the first step is counted from.

    Returns:
        (n,) uint8.
    """
    symbols = np.zeros(len(values), np.uint8)
    steps = np.diff(values[~zero], prepend=start)
    symbols[~zero] = steps + 1 + FARTHEST
    return symbols


def line_values(symbols: NDArray[np.uint8], start: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Undo `line_symbols`: values, 0 where a line is zero, and those lines."""
    zero = symbols == 0
    values = np.zeros(len(symbols), np.int64)
    values[~zero] = start + np.cumsum(symbols[~zero].astype(np.int64) - 1 - FARTHEST)
    return values, zero


def choose_law(symbols: NDArray[np.uint8]) -> tuple[int, float]:
    """The cheapest law for these symbols, and its bits."""
    counts = np.bincount(symbols, minlength=LINE_SYMBOLS)
    seen = counts.nonzero()[0]
    bits = law_bits()[:, seen] @ counts[seen].astype(np.float64)
    law = int(bits.argmin())
    return law, float(bits[law])


def check_range(values: Ints, low: int, high: int, what: str) -> None:
    """Refuse decoded values outside low … high."""
    if len(values) and (values.min() < low or values.max() > high):
        raise ArtifactError(f"{what} of a slice are outside {low} … {high}")
