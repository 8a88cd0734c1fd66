"""Messages between a run and its worker processes: pickles, tensors as plain bytes beside them.

Both ends are this package on this machine, over pipes that nobody else has.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Buffer

LENGTH = struct.Struct("<Q")
PROTOCOL = 5


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        data = memoryview(cast("Buffer", flat.numpy()))
        return _tensor, (pickle.PickleBuffer(data), value.dtype, tuple(value.shape))


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not memoryview(data).nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)


def send(pipe: BinaryIO, message: Any) -> None:
    """Write one message."""
    buffers: list[pickle.PickleBuffer] = []
    text = io.BytesIO()
    _Pickler(text, PROTOCOL, buffer_callback=buffers.append).dump(message)
    parts = [text.getbuffer(), *(buffer.raw() for buffer in buffers)]
    pipe.write(LENGTH.pack(len(parts)))
    for part in parts:
        pipe.write(LENGTH.pack(part.nbytes))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """The next message.

    Raises:
        EOFError: the other end is gone.
    """
    (count,) = LENGTH.unpack(_exactly(pipe, LENGTH.size))
    sizes = [LENGTH.unpack(_exactly(pipe, LENGTH.size))[0] for _ in range(count)]
    text, *buffers = (_exactly(pipe, size) for size in sizes)
    return pickle.loads(text, buffers=buffers)  # noqa: S301 - from our own process


def _exactly(pipe: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view.nbytes:
        got = pipe.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        view = view[got:]
    return data
