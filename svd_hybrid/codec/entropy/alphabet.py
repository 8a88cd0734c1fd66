"""Scale classes and the symbols one number becomes.

A number K of class c is cut into a symbol, (K + half) >> shift(c), and shift(c) raw low bits.
Classes are half octaves of the rms of K, so after the shift the rms lies below 6 and symbols
-31 … 31 hold nearly all numbers; the rest are escapes. Class 0 is "all zero" and stores nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

CLASSES = 44
UNIT_CLASS = 15  # the class whose nominal rms is 1
LARGEST = 31  # symbols hold -LARGEST … LARGEST
ESCAPE = 2 * LARGEST + 1
SYMBOLS = ESCAPE + 1
LAST_UNSHIFTED = 20  # nominal rms 5.7: LARGEST lies 5.5 of them away
# 0, -1, 1, -2, 2 … escape: the order of symbols in a frequency table
BY_MAGNITUDE: Ints = np.append(
    np.argsort(np.abs(np.arange(ESCAPE) - LARGEST), kind="stable"), ESCAPE
)


def class_rms(c: int) -> float:
    """Nominal rms of K in class c, 0.0 for class 0.

    >>> class_rms(1), class_rms(15), class_rms(43)
    (0.0078125, 1.0, 16384.0)
    """
    return float(2.0 ** ((c - UNIT_CLASS) / 2)) if c else 0.0


def class_shift(c: int) -> int:
    """Raw low bits of a number of class c.

    >>> class_shift(20), class_shift(21), class_shift(43)
    (0, 1, 12)
    """
    return max(0, (c - LAST_UNSHIFTED + 1) // 2)


def split(values: NDArray[np.int32], c: int) -> tuple[Ints, Ints]:
    """Shifted values and raw low bits of numbers of class c.

    Args:
        values: any shape, int32.
        c: 1 … CLASSES - 1.

    Returns:
        shifted: same shape, int64, not yet cut to the alphabet.
        low: same shape, int64, below 2**class_shift(c).
    """
    wide = values.astype(np.int64)
    shift = class_shift(c)
    if not shift:
        return wide, np.zeros_like(wide)
    wide += 1 << (shift - 1)
    return wide >> shift, wide & ((1 << shift) - 1)


def join(shifted: Ints, low: Ints, c: int) -> Ints:
    """The numbers `split` cut; int64, because stored data may lie outside int32."""
    shift = class_shift(c)
    return (shifted << shift) + low - (1 << shift >> 1)
