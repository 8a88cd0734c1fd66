"""The grid of frequencies: integers of at most four significant bits, numbered from 0.

Index 0 … 15 is the integer itself; from there eight values to each doubling. The error of
rounding to it is at most 1/16, which costs a symbol 0.0003 bits on average.
"""

from __future__ import annotations

from svd_hybrid.errors import ArtifactError

LAST = 15 + 8 * 8  # 3840, the largest below 4096


def grid_value(index: int) -> int:
    """The integer at `index`.

    Raises:
        ArtifactError: outside 0 … LAST.

    >>> [grid_value(i) for i in (0, 15, 16, 17, 79)]
    [0, 15, 16, 18, 3840]
    """
    if not 0 <= index <= LAST:
        raise ArtifactError("a stored frequency is outside 0 … 3840", fix="fetch the artifact anew")
    if index < 16:
        return index
    octave, step = divmod(index - 8, 8)
    return (8 + step) << octave


def grid_index(value: int) -> int:
    """Undo `grid_value` for a value on the grid.

    >>> all(grid_index(grid_value(i)) == i for i in range(LAST + 1))
    True
    """
    if value < 16:
        return value
    octave = value.bit_length() - 4
    return 8 + 8 * octave + (value >> octave) - 8


def nearest_index(value: float) -> int:
    """Index of the grid value nearest to a real number of at most 4096."""
    whole = min(round(value), 3840)
    below = grid_index(whole)
    if below >= LAST:
        return LAST
    return below + (value - grid_value(below) > grid_value(below + 1) - value)
