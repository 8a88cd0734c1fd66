"""The numbers of one class as indices along the trellis, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from svd_hybrid.codec.entropy.alphabet import Ints
from svd_hybrid.codec.entropy.bitstream import Bits
from svd_hybrid.codec.entropy.class_sources import ESCAPE
from svd_hybrid.codec.entropy.decoders import Decoder
from svd_hybrid.codec.entropy.numbers import SIGNED, Phases, Vector
from svd_hybrid.codec.entropy.tables import TOTAL, Bytes
from svd_hybrid.codec.entropy.trellis_paths import (
    NEXT,
    doubled,
    path_count,
    quantisers,
    rounds,
)
from svd_hybrid.codec.entropy.trellis_sources import above, excess, indices, trellis_law
from svd_hybrid.errors import ArtifactError


def trellis_phases(numbers: Vector, c: int) -> tuple[Phases, Bits, Ints]:
    """As `numbers.to_phases`, for indices; there are no raw low bits."""
    reach = trellis_law(c).reach
    magnitudes = np.abs(numbers).view(np.uint32)
    near = np.minimum(magnitudes, reach).astype(np.uint8)
    source = indices(c)
    symbols = 2 * near - (numbers < 0) + quantisers(near & 1) * np.uint8(source.pair.symbols)
    far = magnitudes[near == reach].astype(np.int64)
    over = far[far > reach] - reach - 1
    phases: Phases = [
        (source, symbols.astype(np.uint8)),
        (above(c), (far > reach).view(np.uint8)),
        (excess(c), np.minimum(over, ESCAPE).astype(np.uint8)),
    ]
    return phases, np.zeros(0, np.uint8), over[over >= ESCAPE] - ESCAPE + 1


@dataclass(frozen=True, slots=True)
class TrellisNumbers:
    """The numbers of one class, taken from a stream.

    Args:
        clamped: (n,) symbols of one quantiser of all numbers.
        quantiser: (n,) uint8, of each.
        over: (k,) int64, ascending: which are above the reach.
        excess: (k,) symbols of those.
    """

    clamped: Bytes
    quantiser: Bytes
    over: Ints
    excess: Bytes
    shift = 0

    @classmethod
    def take(cls, coder: Decoder, c: int, count: int) -> TrellisNumbers:
        """The next `count` numbers of a stream."""
        pair = indices(c).pair
        symbols = np.empty(count, np.uint8)
        quantiser = np.empty(count, np.uint8)
        states: Bytes = np.zeros(path_count(count), np.uint8)
        for now in rounds(count):
            states = states[: now.stop - now.start]
            odd = quantiser[now] = states & 1
            taken = coder.take_from(pair, odd.astype(np.int64) * TOTAL) - odd * pair.symbols
            symbols[now] = taken
            states = NEXT[states, (taken + 1 >> 1) & 1]
        (reached,) = (symbols >= 2 * trellis_law(c).reach - 1).nonzero()
        over = reached[coder.take(above(c), len(reached)).view(np.bool_)]
        return cls(symbols, quantiser, over, coder.take(excess(c), len(over)))

    @property
    def escapes(self) -> int:
        """How many escapes."""
        return int(np.count_nonzero(self.excess == ESCAPE))

    def join(self, low: Ints, escaped: Ints) -> Vector:
        """The numbers in half steps.

        Args:
            low: nothing.
            escaped: (escapes,) the values w.

        Raises:
            ArtifactError: one does not fit 32 bits.
        """
        wide = SIGNED.take(self.clamped).astype(np.int64)
        further = self.excess.astype(np.int64) + 1
        further[self.excess == ESCAPE] += escaped - 1
        wide[self.over] += np.sign(wide[self.over]) * further
        wide = doubled(wide, self.quantiser)
        if (wide != wide.astype(np.int32)).any():
            raise ArtifactError(
                "a number of a slice is outside int32", fix="fetch the artifact anew"
            )
        return wide.astype(np.int32)
