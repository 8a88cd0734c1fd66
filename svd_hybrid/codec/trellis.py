"""Numbers rounded along a trellis and entropy-coded: the rest of the `max` profile.

Two kinds of rows, by configuration, as for `integers`; a unit is half a step:

    scaled      value = v * scale, the scale a bfloat16 in the first two bytes of the string
    rotated     rows of v * scale, rotated back by numerics.hadamard

What v is follows from the stored indices and their places (codec.entropy.trellis_paths).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.codec.checks import exact_keys
from svd_hybrid.codec.entropy import Prepared, classify, decode, prepare
from svd_hybrid.codec.entropy.trellis_search import PRICE, search
from svd_hybrid.codec.integers import SCALE_BYTES, finite_rows, scale_bits, scale_of, stored_scale
from svd_hybrid.errors import ArtifactError, ParameterError
from svd_hybrid.numerics.hadamard import rotate

ROWS = ("scaled", "rotated")
FINEST = 2.0**20
"""Half steps in the largest number when a caller names no step."""


@dataclass(frozen=True, slots=True)
class Searched:
    """A matrix as indices along the trellis.

    Args:
        prepared: to be coded.
        halves: (rows, columns) int32, what they stand for in half steps.
    """

    prepared: Prepared
    halves: Tensor


@dataclass(frozen=True, slots=True)
class TrellisCodec:
    """Matrices rounded along a trellis.

    Args:
        rows: what the numbers of a row stand for.
    """

    name: ClassVar[str] = "trellis"
    version: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32

    rows: Literal["scaled", "rotated"] = "scaled"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ParameterError(f"rows is {self.rows!r}", fix=f"use {', '.join(ROWS)}")

    def encode_slice(self, x: Tensor) -> bytes:
        """The string of a matrix, 21 bits to the largest number."""
        wide = x.to(torch.float64)
        if self.rows == "rotated":
            wide = rotate(wide)
        half = stored_scale(float(wide.abs().max()) / FINEST)
        return scale_bits(half) + searched(wide / half, price=0.0).prepared.written()

    def decode_slice(self, data: bytes, shape: tuple[int, int]) -> Tensor:
        """float32; every number rounded from float64 once."""
        if len(data) <= SCALE_BYTES:
            raise ArtifactError(f"codec {self.name!r}: {len(data)} bytes hold no numbers")
        scale = scale_of(data[:SCALE_BYTES])
        matrix, _ = decode(data[SCALE_BYTES:], shape, trellis=True)
        halves = torch.from_numpy(matrix)
        return finite_rows(halves, scale, self)

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


def searched(halves: Tensor, price: float = PRICE) -> Searched:
    """The way through the trellis with least squared error plus priced bits.

    Args:
        halves: (rows, columns) float, in half steps, below 2**30.
        price: squared half steps that one bit is worth.
    """
    values = halves.to(torch.float32).numpy()
    classes = classify(np.rint(values / 2).astype(np.int32))
    indices, chosen = search(values, classes, price)
    return Searched(prepare(indices, classes, trellis=True), torch.from_numpy(chosen))
