"""Range asymmetric numeral system over interleaved lanes, integers only in the decoder.

A stream is a list of phases; a phase is some symbols under one frequency table of total 4096.
Symbol i of a phase belongs to lane i mod lanes, and a phase begins at lane 0. A state stays in
2**16 … 2**32 - 1 and takes in or gives out 16-bit words.

The usual start at 2**16 would waste two bytes a lane. Here a lane starts at 0 and the first
symbols put in (the last taken out) need no words: with one lane until the words are used up, with
several in the last steps, before which 2**16 is added to every state; the number of the steps
before them is stored.
Source: Duda 2013, "Asymmetric numeral systems"; lanes as in Giesen 2014, "Interleaved entropy
coders".
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.errors import ArtifactError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TOTAL_BITS = 12
TOTAL = 1 << TOTAL_BITS
LOWEST = 1 << 16
HIGHEST = 1 << 32
SLOT = TOTAL - 1


class Table:
    """One frequency table in the shapes the coders want.

    Args:
        freqs: (A,) int64, A <= 256, sum 4096, at least two of them not 0.
        order: (A,) int64, the symbols from slot 0 upwards; left out, 0 … A - 1. A first symbol at
            slot 0 costs a lane nothing, so the most frequent one belongs there.
    """

    def __init__(self, freqs: Ints, order: Ints | None = None) -> None:
        self.freqs = freqs
        self.order = np.arange(len(freqs)) if order is None else order
        self.starts = np.empty_like(freqs)
        self.starts[self.order] = np.cumsum(freqs[self.order]) - freqs[self.order]
        self._entries: Ints | None = None
        self._rows: list[tuple[int, int, int]] | None = None

    @property
    def entries(self) -> Ints:
        """(4096,) int64: frequency | (slot - start) << 12 | symbol << 24."""
        if self._entries is None:
            symbols = np.repeat(self.order, self.freqs[self.order])
            bias = np.arange(TOTAL) - self.starts[symbols]
            self._entries = self.freqs[symbols] | bias << TOTAL_BITS | symbols << (2 * TOTAL_BITS)
        return self._entries

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """The same as (symbol, frequency, slot - start), for the loop over single symbols."""
        if self._rows is None:
            e = self.entries
            columns = (e >> 2 * TOTAL_BITS, e & SLOT, e >> TOTAL_BITS & SLOT)
            self._rows = list(zip(*(column.tolist() for column in columns), strict=True))
        return self._rows


class Decoder(Protocol):
    """Takes the phases of a stream out, first to last."""

    def take(self, table: Table, count: int) -> NDArray[np.uint8]:
        """The next phase: (count,) symbols."""

    def finish(self) -> int:
        """Words used; refuses a stream that does not end where it should."""


def _short() -> ArtifactError:
    return ArtifactError("an entropy-coded slice ends too early", fix="fetch the artifact anew")


def _damaged() -> ArtifactError:
    return ArtifactError("an entropy-coded slice is damaged", fix="fetch the artifact anew")


class SingleDecoder:
    """One lane, one symbol at a time.

    Args:
        state: below 2**32.
        words: all words of the stream.
    """

    def __init__(self, state: int, words: NDArray[np.uint16]) -> None:
        self.state = state
        self.words = iter(words.tolist())
        self.count = len(words)
        self.empty = False

    def take(self, table: Table, count: int) -> NDArray[np.uint8]:
        """The next phase: (count,) symbols."""
        rows, x = table.rows, self.state
        out = bytearray(count)
        words = self.words
        at = 0
        if not self.empty:
            for at in range(count):
                out[at], freq, bias = rows[x & SLOT]
                x = freq * (x >> TOTAL_BITS) + bias
                if x < LOWEST:
                    word = next(words, -1)
                    if word < 0:
                        self.empty = True
                        break
                    if not x:
                        raise _damaged()
                    x = x << 16 | word
            at += 1 if count else 0
        for late in range(at, count):
            out[late], freq, bias = rows[x & SLOT]
            x = freq * (x >> TOTAL_BITS) + bias
        self.state = x
        return np.frombuffer(out, np.uint8)

    def finish(self) -> int:
        """Words used; refuses a stream that does not end in state 0 with all of them used."""
        if self.state or next(self.words, -1) >= 0:
            raise _damaged()
        return self.count


class LaneDecoder:
    """Many lanes in step.

    Args:
        states: (lanes,) int64 in 2**16 … 2**32 - 1.
        words: (n,) uint16; may go on after the stream.
        steps: steps before the ones that take no words.
    """

    BLOCK = 16  # steps whose table entries are kept before their symbols are cut out

    def __init__(self, states: Ints, words: NDArray[np.uint16], steps: int) -> None:
        self.states = states
        self.words = words
        self.used = 0
        self.steps = steps
        lanes = len(states)
        self.index = np.empty(lanes, np.int64)
        self.freq = np.empty(lanes, np.int64)
        self.bias = np.empty(lanes, np.int64)
        self.low = np.empty(lanes, np.bool_)
        self.entries = np.empty((self.BLOCK, lanes), np.int64)

    def take(self, table: Table, count: int) -> NDArray[np.uint8]:
        """The next phase: (count,) symbols."""
        lanes = len(self.states)
        out = np.empty(count, np.uint8)
        whole = count // lanes
        for first in range(0, whole, self.BLOCK):
            block = self.entries[: min(self.BLOCK, whole - first)]
            for row in block:
                self._step(table.entries, self.states, row)
            block >>= 2 * TOTAL_BITS
            part = out[first * lanes : (first + len(block)) * lanes]
            part.reshape(block.shape)[...] = block
        rest = count - whole * lanes
        if rest:
            row = self.entries[0, :rest]
            self._step(table.entries, self.states[:rest], row)
            out[whole * lanes :] = row >> 2 * TOTAL_BITS
        return out

    def _step(self, entries: Ints, x: Ints, row: Ints) -> None:
        n = len(x)
        freq, bias = self.freq[:n], self.bias[:n]
        if self.steps == 0:
            self._lower()
        np.bitwise_and(x, SLOT, out=bias)
        entries.take(bias, out=row, mode="clip")
        np.right_shift(x, TOTAL_BITS, out=x)
        np.bitwise_and(row, SLOT, out=freq)
        np.multiply(x, freq, out=x)
        np.right_shift(row, TOTAL_BITS, out=bias)
        np.bitwise_and(bias, SLOT, out=bias)
        np.add(x, bias, out=x)
        self.steps -= 1
        if self.steps < 0:
            return
        np.less(x, LOWEST, out=self.low[:n])
        hungry = self.low[:n].nonzero()[0]
        x[hungry] = x[hungry] << 16 | self._read(len(hungry))

    def _lower(self) -> None:
        self.states -= LOWEST
        if self.states.min() < 0:
            raise _damaged()

    def _read(self, count: int) -> NDArray[np.uint16]:
        words = self.words[self.used : self.used + count]
        if len(words) < count:
            raise _short()
        self.used += count
        return words

    def finish(self) -> int:
        """Words used; refuses a stream that does not end with every state 0."""
        if self.steps == 0:
            self._lower()
        if self.steps > 0 or self.states.any():
            raise _damaged()
        return self.used


def encode_single(phases: list[tuple[Table, NDArray[np.uint8]]]) -> tuple[int, NDArray[np.uint16]]:
    """State and words of a stream with one lane.

    Args:
        phases: tables and (n,) symbols, first to last; no symbol has frequency 0.

    Returns:
        state: below 2**32.
        words: (w,) uint16, in the order the decoder takes them.
    """
    x = 0
    words = []
    for table, symbols in reversed(phases):
        freqs, starts = table.freqs.tolist(), table.starts.tolist()
        for symbol in symbols[::-1].tolist():
            freq = freqs[symbol]
            if x >= freq << 20:
                words.append(x & 0xFFFF)
                x >>= 16
            x = (x // freq << TOTAL_BITS) + x % freq + starts[symbol]
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
