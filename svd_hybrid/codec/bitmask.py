"""Boolean masks, one bit a scalar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from svd_hybrid.codec.base import Encoded
from svd_hybrid.codec.bitpack import pack, packed_bytes, unpack
from svd_hybrid.codec.checks import exact_keys, stored_array


@dataclass(frozen=True, slots=True)
class BitmaskCodec:
    """True is 1; first scalar of a row in the lowest bit of its first byte."""

    name: ClassVar[str] = "bitmask"
    version: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.bool

    def encode(self, x: Tensor) -> Encoded:
        """`bits` uint8 (…, ceil(n / 8)) for a bool tensor (…, n)."""
        return {"bits": pack(x.to(torch.uint8), 1)}

    def decode(self, arrays: Encoded, shape: tuple[int, ...]) -> Tensor:
        """The bool tensor."""
        bits = stored_array(arrays, "bits", self.layout(shape)["bits"], [torch.uint8])
        return unpack(bits, 1, shape[-1]).to(torch.bool)

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """`bits` has the rows of the tensor, eight scalars a byte."""
        return {"bits": (*shape[:-1], packed_bytes(shape[-1], 1))}

    def config(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError when there is any key."""
        exact_keys(cls.name, config, ())
        return cls()
