"""Writing safetensors files tensor by tensor, with the header first and nothing held in memory.

The library's own writer wants every tensor at once; this one writes the same format as a stream.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from svd_hybrid.io.new_file import NewFile
from svd_hybrid.io.tensors import DTYPES, TensorInfo, info_of, raw_bytes

HEADER_ALIGNMENT = 8


class SafetensorsWriter:
    """Writes one file; tensors must come in the order of `infos` after sorting by alignment.

    Args:
        path: a new file.
        infos: every tensor that will be written.
        metadata: string pairs for the header; several are written sorted.

    The data of wider dtypes comes first, so that every tensor is aligned to its own item size.
    """

    def __init__(
        self, path: Path, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self.order = write_order(infos)
        self._infos = dict(infos)
        self._next = 0
        header: dict[str, object] = (
            {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        )
        offset = 0
        for name in self.order:
            info = infos[name]
            header[name] = {
                "dtype": info.dtype,
                "shape": list(info.shape),
                "data_offsets": [offset, offset + info.nbytes],
            }
            offset += info.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % HEADER_ALIGNMENT)
        self._file = NewFile(path)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Append one tensor.

        Raises:
            ValueError: it is not the next one, or not of the announced dtype and shape.
        """
        if self._next >= len(self.order) or self.order[self._next] != name:
            raise ValueError(f"{name!r} is not the next tensor of {self.path}")
        if info_of(tensor) != self._infos[name]:
            raise ValueError(f"{name!r} is {info_of(tensor)}, announced as {self._infos[name]}")
        if tensor.numel():
            self._file.write(raw_bytes(tensor))
        self._next += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        missing = self.order[self._next :]
        self._file.close(whole=error is None and not missing)
        if error is None and missing:
            raise ValueError(f"{self.path}: {missing[0]!r} was never written")


def write_order(infos: Mapping[str, TensorInfo]) -> list[str]:
    """Names in the order their data is laid out: wide dtypes first, else as given."""
    return sorted(infos, key=lambda name: -DTYPES[infos[name].dtype].itemsize)
