"""Numbers without loss: byte planes, the high bytes of all numbers first, compressed by zstd.

The high bytes of numbers of one size are alike, so they compress; the low ones of measured numbers
are noise, which zstd stores as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.codec.checks import exact_keys
from svd_hybrid.errors import ArtifactError
from svd_hybrid.frames import MAGIC, compress, decompress_exactly

LEVEL = 3
"""zstd's; higher ones search for repetitions, of which weights have none."""
WORDS = {"F32": np.uint32, "I16": np.uint16, "I32": np.uint32, "I64": np.uint64}
GIVEN = {"F32": torch.float32, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
SIGNED = {2: np.int16, 4: np.int32, 8: np.int64}


@dataclass(frozen=True, slots=True)
class ZstdPlanesCodec:
    """float32 numbers, or integers that are mostly small.

    Args:
        number: F32, I16, I32 or I64.
    """

    name: ClassVar[str] = "zstd-planes"
    version: ClassVar[int] = 1

    number: str = "F32"

    @property
    def dtype(self) -> torch.dtype:
        """What decoding gives."""
        return GIVEN[self.number]

    def encode_slice(self, x: Tensor) -> bytes:
        """A zstd frame without its first four bytes, of all planes."""
        words = x.to(self.dtype).contiguous().numpy().reshape(-1).view(WORDS[self.number])
        turned = _sign_last(words) if self.number == "F32" else _zigzag(words)
        planes = turned.view(np.uint8).reshape(-1, words.itemsize).T[::-1]
        return compress(planes.tobytes(), LEVEL, with_size=False).removeprefix(MAGIC)

    def decode_slice(self, data: bytes, shape: tuple[int, int]) -> Tensor:
        """The numbers, bit for bit."""
        word = np.dtype(WORDS[self.number])
        count = shape[0] * shape[1]
        planes = np.frombuffer(decompress_exactly(MAGIC + data, count * word.itemsize), np.uint8)
        words = np.ascontiguousarray(planes.reshape(word.itemsize, count)[::-1].T).view(word)[:, 0]
        turned = _sign_first(words) if self.number == "F32" else _unzigzag(words)
        signed = torch.from_numpy(turned.view(SIGNED[word.itemsize]))
        return signed.view(self.dtype).reshape(shape)

    def config(self) -> dict[str, Any]:
        """The kind of number."""
        return {"number": self.number}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The codec; raises ArtifactError for another kind of number."""
        exact_keys(cls.name, config, ("number",))
        number = config["number"]
        if not isinstance(number, str) or number not in GIVEN:
            raise ArtifactError(f"codec {cls.name!r}: number is {number!r}, must be {list(GIVEN)}")
        return cls(number)


Words = np.ndarray[Any, np.dtype[Any]]


def _sign_last(words: Words) -> Words:
    """The bits of floats turned left by one, so that the exponent fills a byte."""
    return (words << 1) | (words >> (words.itemsize * 8 - 1))


def _sign_first(words: Words) -> Words:
    return (words >> 1) | (words << (words.itemsize * 8 - 1))


def _zigzag(words: Words) -> Words:
    """0, -1, 1, -2 … in two's complement → 0, 1, 2, 3 … as small ones are wanted."""
    sign = words.view(SIGNED[words.itemsize]) >> (words.itemsize * 8 - 1)
    return (words << 1) ^ sign.view(words.dtype)


def _unzigzag(words: Words) -> Words:
    return (words >> 1) ^ (~(words & 1) + 1)
