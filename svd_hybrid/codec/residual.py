"""Multi-stage residual quantisation (the RTVQ of the SVD-Hybrid documentation), bit-packed.

Stage 1 quantises the data, every further stage what the stages before left over; the value is the
sum. Not the published RTVQ (a shared base vector plus offsets): hence the name `residual-affine`.
S stages of b bits cost S*b bits and are a little worse than one stage of S*b bits; what they buy is
that the first stages decode alone. Source: methods.md §20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
from svd_hybrid.codec.half import BLOCK_SCALARS, per_slice, slice_exponents, stored_exponents
from svd_hybrid.errors import ArtifactError, ParameterError

MOST_STAGES = 16
LARGEST_GROUP = 2**20
STEP_DTYPES = {"F16": torch.float16, "F32": torch.float32}
KINDS = ("codes", "step", "zero", "exponent")
WRITTEN_DTYPES = {"codes": torch.uint8, "zero": torch.int32, "exponent": torch.int16}
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
    dtype: ClassVar[torch.dtype] = torch.float32

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
        arrays = {
            name: torch.empty(shape, dtype=self._written(name))
            for name, shape in self.layout(tuple(x.shape)).items()
        }
        for index in range(x.shape[0]):
            left = self._rows(x[index]).to(torch.float64, copy=True)
            for stage in range(self.stages):
                stored = {kind: arrays[f"stage{stage}.{kind}"][index] for kind in KINDS}
                exponent = slice_exponents(left.unsqueeze(0))
                stored["exponent"].copy_(exponent[0])
                self._encode_rows(left, per_slice(exponent, left), stored)
        return {
            name: _narrowest(array) if name.endswith("zero") else array
            for name, array in arrays.items()
        }

    def _encode_rows(self, left: Tensor, unit: Tensor, stored: Mapping[str, Tensor]) -> None:
        """One stage of one slice: fills `stored`; `left` (rows, n) is what remains afterwards."""
        n = left.shape[1]
        codes, steps, zeros = (
            stored[kind].view(left.shape[0], -1) for kind in ("codes", "step", "zero")
        )
        for rows in self._blocks(left.shape):
            groups = split_groups(left[rows] / unit, self.group_size)
            exact, zero = compute_scale(groups, self.bits, steps.dtype)
            numbers = quantize(groups, exact, zero, self.bits)
            step = exact.to(steps.dtype)
            steps[rows], zeros[rows] = step, zero
            codes[rows] = pack(join_groups(numbers, n), self.bits)
            left[rows] -= join_groups(dequantize(numbers, step, zero), n) * unit

    def _rows(self, x: Tensor) -> Tensor:
        """A slice as a matrix whose rows groups run along: its own rows, or all of it as one."""
        return x.reshape(-1, x.shape[-1]) if self.group_size else x.reshape(1, -1)

    @staticmethod
    def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
        """The rows of a matrix, some at a time."""
        step = max(1, BLOCK_SCALARS // shape[1])
        return (slice(first, first + step) for first in range(0, shape[0], step))

    def _written(self, name: str) -> torch.dtype:
        kind = name.rsplit(".", 1)[-1]
        return STEP_DTYPES[self.step] if kind == "step" else WRITTEN_DTYPES[kind]

    def decode(self, arrays: Encoded, shape: tuple[int, ...]) -> Tensor:
        """Sum of the stages, in float64, rounded once to float32."""
        stages = [self._stage_arrays(arrays, shape, stage) for stage in range(self.stages)]
        out = torch.empty(shape, dtype=torch.float32)
        for index in range(shape[0]):
            matrix = self._rows(out[index])
            count = matrix.shape[0]
            stored = [
                (
                    *(array[index].reshape(count, -1) for array in (codes, step, zero)),
                    exponent[index],
                )
                for codes, step, zero, exponent in stages
            ]
            for rows in self._blocks(matrix.shape):
                matrix[rows] = self._decode_rows(
                    [(c[rows], s[rows], z[rows], e) for c, s, z, e in stored], matrix.shape[1]
                )
        return out

    def _decode_rows(self, stages: list[tuple[Tensor, ...]], n: int) -> Tensor:
        """Rows of one slice, (rows, n) float64."""
        total: Tensor | None = None
        for packed, step, zero, exponent in stages:
            groups = split_groups(unpack(packed, self.bits, n), self.group_size)
            value = join_groups(dequantize(groups, step, zero), n)
            value = value * per_slice(exponent.unsqueeze(0), value)
            total = value if total is None else total.add_(value)
        assert total is not None  # stages >= 1
        return total

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
