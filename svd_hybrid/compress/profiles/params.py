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


def _parameter(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


def _check_range(params: Any, **limits: tuple[float, float]) -> None:
    """Refuse a field that is set and outside its limits, both of which are legal."""
    for name, (low, high) in limits.items():
        value = getattr(params, name)
        if value is not None and not low <= value <= high:
            raise ParameterError(f"{name} is {value}, outside {low}..{high}")


DEFAULT_ERROR = 0.3
SIGNAL_ERROR = 0.15
"""Default where errors are not noise but lost signal, which costs a model more."""
TARGETS = ("target_error", "target_bits", "target_size", "step")
LARGEST_GROUP = 2**20
BITS = "bits of the code of a scalar of a delta, at most 8"
GROUP_SIZE = "scalars of a row that share a step; 0: a whole tensor"
DENSE_BELOW = "matrices with fewer scalars are stored number by number, as vectors are"
PUBLISHED_SMALLEST = 4096
DENSE = (0, 2**53)


@dataclass(frozen=True, slots=True)
class TvqParams:
    """Parameters of `tvq`."""

    bits: int = _parameter(4, BITS)
    group_size: int = _parameter(0, GROUP_SIZE)
    dense_below: int = _parameter(PUBLISHED_SMALLEST, DENSE_BELOW)

    def __post_init__(self) -> None:
        _check_range(self, bits=(1, 8), group_size=(0, LARGEST_GROUP), dense_below=DENSE)


@dataclass(frozen=True, slots=True)
class RtvqParams:
    """Parameters of `rtvq`."""

    base_bits: int = _parameter(3, "bits of a scalar of the tasks' mean, 1..8")
    offset_bits: int = _parameter(2, "bits of a scalar of a task's offset from the mean, 1..8")
    error_correction: bool = _parameter(
        True, "offsets are taken from the mean as it is stored, so they absorb its error"
    )
    group_size: int = _parameter(0, GROUP_SIZE)
    dense_below: int = _parameter(PUBLISHED_SMALLEST, DENSE_BELOW)

    def __post_init__(self) -> None:
        _check_range(self, base_bits=(1, 8), offset_bits=(1, 8))
        _check_range(self, group_size=(0, LARGEST_GROUP), dense_below=DENSE)


@dataclass(frozen=True, slots=True)
class BitdeltaParams:
    """Parameters of `bitdelta`."""

    scale_per: Literal["tensor", "row"] = _parameter(
        "tensor", "what shares a scale, the mean magnitude; scales are not distilled"
    )
    dense_below: int = _parameter(PUBLISHED_SMALLEST, DENSE_BELOW)

    def __post_init__(self) -> None:
        if self.scale_per not in ("tensor", "row"):
            raise ParameterError(f"scale_per is {self.scale_per!r}", fix="use tensor or row")
        _check_range(self, dense_below=DENSE)


@dataclass(frozen=True, slots=True)
class CompeftParams:
    """Parameters of `compeft`."""

    kept_share: float = _parameter(0.05, "share of a tensor's scalars whose signs are kept, (0, 1]")
    sign_alpha: float | None = _parameter(
        None,
        "a kept scalar is its sign times this times the standard deviation of the delta; "
        "none: what makes the squared error smallest",
    )
    dense_below: int = _parameter(0, DENSE_BELOW)

    def __post_init__(self) -> None:
        if not 0 < self.kept_share <= 1:
            raise ParameterError(
                f"kept_share is {self.kept_share}, outside (0, 1]", fix="pass a share such as 0.05"
            )
        _check_range(self, sign_alpha=(2.0**-20, 2.0**20), dense_below=DENSE)


@dataclass(frozen=True, slots=True)
class DeltaComeParams:
    """Parameters of `delta-come`."""

    code_bpp: float = _parameter(
        1.0, "bits of codes per scalar of a matrix, without steps and zeros; sets the rank"
    )
    rank_share: float | None = _parameter(
        None, "instead: the share of the singular directions that is kept, (0, 1]"
    )
    directions_8bit: int = _parameter(2, "strongest directions, stored with 8 bits")
    directions_3bit: int = _parameter(32, "next directions, stored with 3 bits; the rest has 2")
    group_size: int = _parameter(128, GROUP_SIZE)
    dense_below: int = _parameter(PUBLISHED_SMALLEST, DENSE_BELOW)

    def __post_init__(self) -> None:
        for name, most in (("code_bpp", 16), ("rank_share", 1)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise ParameterError(f"{name} is {value}, outside (0, {most}]")
        _check_range(self, directions_8bit=(0, 2**31), directions_3bit=(0, 2**31))
        _check_range(self, group_size=(0, LARGEST_GROUP), dense_below=DENSE)


@dataclass(frozen=True, slots=True)
class FastParams:
    """Parameters of `fast`."""

    bits: int = _parameter(4, BITS)
    group_size: int = _parameter(64, "scalars that share a step, 1 and more")
    dense_below: int = _parameter(PUBLISHED_SMALLEST, DENSE_BELOW)

    def __post_init__(self) -> None:
        _check_range(self, bits=(2, 8), group_size=(1, LARGEST_GROUP), dense_below=DENSE)


@dataclass(frozen=True, slots=True)
class ExactParams:
    """Parameters of `exact`: none, for nothing may be lost."""


@dataclass(frozen=True, slots=True)
class AutoParams:
    """Parameters of `auto`; one of the targets, or `step`, decides the size."""

    objective: Literal["quality", "error"] = _parameter(
        "quality",
        "quality: errors are made noise, which costs a model less than lost signal; "
        "error: least squared error for the bytes",
    )
    target_error: float | None = _parameter(
        None,
        f"relative error of the deltas to keep to, in (0, 2]; what a mask leaves out does not "
        f"count; without a target {DEFAULT_ERROR}, or {SIGNAL_ERROR} with the objective error and "
        "for families of adapters",
    )
    error_scope: Literal["family", "task", "tensor"] = _parameter(
        "family",
        "what must keep to the target error: all deltas together, every task, or every tensor, "
        "which then has a step of its own",
    )
    target_bits: float | None = _parameter(
        None, "bits per parameter and task that the directory may take, all files counted"
    )
    target_size: float | None = _parameter(None, "bytes that the directory may take")
    step: float | None = _parameter(
        None, "step of every number, in units of the weights; found by the run for a target"
    )
    error_weight: float = _parameter(
        0.0, "what a squared error in these tensors counts; 0: by the kind of tensor"
    )
    energy_threshold: float | None = _parameter(
        None, "most energy that factors may hold of a matrix, (0, 1]; the rest is coded as such"
    )
    max_rank: int | None = _parameter(None, "most directions that factors may have")

    def __post_init__(self) -> None:
        _check_range(
            self,
            target_error=(1e-6, 2.0),
            target_bits=(1e-3, 64.0),
            target_size=(1.0, 2.0**53),
            step=(1e-30, 1e30),
            error_weight=(0.0, 1e12),
            energy_threshold=(1e-9, 1.0),
            max_rank=(0, 2**31),
        )
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ParameterError(f"{' and '.join(given)} exclude each other", fix="pass one")
        if self.error_scope != "family" and self.target[0] != "target_error":
            raise ParameterError(
                f"error_scope {self.error_scope} says nothing about {self.target[0]}",
                fix="drop it, or pass target_error",
            )

    @property
    def target(self) -> tuple[str, float]:
        """What decides the size: the name of a field and its value."""
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if given:
            return given[0], getattr(self, given[0])
        return "target_error", DEFAULT_ERROR if self.objective == "quality" else SIGNAL_ERROR

    @property
    def has_target(self) -> bool:
        """Whether the user said what decides the size."""
        return any(getattr(self, name) is not None for name in TARGETS)


PROFILE_PARAMS: dict[str, type[Any]] = {
    "auto": AutoParams,
    "max": AutoParams,
    "hybrid": HybridParams,
    "tvq": TvqParams,
    "rtvq": RtvqParams,
    "bitdelta": BitdeltaParams,
    "compeft": CompeftParams,
    "delta-come": DeltaComeParams,
    "fast": FastParams,
    "exact": ExactParams,
}
