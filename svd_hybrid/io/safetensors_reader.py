"""One safetensors file, memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from svd_hybrid.errors import FamilyError
from svd_hybrid.io.tensors import TensorInfo


class SafetensorsReader:
    """Reads tensors as views of the mapped file.

    Raises (on construction):
        FamilyError: the file is no safetensors file, or is cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        try:
            self._file = cast("Any", safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise FamilyError(
                f"file is neither safetensors nor a torch checkpoint: {str(error)[:160]}",
                where=str(path),
                fix="pass a .safetensors, .pt, .pth or .bin file, or a folder that holds one",
            ) from error
        self.infos = {}
        for name in self._file.offset_keys():
            view = self._file.get_slice(name)
            self.infos[name] = TensorInfo(view.get_dtype(), tuple(view.get_shape()))

    def read(self, name: str) -> Tensor:
        """One tensor; a view of the mapped file."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor
