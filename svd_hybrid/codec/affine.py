"""Asymmetric min-max quantiser, group by group: value = (code - zero) * step.

Zero is an integer, so the number 0 is exact whenever the group's range holds it. It is never
clamped: groups that lie on one side of 0 need a zero outside 0 … 2**bits - 1.
Source: methods.md §17; the step is stored, not its inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_ZERO = 2.0**23  # |zero| stays below 2**24, so code - zero is exact in float32
HALF_UP = 1.0 + 2.0**-10  # one unit in the last place of a normal float16, upwards
HALF_SMALLEST = 2.0**-24  # the same for a subnormal one


def split_groups(x: Tensor, group_size: int) -> Tensor:
    """Rows cut into groups; a short last group is filled with its own last value.

    Args:
        x: (…, n), n >= 1.
        group_size: scalars in a group; 0 makes the row one group.

    Returns:
        (…, groups, size), same dtype. The filling changes neither minimum nor maximum.
    """
    size = group_size or x.shape[-1]
    missing = -x.shape[-1] % size
    if missing:
        x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], dim=-1)
    return x.reshape(*x.shape[:-1], -1, size)


def join_groups(groups: Tensor, n: int) -> Tensor:
    """The first n scalars of each row; undoes `split_groups`."""
    return groups.flatten(-2)[..., :n]


def compute_scale(groups: Tensor, bits: int, step_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Step and zero of each group.

    Args:
        groups: (…, groups, size) float64; for float16 steps at most 1 in magnitude.
        bits: 1..8.
        step_dtype: the dtype the step will be stored in: float16 or float32.

    Returns:
        step: (…, groups) float64, >= 0. For float16 already rounded, upwards, so the range stays
            covered; for float32 exact, to be rounded when stored. A constant group c has step |c|
            (and decodes to it as closely as the step is stored); a group of zeros has step 0.
        zero: (…, groups) int32.
    """
    low, high = groups.amin(-1), groups.amax(-1)
    largest = torch.maximum(low.abs(), high.abs())
    constant = low == high
    step = torch.maximum((high - low) / (2**bits - 1), largest / LARGEST_ZERO)
    if step_dtype == torch.float16:
        near = step.to(step_dtype).to(torch.float64)
        above = torch.maximum(near * HALF_UP, near + HALF_SMALLEST).to(step_dtype).to(torch.float64)
        step = torch.where(near < step, above, near)
        largest = largest.to(step_dtype).to(torch.float64)
    zero = -(low / torch.where(step == 0, 1.0, step)).round()
    zero = torch.where(constant, (low < 0).to(torch.float64), zero)
    return torch.where(constant, largest, step), zero.to(torch.int32)


def quantize(groups: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest codes, halves to even.

    Args:
        groups: (…, groups, size) float64.
        step: (…, groups) float64, as `compute_scale` gave it.
        zero: (…, groups) int32.
        bits: 1..8.

    Returns:
        (…, groups, size) uint8 in 0 … 2**bits - 1.
    """
    wide = step.unsqueeze(-1)
    scaled = groups / torch.where(wide == 0, 1.0, wide)
    return (scaled + zero.unsqueeze(-1)).round().clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize(codes: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """(code - zero) * step in float64; the same bits everywhere, for no sum is involved.

    Args:
        codes: (…, groups, size) uint8.
        step: (…, groups), as stored.
        zero: (…, groups), any integer dtype.

    Returns:
        (…, groups, size) float64.
    """
    centred = codes.to(torch.float64) - zero.to(torch.float64).unsqueeze(-1)
    return centred * step.to(torch.float64).unsqueeze(-1)
