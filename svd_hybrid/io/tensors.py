"""Tensor facts shared by every reader and writer: dtype names, bytes, digests."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""dtype names as safetensors writes them; other dtypes are refused."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says of one tensor.

    Args:
        dtype: a key of `DTYPES`, or another name when the file holds a dtype svdh cannot read.
        shape: sizes; () for a scalar.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether a delta is formed for it."""
        return self.dtype in FLOATS

    @property
    def count(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.count * DTYPES[self.dtype].itemsize


def info_of(tensor: Tensor) -> TensorInfo:
    """The TensorInfo of a tensor in memory."""
    name = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return TensorInfo(name, tuple(tensor.shape))


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's data, row-major little-endian, without a copy when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def tensor_digest(tensor: Tensor) -> str:
    r"""SHA-256 (hex) over dtype, shape and data: the identity of one tensor's content.

    The hashed bytes are the ASCII line `DTYPE d0,d1,…\n` followed by the data.

    >>> tensor_digest(torch.zeros(2))[:8]
    '870f584a'
    """
    digest = RunningDigest(info_of(tensor))
    digest.add(tensor)
    return digest.hexdigest()


class RunningDigest:
    """`tensor_digest` of a tensor that comes in blocks, in row-major order.

    Args:
        info: of the whole tensor.
    """

    def __init__(self, info: TensorInfo) -> None:
        self._sha256 = hashlib.sha256(f"{info.dtype} {','.join(map(str, info.shape))}\n".encode())

    def add(self, block: Tensor) -> None:
        """Count the next scalars."""
        if block.numel():
            self._sha256.update(raw_bytes(block))

    def hexdigest(self) -> str:
        """SHA-256 (hex) of what has come so far."""
        return self._sha256.hexdigest()
