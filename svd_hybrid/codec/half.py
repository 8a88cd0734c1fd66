"""FP16 with one power of two per slice, so that small and large parts do not leave its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from svd_hybrid.codec.base import Encoded
from svd_hybrid.codec.checks import exact_keys, stored_array
from svd_hybrid.numerics.reproducible import exponent_above, power_of_two, round_once


def slice_exponents(x: Tensor) -> Tensor:
    """Per slice of the first axis, the e with 2**(e-1) <= largest magnitude < 2**e.

    Args:
        x: (slices, …), float; each slice non-empty.

    Returns:
        (slices,) int16; 0 for a slice of zeros.
    """
    return exponent_above(x.abs().flatten(1).amax(dim=1)).to(torch.int16)


def per_slice(exponents: Tensor, like: Tensor) -> Tensor:
    """2**e as float64, shaped to multiply `like` slice by slice."""
    return power_of_two(exponents.to(torch.int64)).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, slots=True)
class HalfCodec:
    """value = FP16 number * 2**exponent of its slice.

    Relative error at most 2**-11 for values within 2**-14 of the largest of their slice; smaller
    ones lose at most 2**-25 of that largest value. A plain FP16 cast would flush coefficients
    below 6e-8 to zero and overflow above 65504.
    """

    name: ClassVar[str] = "half"
    version: ClassVar[int] = 1

    def encode(self, x: Tensor) -> Encoded:
        """`values` float16 of the shape of `x`, `exponent` int16 (slices,)."""
        exponent = slice_exponents(x)
        values = torch.empty(x.shape, dtype=torch.float16)
        for index in range(x.shape[0]):
            wide = x[index].to(torch.float64)
            values[index] = round_once(
                wide * per_slice(-exponent[index : index + 1], wide), torch.float16
            )
        return {"values": values, "exponent": exponent}

    def decode(self, arrays: Encoded, shape: tuple[int, ...]) -> Tensor:
        """float32; exact, for a power of two only moves the exponent."""
        values = stored_array(arrays, "values", shape, [torch.float16])
        exponent = stored_array(arrays, "exponent", shape[:1], [torch.int16])
        out = values.to(torch.float32)
        for index in range(shape[0]):
            out[index] *= float(2.0 ** int(exponent[index]))
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
