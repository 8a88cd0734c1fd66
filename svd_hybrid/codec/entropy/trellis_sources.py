"""The sources of the indices of a class, by quantiser, and what indices cost."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import CLASSES, LARGEST
from svd_hybrid.codec.entropy.class_sources import BEYOND_BITS, above_of, excess_of
from svd_hybrid.codec.entropy.source import Source
from svd_hybrid.codec.entropy.tables import TOTAL, Bytes, Ints, Table
from svd_hybrid.codec.entropy.trellis_laws import TRELLIS_LAWS, TrellisLaw
from svd_hybrid.codec.entropy.trellis_paths import rounds


class Pair(Table):
    """Two tables over the same symbols as one: symbols of the second follow those of the first.

    Args:
        freqs: of either, sum 4096 each.
    """

    def __init__(self, *freqs: list[int]) -> None:
        super().__init__(freqs[0] + freqs[1], [bytes([s]) for s in range(2 * len(freqs[0]))])
        self.symbols = len(freqs[0])
        self.starts = np.concatenate([np.cumsum(side) - side for side in freqs])

    @cached_property
    def slots(self) -> tuple[Bytes, Ints, Ints]:
        """As for a table; slots of the second one begin at 4096."""
        index = np.repeat(np.arange(len(self.freqs)), self.freqs)
        inside = np.arange(2 * TOTAL) % TOTAL
        return index.astype(np.uint8), self.freqs[index], inside - self.starts[index]


class PairSource:
    """Symbols whose table is that of their quantiser, coded round by round.

    Args:
        pair: both tables.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    @cached_property
    def bits(self) -> NDArray[np.float64]:
        """What each symbol costs."""
        bits: NDArray[np.float64] = np.log2(TOTAL / self.pair.freqs)
        return bits

    def events(self, symbols: Bytes, lanes: int) -> list[tuple[Table, Bytes]]:
        """Symbols as a decoder takes them; each round begins at lane 0."""
        return [(self.pair, symbols[now]) for now in rounds(len(symbols))]


def trellis_law(c: int) -> TrellisLaw:
    """The law of class c, 1 … CLASSES - 1; classes after the last have its law."""
    return TRELLIS_LAWS[min(c, len(TRELLIS_LAWS)) - 1]


def indices(c: int) -> PairSource:
    """Of class c: min(|k|, M) with its sign, 0, -1, 1, -2, 2 … -M, M, by quantiser."""
    return _indices(trellis_law(c))


def above(c: int) -> Source:
    """Of class c: whether a magnitude is above M."""
    return above_of(trellis_law(c).above)


def excess(c: int) -> Source:
    """Of class c: how much a magnitude is above M + 1."""
    return excess_of(trellis_law(c).decay)


@cache
def _indices(law: TrellisLaw) -> PairSource:
    both = []
    for side in (law.even, law.odd):
        freqs = [freq for freq in side for _ in range(2)]
        both.append([TOTAL - sum(freqs), *freqs])
    return PairSource(Pair(*both))


@cache
def reach_of() -> NDArray[np.int32]:
    """(CLASSES,) the reach of each class; class 0 has that of class 1."""
    return np.array([trellis_law(max(c, 1)).reach for c in range(CLASSES)], np.int32)


@cache
def index_bits() -> NDArray[np.float32]:
    """(CLASSES, 2, LARGEST + 2) bits of an index by class, quantiser and magnitude.

    The last column is for magnitudes above LARGEST, about.
    """
    bits = np.zeros((CLASSES, 2, LARGEST + 2), np.float32)
    for c in range(1, CLASSES):
        reach = trellis_law(c).reach
        source, more, rest = indices(c), above(c).bits, excess(c).bits
        for quantiser in (0, 1):
            own = source.bits.reshape(2, -1)[quantiser, ::2]
            row = bits[c, quantiser]
            row[:reach] = own[:reach]
            row[reach] = own[reach] + more[0]
            row[reach + 1 :] = own[reach] + more[1] + rest[: LARGEST + 1 - reach]
            row[-1] += BEYOND_BITS
    return bits
