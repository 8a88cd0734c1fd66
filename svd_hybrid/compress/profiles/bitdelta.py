"""`bitdelta`: the sign of every scalar, and one scale per tensor or row.

The scale is the mean magnitude, which the paper starts from; unlike the paper it is not distilled
afterwards, for that needs data. Vectors and small matrices keep 16 bits, as there.
Source: arXiv 2402.10193; FasterDecoding/BitDelta.
"""

from __future__ import annotations

from torch import Tensor

from svd_hybrid.codec import HalfCodec, SignCodec
from svd_hybrid.compress.profiles.base import EncodedStack, Profile
from svd_hybrid.compress.profiles.numbers import is_dense, store_each
from svd_hybrid.compress.profiles.params import BitdeltaParams


def encode(
    stack: Tensor, mask: Tensor | None, params: BitdeltaParams, prefix: str = ""
) -> EncodedStack | None:
    """Store one region of one tensor: part `coeff`; arguments as in `Profile`."""
    if is_dense(stack, params.dense_below):
        return store_each(HalfCodec(), stack, mask, prefix)
    codec = SignCodec("row" if params.scale_per == "row" else "slice")
    return store_each(codec, stack, mask, prefix)


BITDELTA = Profile(
    name="bitdelta",
    summary="Signs and one scale per tensor or row, the mean magnitude; no distillation.",
    encode=encode,
)
