"""`compeft`: of each tensor the largest scalars, as signs times one scale.

The scale is `sign_alpha` standard deviations of the task's delta. The paper chooses alpha on
validation data; without data the default is the alpha with the smallest squared error, which makes
the scale the mean magnitude of what is kept. Unlike the paper, which treats a task vector as one,
the largest are found, and the deviation is taken, tensor by tensor. Every tensor is coded, vectors
too, unless `dense_below` says otherwise.
Source: arXiv 2311.13171, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svd_hybrid.codec import HalfCodec, SparseSignCodec
from svd_hybrid.compress.profiles.base import EncodedStack, Profile
from svd_hybrid.compress.profiles.numbers import RegionParts, selected_rows, store_each
from svd_hybrid.compress.profiles.params import CompeftParams


def encode(
    stack: Tensor, mask: Tensor | None, params: CompeftParams, prefix: str = ""
) -> EncodedStack | None:
    """Store one region of one tensor: part `coeff`; arguments as in `Profile`."""
    if stack[0].numel() < params.dense_below:
        return store_each(HalfCodec(), stack, mask, prefix)
    rows = selected_rows(stack, mask)
    if not bool(rows.any()):
        return None
    region = RegionParts(prefix, flat=mask is not None)
    region.add("coeff", SparseSignCodec(), _kept(rows, params))
    return region.stored(rows[0].numel())


def _kept(rows: Tensor, params: CompeftParams) -> Iterator[Tensor]:
    """Each task's largest scalars, zeros elsewhere, (R, C) float64; the codec takes their mean."""
    for delta in rows:
        wide = delta.to(torch.float64).contiguous()
        numbers = wide.view(-1).numpy()
        chosen = largest(np.abs(numbers), math.ceil(params.kept_share * numbers.size))
        kept = np.zeros_like(numbers)
        if params.sign_alpha is None:
            kept[chosen] = numbers[chosen]
        else:
            kept[chosen] = np.sign(numbers[chosen]) * (params.sign_alpha * numbers.std())
        yield torch.from_numpy(kept).reshape(wide.shape)


def largest(magnitudes: NDArray[Any], count: int) -> NDArray[Any]:
    """Ascending indices of the `count` largest; of equal ones the first; zeros are left out.

    >>> largest(np.array([1.0, 3.0, 0.0, 1.0]), 2).tolist(), largest(np.zeros(3), 2).tolist()
    ([0, 1], [])
    """
    level = np.partition(magnitudes, -count)[-count]
    if level == 0:
        return np.flatnonzero(magnitudes)
    chosen = magnitudes > level
    tied = np.flatnonzero(magnitudes == level)
    chosen[tied[: count - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)


COMPEFT = Profile(
    name="compeft",
    summary="The largest scalars of each task's deltas as signs times one scale.",
    encode=encode,
)
