"""The scalars of a slice that are not zero, as signs times one scale.

Positions are the gaps between them in Golomb-Rice code: low bits as they are, the rest in unary.
The scale is the mean magnitude, so a slice of 0 and ±s comes back as it is. Which scalars to keep
is the caller's choice. Source: ComPEFT, arXiv 2311.13171, section 2.2; Golomb 1966; Rice 1979.

    0     scale                float32
    4     count k              uint32, at least 1
    8     low bits l           uint8, 0 … 32
    9     signs                k bits, 1 is negative
    …     low parts            k * l bits: gap mod 2**l
    …     unary parts          per gap floor(gap / 2**l) zeros and a one

A gap is the number of zeros since the scalar before, row by row. Integers are little-endian; each
of the three bit strings fills bytes from the lowest bit and ends with zeros to a whole byte.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svd_hybrid.codec.bitpack import packed_bytes
from svd_hybrid.codec.checks import exact_keys
from svd_hybrid.errors import ArtifactError, ParameterError

HEADER = struct.Struct("<fIB")
MOST_KEPT = 2**32 - 1
MOST_LOW_BITS = 32
Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class SparseSignCodec:
    """value = 0, scale or -scale."""

    name: ClassVar[str] = "sparse-sign"
    version: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32

    def encode_slice(self, x: Tensor) -> bytes:
        """The string of a matrix that has a non-zero scalar."""
        numbers = x.reshape(-1).numpy()
        positions = np.flatnonzero(numbers)
        if positions.size > MOST_KEPT:
            raise ParameterError(f"{positions.size} scalars are kept of one tensor, at most 2**32")
        kept = numbers[positions].astype(np.float64)
        gaps = np.diff(positions, prepend=-1) - 1
        low_bits = best_low_bits(gaps)
        unary = np.zeros(int((gaps >> low_bits).sum()) + gaps.size, np.uint8)
        unary[np.cumsum((gaps >> low_bits) + 1) - 1] = 1
        low = (gaps[:, None] >> np.arange(low_bits)) & 1
        header = HEADER.pack(np.abs(kept).mean(), positions.size, low_bits)
        return header + b"".join(
            np.packbits(bits.reshape(-1).astype(np.uint8), bitorder="little").tobytes()
            for bits in (kept < 0, low, unary)
        )

    def decode_slice(self, data: bytes, shape: tuple[int, int]) -> Tensor:
        """float32; nothing is rounded."""
        if len(data) < HEADER.size:
            raise ArtifactError(f"codec {self.name!r}: {len(data)} bytes hold no header")
        scale, count, low_bits = HEADER.unpack_from(data)
        size = math.prod(shape)
        if not 1 <= count <= size or low_bits > MOST_LOW_BITS or not math.isfinite(scale):
            raise ArtifactError(f"codec {self.name!r}: scale, count or low bits are out of range")
        first = HEADER.size + packed_bytes(count, 1)
        second = first + packed_bytes(count * low_bits, 1)
        if second >= len(data):
            raise ArtifactError(f"codec {self.name!r}: the string ends early")
        octets = np.frombuffer(data, np.uint8)
        low = _bits(octets[first:second], count * low_bits).reshape(count, low_bits)
        ends = np.flatnonzero(np.unpackbits(octets[second:], bitorder="little"))
        if ends.size != count or int(ends[-1]) // 8 != len(data) - second - 1:
            raise ArtifactError(f"codec {self.name!r}: unary parts do not give {count} positions")
        quotients = np.diff(ends, prepend=-1) - 1
        if int(quotients.max()) > size >> low_bits:
            raise ArtifactError(f"codec {self.name!r}: a position lies outside the slice")
        gaps = (quotients << low_bits) + (low.astype(np.int64) << np.arange(low_bits)).sum(1)
        positions = np.cumsum(gaps + 1) - 1
        if int(positions[-1]) >= size:
            raise ArtifactError(f"codec {self.name!r}: a position lies outside the slice")
        negative = _bits(octets[HEADER.size : first], count).astype(np.bool_)
        numbers = np.zeros(size, np.float32)
        numbers[positions] = np.where(negative, -np.float32(scale), np.float32(scale))
        return torch.from_numpy(numbers).reshape(shape)

    def config(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError when there is any key."""
        exact_keys(cls.name, config, ())
        return cls()


def best_low_bits(gaps: Array) -> int:
    """How many low bits give the fewest bits in all; of equals the fewest.

    >>> best_low_bits(np.array([0, 0, 1])), best_low_bits(np.array([20, 19, 18]))
    (0, 3)
    """
    near = max(0, math.ceil(math.log2(float(gaps.mean()) + 1)))
    choices = range(max(0, near - 3), min(near + 1, MOST_LOW_BITS) + 1)
    return min(choices, key=lambda low: gaps.size * low + int((gaps >> low).sum()))


def _bits(octets: Array, count: int) -> Array:
    return np.unpackbits(octets, count=count, bitorder="little")
