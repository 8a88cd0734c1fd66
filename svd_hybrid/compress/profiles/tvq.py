"""`tvq`: task vectors quantised uniformly, min to max. Source: AIM-SKKU/TVQ; methods.md §18.

One step per tensor, or per group. Vectors and matrices below `dense_below` scalars are stored in
float32; unlike the reference, whose choice by name fits one model family only. `bits=8, 4, 3, 2`
are the published settings.
"""

from __future__ import annotations

from torch import Tensor

from svd_hybrid.codec import RawCodec
from svd_hybrid.compress.profiles.base import EncodedStack, Profile
from svd_hybrid.compress.profiles.numbers import affine_codec, is_dense, store_each
from svd_hybrid.compress.profiles.params import TvqParams


def encode(
    stack: Tensor, mask: Tensor | None, params: TvqParams, prefix: str = ""
) -> EncodedStack | None:
    """Store one region of one tensor: part `coeff`; arguments as in `Profile`."""
    dense = is_dense(stack, params.dense_below)
    codec = RawCodec() if dense else affine_codec(params.bits, params.group_size)
    return store_each(codec, stack, mask, prefix)


TVQ = Profile(
    name="tvq",
    summary="Each task's deltas quantised uniformly from minimum to maximum.",
    encode=encode,
)
