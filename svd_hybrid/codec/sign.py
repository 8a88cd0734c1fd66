"""One bit a scalar: its sign, times the mean magnitude of its row or of the whole slice.

The mean magnitude is the scale with the smallest squared error. Source: BitDelta, arXiv 2402.10193,
equation 3 (there one scale per matrix, afterwards distilled).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.codec.base import Encoded
from svd_hybrid.codec.bitpack import pack, packed_bytes, unpack
from svd_hybrid.codec.checks import exact_keys, stored_array
from svd_hybrid.codec.half import HalfCodec
from svd_hybrid.errors import ArtifactError

SCOPES = ("row", "slice")
ADDED_AT_ONCE = 2**17
"""Scalars of a row that are added before the next ones; part of what decides the last bit."""


@dataclass(frozen=True, slots=True)
class SignCodec:
    """value = scale, or -scale where the bit is set.

    Args:
        scale: what shares a scale, "row" or "slice"; a slice is then coded as one long row.
    """

    name: ClassVar[str] = "sign"
    version: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32

    scale: Literal["row", "slice"] = "row"

    def encode(self, x: Tensor) -> Encoded:
        """`bits` packed uint8, `scale` float16 (slices, rows), `exponent` int16 (slices,)."""
        rows = x.reshape(self._rows(tuple(x.shape)))
        scales = torch.stack([mean_magnitudes(part) for part in rows])
        half = HalfCodec().encode(scales)
        return {
            "bits": pack((rows < 0).to(torch.uint8), 1),
            "scale": half["values"],
            "exponent": half["exponent"],
        }

    def decode(self, arrays: Encoded, shape: tuple[int, ...]) -> Tensor:
        """float32; nothing is rounded but a scale below the normal numbers."""
        layout, rows = self.layout(shape), self._rows(shape)
        bits = stored_array(arrays, "bits", layout["bits"], [torch.uint8])
        scale = stored_array(arrays, "scale", layout["scale"], [torch.float16])
        half = {"values": scale, "exponent": arrays.get("exponent", scale)}
        scales = HalfCodec().decode(half, layout["scale"]).unsqueeze(-1)
        negative = unpack(bits, 1, rows[-1]).to(torch.bool)
        return torch.where(negative, -scales, scales).reshape(shape)

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """`bits` eight scalars a byte, `scale` one number a row, `exponent` one a slice."""
        rows = self._rows(shape)
        bits = (*rows[:-1], packed_bytes(rows[-1], 1))
        return {"bits": bits, "scale": rows[:-1], "exponent": rows[:1]}

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Slices, rows, and the scalars of a row, which share a scale."""
        n = shape[-1] if self.scale == "row" else math.prod(shape[1:])
        return shape[0], math.prod(shape[1:]) // n, n

    def config(self) -> dict[str, Any]:
        """What shares a scale."""
        return {"scale": self.scale}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError for a missing, unknown or illegal key."""
        exact_keys(cls.name, config, ("scale",))
        if config["scale"] not in list(SCOPES):  # a list: JSON values need not be hashable
            raise ArtifactError(
                f"codec {cls.name!r}: scale is {config['scale']!r}, must be row or slice"
            )
        return cls(config["scale"])


def mean_magnitudes(rows: Tensor) -> Tensor:
    """Mean absolute value along the last axis, float64, added in one order on one thread.

    Args:
        rows: (…, n), n >= 1, any float dtype.
    """
    matrix = rows.reshape(-1, rows.shape[-1])
    count, n = matrix.shape
    totals = np.zeros(count)
    some = max(1, ADDED_AT_ONCE // n)
    for column in range(0, n, ADDED_AT_ONCE):
        for row in range(0, count, some):
            block = matrix[row : row + some, column : column + ADDED_AT_ONCE].to(torch.float64)
            totals[row : row + some] += np.abs(block.contiguous().numpy()).sum(axis=-1)
    return torch.from_numpy(totals / n).reshape(rows.shape[:-1])
