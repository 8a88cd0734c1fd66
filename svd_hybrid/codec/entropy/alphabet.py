"""Scale classes, and how a number is cut by its class.

A number K of class c is cut into a shifted value, (K + half) >> shift(c), and shift(c) raw low
bits. Classes are half octaves of the rms of K, so after the shift the rms lies below 6. Class 0 is
"all zero" and stores nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

CLASSES = 44
UNIT_CLASS = 15  # the class whose nominal rms is 1
LARGEST = 31  # magnitudes priced one by one
LAST_UNSHIFTED = 20  # nominal rms 5.7


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
