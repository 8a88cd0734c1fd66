"""Stacks ⇄ strings: what is the same for every stream codec."""

from __future__ import annotations

import torch
from torch import Tensor

from svd_hybrid.codec.base import StreamCodec
from svd_hybrid.errors import ArtifactError


def encode_slices(codec: StreamCodec, x: Tensor) -> tuple[bytes, ...]:
    """One string for every slice of `x` (slices, rows, columns); empty for one of zeros."""
    return tuple(encode_slice(codec, matrix) for matrix in x)


def encode_slice(codec: StreamCodec, x: Tensor) -> bytes:
    """The string of one matrix (rows, columns); empty when it is all zero."""
    if not bool(x.any()):
        return b""
    data = codec.encode_slice(x)
    if not data:
        raise ValueError(f"codec {codec.name!r} made an empty string of numbers")
    return data


def decode_slice(codec: StreamCodec, data: bytes, shape: tuple[int, int]) -> Tensor:
    """The matrix that a string stands for; zeros for the empty one.

    Raises:
        ArtifactError: the string is not as the format says.
    """
    if not data:
        return torch.zeros(shape, dtype=codec.dtype)
    x = codec.decode_slice(data, shape)
    if (tuple(x.shape), x.dtype) != (shape, codec.dtype):
        raise ArtifactError(f"codec {codec.name!r} gave {x.dtype} {tuple(x.shape)}, not {shape}")
    return x
