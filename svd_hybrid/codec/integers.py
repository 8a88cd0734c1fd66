"""Integers in units of a step, entropy-coded: what the `auto` profile stores everything in.

Three kinds of rows, by configuration:

    scaled      value = k * scale, the scale a bfloat16 in the first two bytes of the string
    rotated     rows of k * scale, rotated back by numerics.hadamard
    unit        value = k / sqrt(sum of the row's k**2): rows of norm 1, no scale is stored

Source: codec design §6 and §11; entropy coding is codec.entropy's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.codec.checks import exact_keys
from svd_hybrid.codec.entropy import decode, encode
from svd_hybrid.errors import ArtifactError, ParameterError
from svd_hybrid.numerics.hadamard import rotate, rotate_back
from svd_hybrid.numerics.largest import all_finite, largest_magnitude

SCALE_BYTES = 2
FINEST = 2.0**20
"""Units in the largest number when a caller gives no scale."""
ROWS = ("scaled", "rotated", "unit")
MOST_SQUARES_LOG = 62
"""Unit rows have a sum of squares below 2**62, so that 64-bit integers hold it."""


@dataclass(frozen=True, slots=True)
class IntegersCodec:
    """Integer matrices by the entropy coder.

    Args:
        rows: what the integers of a row stand for.
    """

    name: ClassVar[str] = "integers"
    version: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32

    rows: Literal["scaled", "rotated", "unit"] = "scaled"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ParameterError(f"rows is {self.rows!r}", fix=f"use {', '.join(ROWS)}")

    def encode_slice(self, x: Tensor) -> bytes:
        """The string of a matrix, 21 bits to the largest number (of each row, for unit rows)."""
        wide = x.to(torch.float64)
        if self.rows == "unit":
            largest = wide.abs().amax(1, keepdim=True)
            return self.pack((wide / torch.where(largest == 0, 1.0, largest) * FINEST).round())
        if self.rows == "rotated":
            wide = rotate(wide)
        scale = stored_scale(float(wide.abs().max()) / FINEST)
        return self.pack((wide / scale).round(), scale)

    def pack(self, numbers: Tensor, scale: float = 1.0) -> bytes:
        """The string of integers; empty when all are zero.

        Args:
            numbers: (rows, columns), integers of int32 range in any dtype.
            scale: of one unit, > 0; `stored_scale` says what a reader will see of it.
        """
        string = encode(numbers.to(torch.int32).numpy())
        if not string or self.rows == "unit":
            return string
        return scale_bits(scale) + string

    def decode_slice(self, data: bytes, shape: tuple[int, int]) -> Tensor:
        """float32; every number rounded from float64 once."""
        scale, string = 1.0, data
        if self.rows != "unit":
            if len(data) <= SCALE_BYTES:
                raise ArtifactError(f"codec {self.name!r}: {len(data)} bytes hold no numbers")
            scale, string = scale_of(data[:SCALE_BYTES]), data[SCALE_BYTES:]
        matrix, _ = decode(string, shape)
        numbers = torch.from_numpy(matrix)
        return unit_rows(numbers) if self.rows == "unit" else finite_rows(numbers, scale, self)

    def config(self) -> dict[str, Any]:
        """The one parameter."""
        return {"rows": self.rows}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError when a key or its value is not known."""
        exact_keys(cls.name, config, ("rows",))
        if config["rows"] not in ROWS:
            raise ArtifactError(f"codec {cls.name!r}: rows is {config['rows']!r}")
        return cls(config["rows"])


class _RowCodec(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> str: ...


def finite_rows(numbers: Tensor, scale: float, codec: _RowCodec) -> Tensor:
    """Integers times a scale, rotated back where the codec's rows are `rotated`.

    Args:
        numbers: (rows, columns) int32.
        scale: of one unit.
        codec: whose `rows` say what they stand for.

    Returns:
        float32, same shape; every number rounded from float64 once.

    Raises:
        ArtifactError: a number leaves float32.
    """
    if codec.rows == "rotated":
        values = rotate_back(numbers, scale)
    else:
        values = (numbers.to(torch.float64) * scale).to(torch.float32)
    if not all_finite(values):
        raise ArtifactError(f"codec {codec.name!r}: a number leaves float32")
    return values


def unit_rows(numbers: Tensor) -> Tensor:
    """Rows of integers divided by their norms; rows of zeros stay.

    Args:
        numbers: (r, n) int32.

    Returns:
        (r, n) float32: RN32(k * RN64(1 / RN64(sqrt(sum k**2)))), the sum exact.

    Raises:
        ArtifactError: a sum of squares reaches 2**62.
    """
    wide = numbers.to(torch.int64)
    largest = int(largest_magnitude(numbers))
    if largest**2 * wide.shape[1] >> MOST_SQUARES_LOG:  # may not fit: summed in two halves
        high, low = ((wide * wide) >> 32).sum(1), ((wide * wide) & 0xFFFFFFFF).sum(1)
        if bool((high + (low >> 32) >= 1 << (MOST_SQUARES_LOG - 32)).any()):
            raise ArtifactError("codec 'integers': a row of norm 1 has too large integers")
    squares = (wide * wide).sum(1, keepdim=True).to(torch.float64)
    inverse = 1.0 / torch.where(squares == 0, 1.0, squares).sqrt()
    return (numbers.to(torch.float64) * inverse).to(torch.float32)


def stored_scale(scale: float) -> float:
    """The nearest scale that the format holds: a bfloat16, at least the smallest normal one.

    >>> stored_scale(0.1)
    0.10009765625
    """
    return scale_of(scale_bits(scale))


def scale_bits(scale: float) -> bytes:
    """The nearest bfloat16, lowest byte first."""
    bounded = min(max(scale, 2.0**-126), 2.0**127)
    word = int(np.float32(bounded).view(np.uint32))
    rounded = (word + 0x7FFF + (word >> 16 & 1)) >> 16
    return struct.pack("<H", rounded)


def scale_of(octets: bytes) -> float:
    """What `scale_bits` gave; refuses what is not a positive number."""
    (word,) = struct.unpack("<H", octets)
    scale = float(np.uint32(word << 16).view(np.float32))
    if not (0.0 < scale < float("inf")):
        raise ArtifactError(f"codec 'integers': scale {scale} is not a positive number")
    return scale
