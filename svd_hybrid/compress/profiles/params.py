"""Parameters of every profile; needs no torch, so that the command line can list them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from svd_hybrid.errors import ParameterError

BASIS_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class HybridParams:
    """Parameters of the storage; names as in the original configuration, without `svd_`."""

    energy_threshold: float = field(
        default=0.90,
        metadata={"help": "share of the energy whose directions get FP16 coefficients, (0, 1]"},
    )
    max_rank: int = field(default=128, metadata={"help": "most directions with FP16 coefficients"})
    center: bool = field(
        default=True, metadata={"help": "store the mean over tasks apart and subtract it first"}
    )
    fp16: bool = field(
        default=True, metadata={"help": "FP16 basis, mean and high coefficients; off: FP32"}
    )
    low_bits: int = field(default=4, metadata={"help": "bits per low coefficient and stage, 1..8"})
    rtvq_stages: int = field(
        default=2, metadata={"help": "residual stages of the low coefficients, 1..16"}
    )
    basis: Literal["auto", "left", "right", "tasks"] = field(
        default="auto",
        metadata={
            "help": "side that is the shared basis; auto takes the shorter, "
            "tasks is the original D x N layout"
        },
    )
    basis_dtype: Literal["auto", "fp16", "int8", "int4"] = field(
        default="fp16",
        metadata={
            "help": "precision of the basis; auto takes, per tensor, the fewest bits that "
            "raise the error by at most 10 %"
        },
    )
    keep_low: bool = field(
        default=True,
        metadata={"help": "store the low directions; off: only the high ones, lossy"},
    )
    group_size: int = field(
        default=64, metadata={"help": "low coefficients that share a step; 0: a whole tensor"}
    )

    def __post_init__(self) -> None:
        if not 0 < self.energy_threshold <= 1:
            raise ParameterError(
                f"energy_threshold is {self.energy_threshold}, outside (0, 1]",
                fix="pass a share such as 0.95",
            )
        for name, low, high in (
            ("max_rank", 1, 2**31),
            ("low_bits", 1, 8),
            ("rtvq_stages", 1, 16),
            ("group_size", 0, 2**20),
        ):
            if not low <= getattr(self, name) <= high:
                raise ParameterError(f"{name} is {getattr(self, name)}, outside {low}..{high}")
        if self.basis not in ("auto", "left", "right", "tasks"):
            raise ParameterError(f"basis is {self.basis!r}", fix="use auto, left, right or tasks")
        if self.basis_dtype not in ("auto", "fp16", *BASIS_BITS):
            raise ParameterError(
                f"basis_dtype is {self.basis_dtype!r}", fix="use auto, fp16, int8 or int4"
            )
        if not self.fp16 and self.basis_dtype != "fp16":
            raise ParameterError(
                f"basis_dtype {self.basis_dtype} with --no-fp16", fix="drop one of the two"
            )


PROFILE_PARAMS: dict[str, type[Any]] = {"hybrid": HybridParams}
