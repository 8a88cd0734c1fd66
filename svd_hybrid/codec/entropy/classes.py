"""Which class every number of a slice belongs to.

class(i, j) = clip(rows[i] + columns[j], 1, CLASSES - 1); 0 where the row or the column is entirely
zero. Most slices have no column offsets: rows are sorted by scale and columns are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import CLASSES

FARTHEST_OFFSET = 20
ZERO_COLUMN = -128  # the offset of a column that is entirely zero

Where = tuple[NDArray[np.int64], ...] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Classes:
    """rows: (rows,) uint8, 0 … 43; columns: (columns,) int8 offsets, or None for none."""

    rows: NDArray[np.uint8]
    columns: NDArray[np.int8] | None = None

    def matrix(self, count: int) -> NDArray[np.uint8]:
        """(rows, count) uint8: the class of every number of a slice of `count` columns."""
        if self.columns is None:
            return np.repeat(self.rows[:, None], count, axis=1)
        offsets = self.columns.astype(np.int16)
        classes = np.clip(self.rows[:, None] + offsets, 1, CLASSES - 1)
        classes[self.rows == 0] = 0
        classes[:, self.columns == ZERO_COLUMN] = 0
        matrix: NDArray[np.uint8] = classes.astype(np.uint8)
        return matrix

    def places(self, count: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each class above 0 that occurs, ascending, and where.

        Yields:
            class, and (n,) int64: without column offsets the rows of the class, ascending; with
            them the flat positions of its numbers in row-major order, ascending.
        """
        keys = self.rows if self.columns is None else self.matrix(count).ravel()
        order = np.argsort(keys, kind="stable")
        ends = np.cumsum(np.bincount(keys, minlength=CLASSES))
        for c in range(1, CLASSES):
            if ends[c] > ends[c - 1]:
                yield c, order[ends[c - 1] : ends[c]]
