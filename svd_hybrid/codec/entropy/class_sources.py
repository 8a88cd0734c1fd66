"""The sources of the numbers of a class, and what numbers cost.

A shifted number of magnitude a, of a class with the reach M, becomes up to three symbols, each from
a source of its own: min(a, M) with the sign (`clamped`); where that is M, whether a is above it
(`above`); and where it is, a - M - 1 (`excess`), of which ESCAPE says that it is that or more, and
that an exponent (`EXPONENTS`) and raw bits say how much more.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import CLASSES, LARGEST, class_shift
from svd_hybrid.codec.entropy.class_laws import class_law
from svd_hybrid.codec.entropy.source import Source
from svd_hybrid.codec.entropy.tables import TOTAL

ESCAPE = 31
ESCAPE_SHARE = 32
"""Of 4096: little to the rest, and much to numbers that fit no class."""
BEYOND_BITS = 6.0
"""Exponent and raw bits of a number above LARGEST, about."""


def clamped(c: int) -> Source:
    """Of class c: 0, -1, 1, -2, 2 … -M, M."""
    return _clamped(class_law(c).magnitudes)


def above(c: int) -> Source:
    """Of class c: whether a magnitude is above M."""
    return above_of(class_law(c).above)


def excess(c: int) -> Source:
    """Of class c: how much a magnitude is above M + 1, up to ESCAPE."""
    return excess_of(class_law(c).decay)


@cache
def _clamped(magnitudes: tuple[int, ...]) -> Source:
    both = [freq for freq in magnitudes for _ in range(2)]
    return Source([TOTAL - sum(both), *both], in_phrases=True)


@cache
def above_of(share: int) -> Source:
    """No and yes, of which yes has a share of 4096."""
    return Source([TOTAL - share, share], in_phrases=True)


@cache
def excess_of(decay: int) -> Source:
    """0, 1 … ESCAPE, falling by eighths."""
    freqs = []
    left = TOTAL - ESCAPE - ESCAPE_SHARE
    for _ in range(ESCAPE):
        further = left * decay // 8
        freqs.append(1 + left - further)
        left = further
    return Source([*freqs, ESCAPE_SHARE + left])


# common: a little above the escape
EXPONENTS = Source((64, 192, 576, 640, 640, 512, 512, 320, 160, 96, *[16] * 24))


@cache
def class_bits() -> NDArray[np.float64]:
    """(CLASSES, LARGEST + 2) bits of a number by class and magnitude, its raw low bits included.

    The last column is for magnitudes above LARGEST, about. Class 0 costs nothing for 0 and
    infinity for others.
    """
    bits = np.full((CLASSES, LARGEST + 2), np.inf)
    bits[0, 0] = 0.0
    for c in range(1, CLASSES):
        reach = class_law(c).reach
        own, more, rest = clamped(c).bits[::2], above(c).bits, excess(c).bits
        bits[c, :reach] = own[:reach]
        bits[c, reach] = own[reach] + more[0]
        bits[c, reach + 1 :] = own[reach] + more[1] + rest[: LARGEST + 1 - reach]
        bits[c, -1] += BEYOND_BITS
        bits[c] += class_shift(c)
    return bits
