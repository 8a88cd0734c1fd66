"""Multi-stage residual quantisation (the RTVQ of the SVD-Hybrid documentation), bit-packed.

Stage 1 quantises the data, every further stage what the stages before left over; the value is the
sum. Not the published RTVQ (a shared base vector plus offsets): hence the name `residual-affine`.
S stages of b bits cost S*b bits and are a little worse than one stage of S*b bits; what they buy is
that the first stages decode alone. Source: methods.md §20.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from svd_hybrid.codec.affine import (
    compute_scale,
    dequantize,
    join_groups,
    quantize,
    split_groups,
)
from svd_hybrid.codec.base import Encoded
from svd_hybrid.codec.bitpack import pack, packed_bytes, unpack
from svd_hybrid.codec.checks import exact_keys, integer_in, stored_array
from svd_hybrid.codec.half import per_slice, slice_exponents, stored_exponents
from svd_hybrid.errors import ArtifactError, ParameterError

MOST_STAGES = 16
LARGEST_GROUP = 2**20
STEP_DTYPES = {"F16": torch.float16, "F32": torch.float32}
ZERO_DTYPES = (torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True, slots=True)
class ResidualAffineCodec:
    """`stages` affine quantisers of `bits` bits in a row, each with its own steps and zeros.

    Args:
        bits: bits per code and stage, 1..8.
        stages: 1..16.
        group_size: scalars that share a step, along the row; 0 when a whole slice shares one.
        step: dtype of the steps, "F16" or "F32".
    """

    name: ClassVar[str] = "residual-affine"
    version: ClassVar[int] = 1

    bits: int
    stages: int = 1
    group_size: int = 64
    step: str = "F16"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ParameterError(f"low_bits is {self.bits}, outside 1..8")
        if not 1 <= self.stages <= MOST_STAGES:
            raise ParameterError(f"rtvq_stages is {self.stages}, outside 1..{MOST_STAGES}")
        if not 0 <= self.group_size <= LARGEST_GROUP:
            raise ParameterError(f"group_size is {self.group_size}, outside 0..{LARGEST_GROUP}")

    def encode(self, x: Tensor) -> Encoded:
        """Per stage: `codes` packed uint8, `step`, `zero` (…, groups), `exponent` (slices,)."""
        slices = [self._encode_slice(x[index : index + 1]) for index in range(x.shape[0])]
        arrays = {name: torch.cat([part[name] for part in slices]) for name in slices[0]}
        return {
            name: _narrowest(array) if name.endswith("zero") else array
            for name, array in arrays.items()
        }

    def _encode_slice(self, x: Tensor) -> dict[str, Tensor]:
        left = self._rows(x).to(torch.float64)
        arrays: dict[str, Tensor] = {}
        for stage in range(self.stages):
            exponent = slice_exponents(left)
            unit = per_slice(exponent, left)
            groups = split_groups(left / unit, self.group_size)
            exact, zero = compute_scale(groups, self.bits, STEP_DTYPES[self.step])
            codes = quantize(groups, exact, zero, self.bits)
            step = exact.to(STEP_DTYPES[self.step])
            arrays |= {
                f"stage{stage}.codes": pack(join_groups(codes, left.shape[-1]), self.bits),
                f"stage{stage}.step": step,
                f"stage{stage}.zero": zero,
                f"stage{stage}.exponent": exponent,
            }
            left = left - join_groups(dequantize(codes, step, zero), left.shape[-1]) * unit
        return arrays

    def _rows(self, x: Tensor) -> Tensor:
        """What groups run along: the rows, or the whole slice as one row."""
        return x if self.group_size else x.flatten(1)

    def decode(self, arrays: Encoded, shape: tuple[int, ...]) -> Tensor:
        """Sum of the stages, in float64, rounded once to float32."""
        stored = [self._stage_arrays(arrays, shape, stage) for stage in range(self.stages)]
        out = torch.empty(shape, dtype=torch.float32)
        rows = self._rows(out)
        for index in range(shape[0]):
            rows[index] = self._decode_slice(
                [[a[index : index + 1] for a in s] for s in stored], rows.shape[-1]
            )
        return out

    def _stage_arrays(self, arrays: Encoded, shape: tuple[int, ...], stage: int) -> list[Tensor]:
        layout = self.layout(shape)

        def array(kind: str, dtypes: tuple[torch.dtype, ...]) -> Tensor:
            name = f"stage{stage}.{kind}"
            return stored_array(arrays, name, layout[name], dtypes)

        return [
            array("codes", (torch.uint8,)),
            array("step", (STEP_DTYPES[self.step],)),
            array("zero", ZERO_DTYPES),
            stored_exponents(arrays, f"stage{stage}.exponent", shape[0]),
        ]

    def _decode_slice(self, stages: list[list[Tensor]], n: int) -> Tensor:
        total: Tensor | None = None
        for packed, step, zero, exponent in stages:
            groups = split_groups(unpack(packed, self.bits, n), self.group_size)
            value = join_groups(dequantize(groups, step, zero), n)
            value = value * per_slice(exponent, value)
            total = value if total is None else total + value
        assert total is not None  # stages >= 1
        return total[0].to(torch.float32)

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the four arrays of every stage."""
        if not self.group_size:
            shape = (shape[0], math.prod(shape[1:]))
        n = shape[-1]
        groups = -(-n // (self.group_size or n))
        shapes: dict[str, tuple[int, ...]] = {}
        for stage in range(self.stages):
            shapes |= {
                f"stage{stage}.codes": (*shape[:-1], packed_bytes(n, self.bits)),
                f"stage{stage}.step": (*shape[:-1], groups),
                f"stage{stage}.zero": (*shape[:-1], groups),
                f"stage{stage}.exponent": shape[:1],
            }
        return shapes

    def config(self) -> dict[str, Any]:
        """Bits, stages, group size and step dtype."""
        return {
            "bits": self.bits,
            "stages": self.stages,
            "group_size": self.group_size,
            "step": self.step,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError for a missing, unknown or illegal key."""
        exact_keys(cls.name, config, ("bits", "stages", "group_size", "step"))
        if config["step"] not in list(STEP_DTYPES):  # a list: JSON values need not be hashable
            raise ArtifactError(
                f"codec {cls.name!r}: step is {config['step']!r}, must be F16 or F32"
            )
        return cls(
            bits=integer_in(cls.name, config, "bits", 1, 8),
            stages=integer_in(cls.name, config, "stages", 1, MOST_STAGES),
            group_size=integer_in(cls.name, config, "group_size", 0, LARGEST_GROUP),
            step=config["step"],
        )


def _narrowest(zeros: Tensor) -> Tensor:
    """The integers in the smallest dtype that holds them all."""
    low, high = int(zeros.min()), int(zeros.max())
    for dtype in ZERO_DTYPES:
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return zeros.to(dtype)
    raise AssertionError("compute_scale keeps zeros below 2**24")
