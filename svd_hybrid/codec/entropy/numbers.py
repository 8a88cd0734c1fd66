"""The numbers of one class as symbols of its sources, and back.

An escape says that a magnitude is M + 1 + ESCAPE + w - 1 for some w >= 1: its exponent is
e = floor(log2 w), its raw bits the e low bits of w. Magnitudes reach 2**31, so e is at most 31.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import Ints, class_shift, join, split
from svd_hybrid.codec.entropy.bitstream import Bits, to_bits
from svd_hybrid.codec.entropy.class_laws import class_law
from svd_hybrid.codec.entropy.class_sources import ESCAPE, above, clamped, excess
from svd_hybrid.codec.entropy.decoders import Decoder
from svd_hybrid.codec.entropy.source import PhaseSource
from svd_hybrid.codec.entropy.tables import Bytes
from svd_hybrid.errors import ArtifactError

Vector = NDArray[np.int32]
Phases = list[tuple[PhaseSource, Bytes]]

SIGNED: Vector = np.array([(place + 1) // 2 * (-1) ** place for place in range(64)], np.int32)
"""The value of each symbol of `clamped`: 0, -1, 1, -2, 2 …"""


def to_phases(numbers: Vector, c: int) -> tuple[Phases, Bits, Ints]:
    """Phases, raw low bits, and the values w of the escapes."""
    shifted, low = split(numbers, c) if class_shift(c) else (numbers, np.zeros(0, np.int64))
    reach = class_law(c).reach
    magnitudes = np.abs(shifted).view(np.uint64 if class_shift(c) else np.uint32)
    near = np.minimum(magnitudes, reach).astype(np.uint8)
    far = magnitudes[near == reach].astype(np.int64)
    over = far[far > reach] - reach - 1
    phases: Phases = [
        (clamped(c), 2 * near - (shifted < 0)),
        (above(c), (far > reach).view(np.uint8)),
        (excess(c), np.minimum(over, ESCAPE).astype(np.uint8)),
    ]
    return phases, to_bits(low, class_shift(c)), over[over >= ESCAPE] - ESCAPE + 1


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of one class, all but their raw bits taken from a stream.

    Args:
        c: the class.
        clamped: symbols of all numbers.
        over: (k,) int64, ascending: which are above the reach.
        excess: (k,) symbols of those.
    """

    c: int
    clamped: Bytes
    over: Ints
    excess: Bytes

    @classmethod
    def take(cls, coder: Decoder, c: int, count: int) -> Numbers:
        """The next `count` numbers of a stream."""
        symbols = coder.take(clamped(c), count)
        (reached,) = (symbols >= 2 * class_law(c).reach - 1).nonzero()
        over = reached[coder.take(above(c), len(reached)).view(np.bool_)]
        return cls(c, symbols, over, coder.take(excess(c), len(over)))

    @property
    def shift(self) -> int:
        """Raw low bits of each number."""
        return class_shift(self.c)

    @property
    def escapes(self) -> int:
        """How many escapes."""
        return int(np.count_nonzero(self.excess == ESCAPE))

    def join(self, low: Ints, escaped: Ints) -> Vector:
        """The numbers.

        Args:
            low: raw low bits of each, or nothing where the class has no shift.
            escaped: (escapes,) the values w.

        Raises:
            ArtifactError: one does not fit 32 bits.
        """
        values: Vector = SIGNED.take(self.clamped)
        if not class_shift(self.c) and not len(escaped):
            step = np.sign(values[self.over])
            values[self.over] += step * (self.excess.astype(np.int32) + 1)
            return values
        wide = values.astype(np.int64)
        further = self.excess.astype(np.int64) + 1
        further[self.excess == ESCAPE] += escaped - 1
        wide[self.over] += np.sign(wide[self.over]) * further
        wide = join(wide, low, self.c)
        if (wide != wide.astype(np.int32)).any():
            raise ArtifactError(
                "a number of a slice is outside int32", fix="fetch the artifact anew"
            )
        return wide.astype(np.int32)


def split_escapes(escaped: Ints) -> tuple[Bytes, Bits]:
    """Exponents and raw bits of values w."""
    exponents = np.frexp(escaped.astype(np.float64))[1].astype(np.int64) - 1
    return exponents.astype(np.uint8), to_bits(escaped - (1 << exponents), exponents)
