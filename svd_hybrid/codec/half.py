"""FP16 with one power of two per slice, so that small and large parts do not leave its range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from svd_hybrid.codec.base import Encoded
from svd_hybrid.codec.checks import exact_keys, stored_array
from svd_hybrid.errors import ArtifactError
from svd_hybrid.numerics.reproducible import exponent_above, power_of_two, round_once

BLOCK_SCALARS = 2**17
"""Scalars coded at a time: their temporaries stay in the processor's cache, and out of the way."""
LARGEST_EXPONENT = 1022  # 2**e and 2**-e are then normal float64 numbers


def slice_exponents(x: Tensor) -> Tensor:
    """Per slice of the first axis, the e with 2**(e-1) <= largest magnitude < 2**e.

    Args:
        x: (slices, …), float; each slice non-empty.

    Returns:
        (slices,) int16; 0 for a slice of zeros; within `LARGEST_EXPONENT`.
    """
    flat = x.flatten(1)
    exponents = exponent_above(torch.maximum(flat.amax(dim=1), -flat.amin(dim=1)))
    return exponents.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).to(torch.int16)


def stored_exponents(arrays: Encoded, name: str, slices: int) -> Tensor:
    """The array of that name, int16 (slices,), once its values are in range.

    Raises:
        ArtifactError: it is missing, or not as the format says.
    """
    exponents = stored_array(arrays, name, (slices,), [torch.int16])
    if bool((exponents.to(torch.int64).abs() > LARGEST_EXPONENT).any()):
        raise ArtifactError(f"stored array {name!r} leaves -{LARGEST_EXPONENT}..{LARGEST_EXPONENT}")
    return exponents


def per_slice(exponents: Tensor, like: Tensor) -> Tensor:
    """2**e as float64, shaped to multiply `like` slice by slice."""
    return power_of_two(exponents.to(torch.int64)).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, slots=True)
class HalfCodec:
    """value = FP16 number * 2**exponent of its slice.

    The error is at most 2**-11 of the value or 2**-25 * 2**exponent, whichever is larger. A plain
    FP16 cast would flush coefficients below 6e-8 to zero and overflow above 65504.
    """

    name: ClassVar[str] = "half"
    version: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32

    def encode(self, x: Tensor) -> Encoded:
        """`values` float16 of the shape of `x`, `exponent` int16 (slices,)."""
        exponent = slice_exponents(x)
        values = torch.empty(x.shape, dtype=torch.float16)
        for index, e in enumerate(exponent.tolist()):
            numbers, rounded = x[index].reshape(-1), values[index].view(-1)
            for first in range(0, numbers.numel(), BLOCK_SCALARS):
                block = slice(first, first + BLOCK_SCALARS)
                wide = numbers[block].to(torch.float64) * math.ldexp(1.0, -e)
                rounded[block] = round_once(wide, torch.float16)
        return {"values": values, "exponent": exponent}

    def decode(self, arrays: Encoded, shape: tuple[int, ...]) -> Tensor:
        """float32; exact as long as it is a normal number, for only the exponent moves."""
        values = stored_array(arrays, "values", shape, [torch.float16])
        exponent = stored_exponents(arrays, "exponent", shape[0])
        out = values.to(torch.float32)
        for index, e in enumerate(exponent.tolist()):
            if -126 <= e <= 127:  # 2**e is a float32, so nothing wider is needed
                out[index] *= math.ldexp(1.0, e)
            else:
                out[index] = values[index].to(torch.float64) * math.ldexp(1.0, e)
        return out

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """`values` has the shape of the tensor, `exponent` its first axis."""
        return {"values": shape, "exponent": shape[:1]}

    def config(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError when there is any key."""
        exact_keys(cls.name, config, ())
        return cls()
