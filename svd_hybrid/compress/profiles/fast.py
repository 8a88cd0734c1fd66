"""`fast`: groupwise codes, compressed by zstd; no decomposition, one pass.

Vectors and small matrices keep 16 bits. For large families where encoding must cost no more than
reading: several hundred megabytes of float32 deltas a second on one thread. Source: codec design
§5 (G), §6, §14.
"""

from __future__ import annotations

from torch import Tensor

from svd_hybrid.codec import HalfCodec, ZstdAffineCodec
from svd_hybrid.compress.profiles.base import EncodedStack, Profile
from svd_hybrid.compress.profiles.numbers import is_dense, store_each
from svd_hybrid.compress.profiles.params import FastParams


def encode(
    stack: Tensor, mask: Tensor | None, params: FastParams, prefix: str = ""
) -> EncodedStack | None:
    """Store one region of one tensor: part `coeff`; arguments as in `Profile`."""
    if is_dense(stack, params.dense_below):
        return store_each(HalfCodec(), stack, mask, prefix)
    return store_each(ZstdAffineCodec(params.bits, params.group_size), stack, mask, prefix)


FAST = Profile(
    name="fast",
    summary="Groupwise low-bit codes compressed by zstd; the quickest to make.",
    encode=encode,
)
