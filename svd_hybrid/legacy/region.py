"""The numbers of one region of one tensor in an original artifact, as they are meant.

A delta is `U_high c_high + U_low c_low + mean` over the D scalars of the region. The high
coefficients are FP16; the low ones went through a quantiser whose scale is *levels per unit*: a
stage stands for (code - zero_point) / scale, and the value is the sum of the stages. Several
revisions of that system wrote the same files with other bugs; what cannot be trusted is refused.
Source: methods.md §21.14, seed-behaviour B1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FP16_ROUNDING = 2.0**-11
FP16_SMALLEST = 2.0**-25
"""Half the smallest FP16 number: what a value that is flushed to zero can lose."""

NO_U_LOW = "U_low is missing, so the low coefficients mean nothing"
NO_MEAN = "the mean is missing, though the deltas were centred"
RAW_PROJECTION = (
    "coefficients were made from deltas that were not centred, though the mean is stored apart "
    "(a revision that lost the mean)"
)
NAN_PAYLOAD = "low coefficients are NaN (constants, in the revision that divides by their range)"
OFFSET_PAYLOAD = "low coefficients come from an early quantiser with another meaning of scale"
NOT_FINITE = "stored numbers are NaN or infinite"
MALFORMED = "records are not as the original wrote them"
NO_TASK = "coefficients of some tasks are missing"
NO_BASIS = "the basis of a region is missing"


class UnusableError(Exception):
    """A tensor's records cannot be converted; the message is the kind of reason."""


@dataclass(frozen=True, slots=True)
class LegacyRegion:
    """One region of one tensor.

    Args:
        high: (D, k) basis of the high coefficients, FP16 or float32 as stored.
        low: (D, l) basis of the low ones.
        mean: (D,) float32, or None when the deltas were not centred.
        coeff_high: (N, k) float16, in task order.
        coeff_low: (N, l) float32, decoded.
        energy_retained: share of the energy in the high directions, as recorded.
        recovered: coefficients the original stored as NaN that its norms still tell.
    """

    high: Tensor
    low: Tensor
    mean: Tensor | None
    coeff_high: Tensor
    coeff_low: Tensor
    energy_retained: float
    recovered: int

    @property
    def scalars(self) -> int:
        """Scalars of the region, D."""
        return self.high.shape[0]


def read_region(
    basis: Mapping[str, Any],
    coefficients: Sequence[Mapping[str, Any]],
    centred: bool | None,
) -> LegacyRegion:
    """The region that a basis record and the tasks' coefficient records describe.

    Args:
        basis: `U_high, U_low, singular_values, k, mean, energy_retained, D, N`.
        coefficients: `c_high_fp16, c_low_quant` of each task, in task order.
        centred: what the configuration says of centring; None when it says nothing.

    Raises:
        UnusableError: something it needs is missing, damaged or without meaning.
    """
    high = _tensor(basis, "U_high", 2)
    scalars = high.shape[0]
    if isinstance(basis.get("U_low"), Tensor):
        low = _tensor(basis, "U_low", 2)
    elif all(_is_empty(record) for record in coefficients):
        low = high[:, :0]
    else:
        raise UnusableError(NO_U_LOW)
    if low.shape[0] != scalars:
        raise UnusableError(MALFORMED)
    mean = _mean(basis, scalars, centred)
    rows = [_tensor(record, "c_high_fp16", 1) for record in coefficients]
    if any(row.numel() != high.shape[1] for row in rows):
        raise UnusableError(MALFORMED)
    coeff_high = torch.stack(rows)
    if mean is not None and not _sums_to_zero(coeff_high):
        raise UnusableError(RAW_PROJECTION)
    decoded = [_low_coefficients(record, low.shape[1]) for record in coefficients]
    return LegacyRegion(
        high,
        low,
        mean,
        coeff_high,
        torch.stack([values for values, _ in decoded]).to(torch.float32),
        float(_number(basis.get("energy_retained", math.nan))),
        sum(recovered for _, recovered in decoded),
    )


def _mean(basis: Mapping[str, Any], scalars: int, centred: bool | None) -> Tensor | None:
    mean = basis.get("mean")
    if mean is None:
        if centred or (centred is None and "mean" not in basis):
            raise UnusableError(NO_MEAN)
        return None
    flat = _tensor(basis, "mean").reshape(-1)
    if flat.numel() != scalars:
        raise UnusableError(MALFORMED)
    return flat.to(torch.float32)


def _sums_to_zero(coefficients: Tensor) -> bool:
    """Whether FP16 coefficients (N, k) cancel over the tasks, as those of centred deltas do."""
    wide = coefficients.to(torch.float64)
    rounding = FP16_ROUNDING * wide.abs().amax(0) + FP16_SMALLEST
    return bool((wide.mean(0).abs() <= 2 * rounding).all())


def _low_coefficients(record: Mapping[str, Any], count: int) -> tuple[Tensor, int]:
    """The `count` low coefficients of one task, float64, and how many of them were recovered."""
    total = torch.zeros(count, dtype=torch.float64)
    for payload in _payloads(record):
        codes = _tensor(payload, "quantized").reshape(-1)
        if codes.numel() != count:
            raise UnusableError(MALFORMED)
        scale, zero = _number(payload.get("scale")), _number(payload.get("zero_point"))
        if not (math.isfinite(scale) and math.isfinite(zero)):
            return total + _constant(payload, count), count  # later stages coded NaN
        if scale == 0:
            raise UnusableError(NOT_FINITE)
        if zero != round(zero):
            raise UnusableError(OFFSET_PAYLOAD)
        total += (codes.to(torch.float64) - zero) / scale
    return total, 0


def _constant(payload: Mapping[str, Any], count: int) -> float:
    """The constant that a payload with scale (2**b - 1) / 0 stood for, when it is still known.

    All `count` values were equal, and the norm of what was coded is stored beside them. The zero
    point is -round(inf * constant), so its sign is the constant's, reversed.
    """
    norm = _number(payload.get("residual_norm", math.nan))
    scale, zero = _number(payload.get("scale")), _number(payload.get("zero_point"))
    if scale == math.inf and norm == 0:
        return 0.0
    if scale == math.inf and math.isfinite(norm) and math.isinf(zero):
        return -math.copysign(norm / math.sqrt(count), zero)
    raise UnusableError(NAN_PAYLOAD)


def _payloads(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    quantised = record.get("c_low_quant")
    payloads = quantised.get("payloads") if isinstance(quantised, Mapping) else None
    if not isinstance(payloads, list) or not all(isinstance(p, Mapping) for p in payloads):
        raise UnusableError(MALFORMED)
    return payloads


def _is_empty(record: Mapping[str, Any]) -> bool:
    return all(_tensor(payload, "quantized").numel() == 0 for payload in _payloads(record))


def _tensor(record: Mapping[str, Any], key: str, ndim: int | None = None) -> Tensor:
    tensor = record.get(key)
    if not isinstance(tensor, Tensor) or (ndim is not None and tensor.ndim != ndim):
        raise UnusableError(MALFORMED)
    if not bool(torch.isfinite(tensor).all()):
        raise UnusableError(NOT_FINITE)
    return tensor.detach()


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise UnusableError(MALFORMED)
