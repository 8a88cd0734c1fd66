"""Bits packed lowest first: bit j of the stream is bit j % 8 of byte j // 8.

Fields follow one another without gaps, each with its lowest bit first; the last byte is filled
with zero bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.errors import ArtifactError

Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]

CHUNK = 1 << 12  # fields unpacked at once; bounds the scratch memory


def to_bits(values: Ints, widths: Ints | int) -> Bits:
    """Fields as an array of single bits.

    Args:
        values: (n,) int64, each below 2**width.
        widths: (n,) int64 or one width for all, at most 40.

    Returns:
        (sum of widths,) uint8 of 0 and 1.
    """
    parts = [np.zeros(0, np.uint8)]
    for start in range(0, len(values), CHUNK):
        piece = values[start : start + CHUNK, None]
        width = widths if isinstance(widths, int) else widths[start : start + CHUNK, None]
        places = np.arange(int(np.max(width)), dtype=np.int64)
        bits = ((piece >> places) & 1).astype(np.uint8)
        parts.append(bits[np.broadcast_to(places < width, bits.shape)])
    return np.concatenate(parts)


def pack(bits: Bits) -> bytes:
    """Bits as bytes, the last one filled with zeros."""
    return np.packbits(bits, bitorder="little").tobytes()


class BitReader:
    """Fields of a packed byte string, one after the other.

    Args:
        data: the whole string; `close` refuses one that holds more than was asked for.
    """

    def __init__(self, data: bytes) -> None:
        self.data = np.frombuffer(data, np.uint8)
        self.place = 0

    def bits(self, count: int) -> Bits:
        """The next `count` single bits.

        Raises:
            ArtifactError: the string ends before them.
        """
        first, last = self.place // 8, (self.place + count + 7) // 8
        if last > len(self.data):
            raise ArtifactError("a packed bit string ends too early", fix="fetch the artifact anew")
        skip = self.place % 8
        self.place += count
        flat = np.unpackbits(self.data[first:last], bitorder="little")
        return flat[skip : skip + count]

    def fields(self, widths: Ints) -> Ints:
        """Fields of given widths: (n,) int64."""
        values = np.zeros(len(widths), np.int64)
        for start in range(0, len(widths), CHUNK):
            width = widths[start : start + CHUNK]
            places = np.arange(int(width.max()), dtype=np.int64)
            used = places < width[:, None]
            bits = np.zeros(used.shape, np.int64)
            bits[used] = self.bits(int(width.sum()))
            values[start : start + CHUNK] = (bits << places).sum(axis=1)
        return values

    def uniform(self, count: int, width: int) -> Ints:
        """`count` fields of one width: (count,) int64."""
        return self.fields(np.full(count, width, np.int64)) if width else np.zeros(count, np.int64)

    def number(self, width: int) -> int:
        """One field."""
        return int(sum(int(bit) << j for j, bit in enumerate(self.bits(width))))

    def close(self) -> None:
        """Make sure that only zero bits of the last byte are left.

        Raises:
            ArtifactError: there is more.
        """
        left = len(self.data) * 8 - self.place
        if left >= 8 or self.bits(left).any():
            raise ArtifactError("a packed bit string is too long", fix="fetch the artifact anew")
