"""Range asymmetric numeral system over interleaved lanes, integers only in the decoder.

A stream is a list of phases; a phase is some symbols of one source, taken out as events: phrases
as long as every lane can take the longest without passing the end, then symbols alone. Event i of
either kind belongs to lane i mod lanes. Tables have total 4096. A state stays in 2**16 … 2**32 - 1
and takes in or gives out 16-bit words.

The usual start at 2**16 would waste two bytes a lane. Here a lane starts at 0 and the first events
put in (the last taken out) need no words: with one lane until the words are used up, with several
in the last steps, before which 2**16 is added to every state; the number of the steps before them
is stored. Without words a state only falls, until the first phrase of a table leaves it as it is:
what then remains of the phase is that phrase, however long, and takes no loop.
Source: Duda 2013, "Asymmetric numeral systems"; lanes as in Giesen 2014, "Interleaved entropy
coders".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.source import Source
from svd_hybrid.codec.entropy.tables import TOTAL, TOTAL_BITS, Bytes, Ints, Table
from svd_hybrid.errors import ArtifactError

LOWEST = 1 << 16
SLOT = TOTAL - 1


def _short() -> ArtifactError:
    return ArtifactError("an entropy-coded slice ends too early", fix="fetch the artifact anew")


def _damaged() -> ArtifactError:
    return ArtifactError("an entropy-coded slice is damaged", fix="fetch the artifact anew")


class Decoder(ABC):
    """Takes the phases of a stream out, first to last."""

    lanes: int

    def take(self, source: Source, count: int) -> Bytes:
        """The next phase: (count,) symbols."""
        if not count:
            return np.zeros(0, np.uint8)
        parts = []
        if source.phrases is not None:
            while steps := count // (source.phrases.longest * self.lanes):
                parts.append(self._events(source.phrases, steps * self.lanes))
                count -= len(parts[-1])
        parts.append(self._events(source.single, count))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def take_from(self, table: Table, offsets: Ints) -> Bytes:
        """The next events, one for each offset in the slots of joined tables: their symbols."""
        return self._events(table, len(offsets), offsets)

    @abstractmethod
    def _events(self, table: Table, count: int, offsets: Ints | None = None) -> Bytes:
        """The symbols of the next events, which begin at lane 0."""

    @abstractmethod
    def finish(self) -> int:
        """Words used; refuses a stream that does not end where it should."""


class SingleDecoder(Decoder):
    """One lane, one event at a time.

    Args:
        state: below 2**32.
        words: all words of the stream.
    """

    lanes = 1

    def __init__(self, state: int, words: NDArray[np.uint16]) -> None:
        self.state = state
        self.words = words[::-1].tolist()  # the next one is the last
        self.count = len(words)

    def _events(self, table: Table, count: int, offsets: Ints | None = None) -> Bytes:
        indices, rows = table.rows
        words, x = self.words, self.state
        still = table.still if offsets is None else 0  # tables differ from number to number
        found: list[bytes] = []
        append = found.append
        for done, offset in enumerate(repeat(0, count) if offsets is None else offsets.tolist(), 1):
            slot = x & SLOT
            phrase, freq, start = rows[indices[slot + offset]]
            append(phrase)
            x = freq * (x >> TOTAL_BITS) + slot - start
            if x < LOWEST:
                if words:
                    if not x:
                        raise _damaged()
                    x = x << 16 | words.pop()
                elif x < still:
                    append(table.first * (count - done))
                    break
        self.state = x
        return np.frombuffer(b"".join(found), np.uint8)

    def finish(self) -> int:
        """Words used; refuses a stream that does not end in state 0 with all of them used."""
        if self.state or self.words:
            raise _damaged()
        return self.count


class LaneDecoder(Decoder):
    """Many lanes in step.

    Args:
        states: (lanes,) int64 in 2**16 … 2**32 - 1.
        words: (n,) uint16; may go on after the stream.
        steps: steps before the ones that take nothing in.
    """

    BLOCK = 16  # steps whose slots are kept before their symbols are looked up

    def __init__(self, states: Ints, words: NDArray[np.uint16], steps: int) -> None:
        self.lanes = len(states)
        self.states = states
        self.words = words.astype(np.int64)
        self.used = 0
        self.steps = steps
        self.freq = np.empty(self.lanes, np.int64)
        self.bias = np.empty(self.lanes, np.int64)
        self.low = np.empty(self.lanes, np.bool_)
        self.kept = np.empty((self.BLOCK, self.lanes), np.int64)

    def _events(self, table: Table, count: int, offsets: Ints | None = None) -> Bytes:
        parts = []
        for first in range(0, count, self.kept.size):
            if offsets is None and self.steps < 0 and self.states.max() < table.still:
                parts.append(np.frombuffer(table.first * (count - first), np.uint8))
                break
            slots = self.kept.reshape(-1)[: min(self.kept.size, count - first)]
            for begin in range(0, len(slots), self.lanes):
                at = None if offsets is None else offsets[first + begin :][: self.lanes]
                self._step(table, slots[begin : begin + self.lanes], at)
            parts.append(table.expand(table.slots[0].take(slots)))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    def _step(self, table: Table, slots: Ints, offsets: Ints | None) -> None:
        if self.steps == 0:
            self._lower()
        n = len(slots)
        x, freq, bias = self.states[:n], self.freq[:n], self.bias[:n]
        _, freqs, biases = table.slots
        np.bitwise_and(x, SLOT, out=slots)
        if offsets is not None:
            slots += offsets[:n]
        freqs.take(slots, out=freq, mode="clip")
        biases.take(slots, out=bias, mode="clip")
        np.right_shift(x, TOTAL_BITS, out=x)
        np.multiply(x, freq, out=x)
        np.add(x, bias, out=x)
        self.steps -= 1
        if self.steps < 0:
            return
        hungry = np.less(x, LOWEST, out=self.low[:n]).nonzero()[0]
        x[hungry] = x.take(hungry) << 16 | self._read(len(hungry))

    def _lower(self) -> None:
        self.states -= LOWEST
        if self.states.min() < 0:
            raise _damaged()

    def _read(self, count: int) -> Ints:
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
