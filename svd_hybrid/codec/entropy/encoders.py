"""The encoders of `decoders`: phases go in last to first, and every step undoes a decoder's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.decoders import LOWEST
from svd_hybrid.codec.entropy.tables import TOTAL, TOTAL_BITS, Bytes, Ints, Table

Floats = NDArray[np.float64]

HIGHEST = 1 << 32


def encode_single(events: list[tuple[Table, Bytes]]) -> tuple[int, NDArray[np.uint16]]:
    """State and words of a stream with one lane.

    Args:
        events: tables and (n,) indices of phrases, first to last; none has frequency 0.

    Returns:
        state: below 2**32.
        words: (w,) uint16, in the order the decoder takes them.
    """
    x = 0
    words = []
    for table, indices in reversed(events):
        freqs, starts = table.freqs.tolist(), table.starts.tolist()
        for index in indices[::-1].tolist():
            freq = freqs[index]
            if x >= freq << 20:
                words.append(x & 0xFFFF)
                x >>= 16
            x = (x // freq << TOTAL_BITS) + x % freq + starts[index]
    return x, np.array(words[::-1], np.uint16)


class LaneEncoder:
    """Many lanes in step; phases go in last to first.

    States are float64 holding x + ½: below 2**32 every step is exact, a product with a rounded
    reciprocal has the right floor, and numpy multiplies floats faster than it divides integers.
    """

    def __init__(self, lanes: int) -> None:
        self.states = np.full(lanes, 0.5)
        self.words: list[NDArray[np.uint16]] = []
        self.tail = True  # no words yet
        self.steps = 0  # steps with words
        self.scratch = np.empty(lanes)
        self.high = np.empty(lanes, np.bool_)

    def put(self, table: Table, symbols: NDArray[np.uint8]) -> None:
        """Put one phase in front of those already there."""
        lanes = len(self.states)
        freq = table.freqs.astype(np.float64)
        with np.errstate(divide="ignore"):
            columns = (1.0 / freq, TOTAL - freq, table.starts.astype(np.float64), freq * 2.0**20)
        whole = len(symbols) // lanes
        rest = symbols[whole * lanes :].astype(np.int64)
        if len(rest):
            inverse, spread, start, limit = (column[rest] for column in columns)
            self._step(inverse, spread, start, limit, self.states[: len(rest)])
        steps = symbols[: whole * lanes].reshape(whole, lanes)
        index = np.empty(lanes, np.int64)
        chosen = np.empty((4, lanes))
        for step in steps[::-1]:
            index[...] = step
            for column, out in zip(columns, chosen, strict=True):
                column.take(index, out=out, mode="clip")
            self._step(chosen[0], chosen[1], chosen[2], chosen[3], self.states)

    def _step(
        self, inverse: Floats, spread: Floats, start: Floats, limit: Floats, x: Floats
    ) -> None:
        new = self.scratch[: len(x)]
        if self.tail:
            np.floor(x * inverse, out=new)
            new *= spread
            new += start
            new += x
            if new.max() < HIGHEST - LOWEST:
                x[...] = new
                return
            self.tail = False
            self.states += LOWEST
        high = np.greater(x, limit, out=self.high[: len(x)]).nonzero()[0]
        full = x[high]
        kept = np.floor(full * 2.0**-16)
        self.words.append((full - kept * LOWEST).astype(np.uint16))
        kept += 0.5
        x[high] = kept
        np.multiply(x, inverse, out=new)
        np.floor(new, out=new)
        new *= spread
        new += start
        x += new
        self.steps += 1

    def finish(self) -> tuple[Ints, NDArray[np.uint16], int]:
        """States (lanes,) int64 in 2**16 … 2**32 - 1, words (w,) uint16, steps with words."""
        if self.tail:
            self.states += LOWEST
        words = np.concatenate([np.zeros(0, np.uint16), *self.words[::-1]])
        return self.states.astype(np.int64), words, self.steps
