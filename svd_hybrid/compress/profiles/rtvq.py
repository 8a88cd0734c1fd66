"""`rtvq`: the mean of the task vectors, and each one's offset from it, both quantised uniformly.

Bits per scalar: offset_bits + base_bits / N. With error correction the offsets are taken from the
mean as it is stored. Tensors that stay dense are so task by task, without a mean, which changes no
number. Source: AIM-SKKU/TVQ; methods.md §19. Not the multi-stage RTVQ of the SVD-Hybrid
documentation, which is codec `residual-affine`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svd_hybrid.codec import RawCodec
from svd_hybrid.compress.profiles.base import EncodedStack, Profile
from svd_hybrid.compress.profiles.numbers import (
    RegionParts,
    affine_codec,
    is_dense,
    selected_rows,
    store_each,
)
from svd_hybrid.compress.profiles.params import RtvqParams


def encode(
    stack: Tensor, mask: Tensor | None, params: RtvqParams, prefix: str = ""
) -> EncodedStack | None:
    """Store one region of one tensor: parts `mean` and `coeff`; arguments as in `Profile`."""
    if is_dense(stack, params.dense_below):
        return store_each(RawCodec(), stack, mask, prefix)
    rows = selected_rows(stack, mask)
    if not bool(rows.any()):
        return None
    region = RegionParts(prefix, flat=mask is not None)
    mean = torch.zeros(rows.shape[1:], dtype=torch.float64)
    for delta in rows:
        mean += delta
    mean /= len(rows)
    stored = region.add_shared("mean", affine_codec(params.base_bits, params.group_size), mean)
    centre = stored.to(torch.float64) if params.error_correction else mean
    offsets = (delta.to(torch.float64) - centre for delta in rows)
    region.add("coeff", affine_codec(params.offset_bits, params.group_size), offsets)
    return region.stored(rows[0].numel())


RTVQ = Profile(
    name="rtvq",
    summary="The tasks' mean and each task's offset from it, both quantised uniformly.",
    encode=encode,
)
