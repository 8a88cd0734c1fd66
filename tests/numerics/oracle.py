"""Rounding to nearest even in exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

FORMATS = {  # significant bits, smallest normal exponent
    torch.float32: (24, -126),
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
}


def nearest_even(x: float, dtype: torch.dtype) -> float:
    """The number of `dtype` nearest to x, of two equally near the one with an even last bit."""
    if x == 0 or not math.isfinite(x):
        return x
    bits, smallest = FORMATS[dtype]
    exponent = max(math.frexp(x)[1] - 1, smallest)
    unit = Fraction(2) ** (exponent - bits + 1)
    value = round(Fraction(x) / unit) * unit  # Python rounds fractions half to even
    largest = Fraction(torch.finfo(dtype).max)
    return math.copysign(float(value) if abs(value) <= largest else math.inf, x)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`nearest_even` of every entry of a float64 tensor."""
    values = [nearest_even(value, dtype) for value in x.flatten().tolist()]
    return torch.tensor(values, dtype=torch.float64).to(dtype).reshape(x.shape)
