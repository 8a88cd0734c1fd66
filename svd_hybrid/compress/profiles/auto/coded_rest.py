"""One task's rest as it is stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svd_hybrid.codec import IntegersCodec, TrellisCodec
from svd_hybrid.codec.entropy import Prepared, prepare
from svd_hybrid.codec.integers import SCALE_BYTES, scale_bits
from svd_hybrid.numerics.hadamard import rotate_back

RestCodec = IntegersCodec | TrellisCodec


@dataclass(frozen=True, slots=True)
class PackedRest:
    """The string of a rest."""

    codec: RestCodec
    string: bytes


@dataclass(frozen=True, slots=True)
class CodedRest:
    """A rest as integers.

    Args:
        numbers: (m, n) int32, times the scale: the rest, or its rotated rows.
        scale: of one unit, as it is stored.
        codec: it is stored by.
        prepared: the numbers, or their indices, to be coded.
    """

    numbers: Tensor
    scale: float
    codec: RestCodec
    prepared: Prepared

    @property
    def rotated(self) -> bool:
        """Whether the numbers stand for rotated rows."""
        return self.codec.rows == "rotated"

    def decoded(self) -> Tensor:
        """(m, n) float32, as a reader sees it."""
        if self.rotated:
            return rotate_back(self.numbers, self.scale)
        return (self.numbers.to(torch.float64) * self.scale).to(torch.float32)

    @property
    def size(self) -> float:
        """Bytes of the string, about."""
        return SCALE_BYTES + self.prepared.size

    def packed(self) -> PackedRest:
        """The rest as its string."""
        string = self.prepared.written()
        return PackedRest(self.codec, scale_bits(self.scale) + string if string else b"")


def plain_rest(numbers: Tensor, scale: float, *, rotated: bool = False) -> CodedRest:
    """A rest of multiples of a scale that `stored_scale` gave: (m, n), integers of any dtype."""
    whole = numbers.to(torch.int32)
    codec = IntegersCodec("rotated" if rotated else "scaled")
    return CodedRest(whole, scale, codec, prepare(whole.numpy()))
