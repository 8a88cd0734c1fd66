"""What a codec is: a named, versioned map from a tensor to stored bytes and back.

There are two kinds. A `Codec` gives arrays of a fixed layout, a `StreamCodec` a string of bytes of
whatever length each slice needs.

Slices along the first axis are coded independently: slicing every stored array along its first axis
gives exactly the encoding of that slice. A part that holds one slice per task can therefore be read
for one task without touching the bytes of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Encoded: TypeAlias = Mapping[str, Tensor]
"""Stored arrays by name; every one has the first axis of the tensor it encodes."""


class Codec(Protocol):
    """One way to store a tensor of at least two axes (slices, …, row)."""

    name: ClassVar[str]
    version: ClassVar[int]

    @property
    def dtype(self) -> torch.dtype:
        """What decoding gives: float32, or bool for masks."""

    def encode(self, x: Tensor) -> Encoded:
        """Stored arrays for `x`: (slices, …, n), n >= 1, finite."""

    def decode(self, arrays: Encoded, shape: tuple[int, ...]) -> Tensor:
        """The tensor of `shape` that the arrays stand for: float32, or bool for masks.

        Raises:
            ArtifactError: an array is missing, or has the wrong shape or dtype.
        """

    def layout(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """The shape each stored array must have for a tensor of `shape`."""

    def config(self) -> dict[str, Any]:
        """Parameters as JSON; `from_config` of it equals this codec."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec with these parameters.

        Raises:
            ArtifactError: a parameter is missing, unknown or out of range.
        """


@runtime_checkable
class StreamCodec(Protocol):
    """One way to store a matrix (rows, columns) as a string of bytes.

    A matrix of zeros is never handed to a codec, nor is the empty string: one stands for the other
    (codec.streams).
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @property
    def dtype(self) -> torch.dtype:
        """What decoding gives: float32, bool for masks, or integers for an operation of its own."""

    def encode_slice(self, x: Tensor) -> bytes:
        """At least one byte for `x`: (rows, columns), finite, not all zero."""

    def decode_slice(self, data: bytes, shape: tuple[int, int]) -> Tensor:
        """The matrix of `shape` and `dtype` that a string of at least one byte stands for.

        Raises:
            ArtifactError: it stands for none.
        """

    def config(self) -> dict[str, Any]:
        """Parameters as JSON; `from_config` of it equals this codec."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec with these parameters.

        Raises:
            ArtifactError: a parameter is missing, unknown or out of range.
        """


AnyCodec: TypeAlias = Codec | StreamCodec
