"""Frequency tables of the coder: what each of 4096 slots stands for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

TOTAL_BITS = 12
TOTAL = 1 << TOTAL_BITS


class Table:
    """One frequency table in the shapes the coders want.

    Args:
        freqs: of the phrases, at most 256, sum 4096, at least two of them not 0. The first event of
            a lane costs it nothing if its phrase is the first, so that should be the likeliest.
        phrases: what each stands for: one or more symbols.
    """

    def __init__(self, freqs: Sequence[int], phrases: Sequence[bytes]) -> None:
        self.freqs: Ints = np.array(freqs, np.int64)
        self.starts: Ints = np.cumsum(self.freqs) - self.freqs
        self.phrases = phrases
        self.longest = max(map(len, phrases))

    @cached_property
    def first(self) -> bytes:
        """The phrase of slot 0."""
        return self.phrases[int(np.argmax(self.freqs > 0))]

    @cached_property
    def still(self) -> int:
        """States below this stand for the first phrase and stay as they are, without words."""
        return int(self.freqs[self.freqs > 0][0])

    @cached_property
    def rows(self) -> tuple[bytes, list[tuple[bytes, int, int]]]:
        """By slot an index, and by index phrase, frequency and start: fits small caches."""
        columns = (self.phrases, self.freqs.tolist(), self.starts.tolist())
        return self.slots[0].tobytes(), list(zip(*columns, strict=True))

    @cached_property
    def slots(self) -> tuple[Bytes, Ints, Ints]:
        """By slot: index of the phrase, frequency, slot - start."""
        index = np.repeat(np.arange(len(self.freqs)), self.freqs)
        return index.astype(np.uint8), self.freqs[index], np.arange(TOTAL) - self.starts[index]

    @cached_property
    def grid(self) -> tuple[Bytes, NDArray[np.bool_]]:
        """(phrases, longest): their symbols, and which places they fill."""
        symbols = [list(phrase.ljust(self.longest, b"\0")) for phrase in self.phrases]
        lengths = np.array([[len(phrase)] for phrase in self.phrases])
        return np.array(symbols, np.uint8), np.arange(self.longest) < lengths

    def expand(self, events: Bytes) -> Bytes:
        """The symbols of phrases by index."""
        if self.longest == 1:
            return events
        symbols, inside = self.grid
        return symbols.take(events, axis=0)[inside.take(events, axis=0)]
