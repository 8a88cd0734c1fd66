"""Blocks of columns that stay in the cache while element-wise rules work on them."""

from __future__ import annotations

from collections.abc import Iterator

CHUNK = 32768
"""Scalars of one task at a time: 128 KiB of float32."""


def spans(columns: int) -> Iterator[tuple[int, int]]:
    """Start and stop of the blocks of so many columns.

    >>> list(spans(32769))
    [(0, 32768), (32768, 32769)]
    """
    for start in range(0, columns, CHUNK):
        yield start, min(start + CHUNK, columns)
