"""Numbers as they are: float32, four bytes each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from svd_hybrid.codec.base import Encoded
from svd_hybrid.codec.checks import exact_keys, stored_array


@dataclass(frozen=True, slots=True)
class RawCodec:
    """float32 verbatim; the only error is the rounding of float64 input."""

    name: ClassVar[str] = "raw"
    version: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32

    def encode(self, x: Tensor) -> Encoded:
        """One array, `values`, float32, of the shape of `x`."""
        return {"values": x.to(torch.float32).contiguous()}

    def decode(self, arrays: Encoded, shape: tuple[int, ...]) -> Tensor:
        """The stored values, float32."""
        return stored_array(arrays, "values", shape, [torch.float32])

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """`values` has the shape of the tensor."""
        return {"values": shape}

    def config(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError when there is any key."""
        exact_keys(cls.name, config, ())
        return cls()
