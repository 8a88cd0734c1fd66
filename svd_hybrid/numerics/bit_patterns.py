"""Numbers as differences of bit patterns to a prediction: small integers, and every bit comes back.

The patterns of floats, read as integers and with those of negative numbers reversed, are in the
order of the numbers. So the difference of two patterns counts the numbers between them; it is
small where a fine-tune hardly moved, and wraps round without loss where it did.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.numerics.reproducible import round_once

PATTERN_BLOCK = 2**22
"""Scalars that are put in order together; part of the format."""
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
MANTISSA_BITS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}


def integer_dtype(dtype: torch.dtype) -> torch.dtype:
    """The signed integers with as many bits as a float dtype."""
    return INTEGERS[dtype.itemsize]


def prediction(base: Tensor, dtype: torch.dtype) -> Tensor:
    """The base in `dtype`, rounded once; infinite where it is beyond that."""
    return base if base.dtype == dtype else round_once(base.to(torch.float64), dtype)


def differences(tuned: Tensor, predicted: Tensor) -> Tensor:
    """Integers for a block of at most `PATTERN_BLOCK` scalars, in the order of `_order`.

    Args:
        tuned: (k,) float.
        predicted: (k,), of the same dtype.
    """
    integers = _ranks(tuned) - _ranks(predicted)
    return integers[_order(predicted)]


def restored(integers: Tensor, predicted: Tensor) -> Tensor:
    """The numbers that `differences` was given: (k,), dtype of `predicted`."""
    ranks = _ranks(predicted)
    order = _order(predicted)
    ranks[order] += integers
    return _reversed_negatives(ranks).view(predicted.dtype)


def _ranks(x: Tensor) -> Tensor:
    """Integers in the order of the numbers; -0.0 is -1 and 0.0 is 0."""
    return _reversed_negatives(x.view(integer_dtype(x.dtype)))


def _reversed_negatives(integers: Tensor) -> Tensor:
    """Flips all bits but the sign of negative integers; its own inverse."""
    info = torch.iinfo(integers.dtype)
    return integers ^ ((integers >> (info.bits - 1)) & info.max)


def _order(predicted: Tensor) -> Tensor:
    """Indices by descending exponent of the prediction, else ascending: alike numbers together."""
    pattern = predicted.view(integer_dtype(predicted.dtype))
    mantissa = MANTISSA_BITS[predicted.dtype]
    exponents = (pattern >> mantissa) & (2 ** (predicted.itemsize * 8 - 1 - mantissa) - 1)
    keys = (-exponents).to(torch.int16).numpy()
    return torch.from_numpy(np.argsort(keys, kind="stable"))  # a radix sort, for 16 bits
