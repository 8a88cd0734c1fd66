"""Groupwise codes around zero, some to a byte, compressed by zstd; made to be fast.

value = code * step * 2**exponent, with code in -L … L, L = 2**(bits - 1) - 1. Groups are scalars
that follow each other in the slice, row by row; a group's step is its largest magnitude over L, or
with 2 and 3 bits that times the REACH with the smallest error, rounded up. Steps and codes are
exact in float32, so decoding rounds only what is subnormal there.

    0     exponent             int16
    2     zstd frame without its first four bytes, of
              high bytes of the steps, one per group
              low bytes of the steps (float16)
              codes            each plus L, floor(8 / bits) to a byte, the first in the lowest bits

The last group and the last byte are filled with zeros, code L. Source: codec design §5 (G), §6.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svd_hybrid.codec.checks import exact_keys, integer_in
from svd_hybrid.codec.half import LARGEST_EXPONENT
from svd_hybrid.codec.residual import LARGEST_GROUP
from svd_hybrid.errors import ArtifactError, ParameterError
from svd_hybrid.frames import MAGIC, compress, decompress_exactly

LEVEL = 1
"""zstd's; higher ones search for repetitions, of which codes have none."""
BLOCK_SCALARS = 2**16
"""Scalars coded at a time, about; their temporaries stay in the processor's cache."""
REACH = {2: (1.0, 0.7, 0.5), 3: (1.0, 0.8)}
"""How far codes reach, over the largest magnitude of the group; numbers beyond are cut off."""
PLAIN_EXPONENTS = range(-60, 101)
"""Slices whose inverse steps are float32; others are scaled by a power of two first."""
EXACT_EXPONENTS = range(-100, 101)
"""Slices whose steps and numbers are normal float32 numbers; others are rounded once."""
WORDS: dict[int, Any] = {2: "<u2", 4: "<u4"}
EXPONENT = struct.Struct("<h")
Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ZstdAffineCodec:
    """Symmetric quantiser with `bits` bits and float16 steps.

    Args:
        bits: 2..8.
        group_size: scalars that share a step, 1..2**20.
    """

    name: ClassVar[str] = "zstd-affine"
    version: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32

    bits: int
    group_size: int = 64

    def __post_init__(self) -> None:
        for name, low, high in (("bits", 2, 8), ("group_size", 1, LARGEST_GROUP)):
            if not low <= getattr(self, name) <= high:
                raise ParameterError(f"{name} is {getattr(self, name)}, outside {low}..{high}")

    @property
    def _largest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def _per_byte(self) -> int:
        return 8 // self.bits

    def encode_slice(self, x: Tensor) -> bytes:
        """The string of a matrix."""
        numbers = self._whole_groups(x.to(torch.float32).contiguous().view(-1).numpy())
        count = len(numbers)
        maxima = np.empty(count, np.float32)
        for some in self._blocks(count):
            block = numbers[some]
            np.maximum(block.max(axis=1), -block.min(axis=1), out=maxima[some])
        exponent = math.frexp(float(maxima.max()))[1]
        # numbers are scaled by a power of two first where float32 would not hold the inverse steps
        shift = 0 if exponent in PLAIN_EXPONENTS else exponent
        planes = np.empty(self._plane_bytes(count), np.uint8)
        for some in self._blocks(count):
            block = numbers[some]
            if shift:
                block = np.ldexp(block.astype(np.float64), -shift).astype(np.float32)
            largest = np.ldexp(maxima[some].astype(np.float64), -exponent)
            step, codes = self._quantised(block, largest, exponent - shift)
            words = step.view(np.uint16)
            planes[some] = words >> 8
            planes[count + some.start : count + some.stop] = words & 255
            planes[self._place(some, count)] = self._packed(codes)
        frame = compress(planes.tobytes(), LEVEL, with_size=False)
        return EXPONENT.pack(exponent) + frame.removeprefix(MAGIC)

    def _quantised(self, block: Array, largest: Array, exponent: int) -> tuple[Array, Array]:
        """Float16 steps (groups,), and codes (groups, size) uint8.

        Args:
            block: (groups, size) float32.
            largest: (groups,) float64, the groups' largest magnitudes over 2**exponent; at most 1.
            exponent: steps are in units of 2**exponent.
        """
        reaches = REACH.get(self.bits, (1.0,))
        tried = [self._with_reach(block, largest * reach, exponent) for reach in reaches]
        if len(tried) == 1:
            return tried[0]
        errors = []
        for step, codes in tried:
            rebuilt = codes.astype(np.float32)
            rebuilt -= self._largest
            rebuilt *= np.ldexp(step.astype(np.float32), exponent)[:, None]
            rebuilt -= block
            errors.append(np.einsum("ij,ij->i", rebuilt, rebuilt))
        best = np.argmin(errors, axis=0)
        steps, codes = (np.stack(arrays) for arrays in zip(*tried, strict=True))
        groups = np.arange(len(best))
        return steps[best, groups], codes[best, groups]

    def _with_reach(self, block: Array, reach: Array, exponent: int) -> tuple[Array, Array]:
        """As `_quantised`, for codes that reach so far."""
        exact = reach / self._largest
        near = exact.astype(np.float16)
        step = np.where(near < exact, np.nextafter(near, np.float16(np.inf)), near)
        wide = step.astype(np.float64)
        inverse = np.divide(2.0**-exponent, wide, out=np.zeros_like(wide), where=wide != 0)
        scaled = block * inverse.astype(np.float32)[:, None]
        scaled += self._largest + 0.5
        if self.bits in REACH:
            np.clip(scaled, 0.5, 2 * self._largest + 0.5, out=scaled)
        return step, scaled.astype(np.uint8)  # which cuts off, so codes are the nearest

    def decode_slice(self, data: bytes, shape: tuple[int, int]) -> Tensor:
        """float32; the same bits everywhere, for nothing is added but integers."""
        if len(data) < EXPONENT.size:
            raise ArtifactError(f"codec {self.name!r}: {len(data)} bytes hold no exponent")
        (exponent,) = EXPONENT.unpack_from(data)
        if abs(exponent) > LARGEST_EXPONENT:
            raise ArtifactError(f"codec {self.name!r}: exponent {exponent} is out of range")
        size = math.prod(shape)
        count = -(-size // self.group_size)
        frame = MAGIC + data[EXPONENT.size :]
        planes = np.frombuffer(decompress_exactly(frame, self._plane_bytes(count)), np.uint8)
        words = (planes[:count].astype(np.uint16) << 8) | planes[count : 2 * count]
        halves = words.view(np.float16)
        if not np.isfinite(halves).all():
            raise ArtifactError(f"codec {self.name!r}: a step is not finite")
        wide: type[Any] = np.float32 if exponent in EXACT_EXPONENTS else np.float64
        steps = np.ldexp(halves.astype(wide), exponent)[:, None]
        numbers = np.empty((count, self.group_size), np.float32)
        for some in self._blocks(count):
            codes = self._unpacked(planes[self._place(some, count)], numbers[some].size)
            centred = codes.reshape(-1, self.group_size).astype(wide)
            centred -= self._largest
            numbers[some] = np.multiply(centred, steps[some], out=centred)
        return torch.from_numpy(numbers.reshape(-1)[:size]).reshape(shape)

    def _whole_groups(self, numbers: Array) -> Array:
        """(groups, size); the last group is filled with zeros."""
        missing = -numbers.size % self.group_size
        return (np.pad(numbers, (0, missing)) if missing else numbers).reshape(-1, self.group_size)

    def _blocks(self, count: int) -> Iterator[slice]:
        """Some groups at a time; all but the last block fill whole bytes."""
        step = max(1, BLOCK_SCALARS // (4 * self.group_size)) * 4
        return (slice(first, min(first + step, count)) for first in range(0, count, step))

    def _place(self, some: slice, count: int) -> slice:
        """Where the codes of a block of groups are."""
        ends = (
            -(-groups * self.group_size // self._per_byte) for groups in (some.start, some.stop)
        )
        return slice(*(2 * count + end for end in ends))

    def _plane_bytes(self, count: int) -> int:
        """Bytes of the steps and codes of so many groups, before compression."""
        return 2 * count - (-count * self.group_size // self._per_byte)

    def _packed(self, codes: Array) -> Array:
        """Codes of a block of groups, some to a byte."""
        codes, per_byte = codes.reshape(-1), self._per_byte
        if per_byte == 1:
            return codes
        missing = -codes.size % per_byte
        if missing:
            codes = np.pad(codes, (0, missing), constant_values=self._largest)
        words = codes.view(WORDS[per_byte])
        packed = words.copy()
        for place in range(1, per_byte):
            packed |= words >> (place * (8 - self.bits))
        octets: Array = packed.astype(np.uint8)
        return octets

    def _unpacked(self, packed: Array, size: int) -> Array:
        """The codes of a block."""
        per_byte = self._per_byte
        if per_byte == 1:
            return packed
        words = packed.astype(WORDS[per_byte])
        spread = words & (2**self.bits - 1)
        for place in range(1, per_byte):
            digit = (words >> (place * self.bits)) & (2**self.bits - 1)
            spread |= digit << (place * 8)
        codes: Array = spread.view(np.uint8)[:size]
        return codes

    def config(self) -> dict[str, Any]:
        """Bits and group size."""
        return {"bits": self.bits, "group_size": self.group_size}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError for a missing, unknown or illegal key."""
        exact_keys(cls.name, config, ("bits", "group_size"))
        return cls(
            bits=integer_in(cls.name, config, "bits", 2, 8),
            group_size=integer_in(cls.name, config, "group_size", 1, LARGEST_GROUP),
        )
