"""The built-in frequency tables: a quantised Gaussian whose scale varies by 0.3 (natural log).

Row c - 1 holds, out of 4096, the frequencies of the magnitudes 1, 2, … of each sign in class c.
They were computed once and are data: nothing in floating point takes part in decoding. Classes
after the last row have shifts and repeat the last two rows in turn.
"""

from __future__ import annotations

DEFAULT_ESCAPE = 1

DEFAULT_MAGNITUDES: tuple[tuple[int, ...], ...] = (
    (1,),
    (1,),
    (1,),
    (1,),
    (2,),
    (4,),
    (8,),
    (16,),
    (32,),
    (64,),
    (128,),
    (256, 1),
    (480, 8),
    (768, 56, 3),
    (896, 192, 30, 4),
    (896, 352, 112, 30, 8, 2),
    (768, 448, 224, 96, 40, 16, 6, 2, 1),
    (576, 448, 288, 176, 104, 56, 28, 15, 8, 4, 2, 1),
    (448, 384, 288, 224, 160, 112, 72, 48, 32, 20, 12, 8, 5, 3, 2, 1, 1),
    (320, 288, 256, 224, 192, 144, 112, 88, 64, 48, 36, 28, 20, 15, 11, 8, 5, 4, 3, 2, 1, 1, 1, 1),
)


def default_magnitudes(c: int) -> tuple[int, ...]:
    """Frequencies of the magnitudes 1, 2, … in class c, 1 … CLASSES - 1."""
    rows = len(DEFAULT_MAGNITUDES)
    return DEFAULT_MAGNITUDES[c - 1 if c <= rows else rows - 2 + (c - rows - 1) % 2]
