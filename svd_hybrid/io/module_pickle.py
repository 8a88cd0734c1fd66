"""Whole modules that torch.save pickled: their tensors, without their classes (`--allow-…`).

The names and order are those of `Module.state_dict()`: parameters, buffers, then submodules. A
dictionary of tensors beside objects of any class is read too. See `io.inert_pickle` for why nothing
in the file can run.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.errors import FamilyError, shorten
from svd_hybrid.io.inert_pickle import Inert, Storage, TensorView, read_pickle
from svd_hybrid.io.tensors import DTYPE_NAMES, TensorInfo
from svd_hybrid.io.torch_archive import PICKLE, check_archive
from svd_hybrid.limits import DEEPEST_MODULE, MOST_MEMBERS

ZIP_MAGIC = b"PK\x03\x04"
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""The first of the pickles in torch's older format."""
NESTED_KEYS = ("state_dict", "model_state_dict", "model")
DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


class ModuleReader:
    """Reads the tensors of a pickled module one at a time (a CheckpointReader).

    Raises (on construction):
        FamilyError: the file is damaged, or holds neither a module nor a state dict.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        self._places: dict[str, tuple[int, int]] = {}  # where each storage is in the file
        try:
            with path.open("rb") as file:
                zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            loaded = self._from_archive() if zipped else self._from_stream()
            self._views = dict(_tensors(loaded))
            self.infos = {name: self._info(view) for name, view in self._views.items()}
        except (FamilyError, OSError):
            raise
        except Exception as error:  # damaged pickles fail in Python's reader in many ways
            raise _unreadable(
                path, (str(error).splitlines() or [type(error).__name__])[0]
            ) from error
        if not self.infos:
            raise _unreadable(path, "it holds no module with parameters, and no state dict")

    def read(self, name: str) -> Tensor:
        """One tensor, contiguous."""
        view = self._views[name]
        dtype = DTYPES[view.storage.kind]
        begin, nbytes = self._places[view.storage.key]
        if not nbytes:
            return torch.empty(tuple(view.sizes), dtype=dtype)
        whole = torch.from_file(str(self.path), size=begin + nbytes, dtype=torch.uint8)
        flat = whole[begin : begin + nbytes].clone().view(dtype)
        tensor: Tensor = flat.as_strided(tuple(view.sizes), tuple(view.strides), view.offset)
        return tensor.contiguous()

    def _from_archive(self) -> Any:
        members = check_archive(self.path)
        with zipfile.ZipFile(self.path) as archive:
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise ValueError("its numbers are not little-endian")
            for name, entry in members.items():
                if name.startswith("data/"):
                    with archive.open(entry) as member:
                        begin = member._orig_compress_start  # type: ignore[attr-defined]
                    self._places[name.removeprefix("data/")] = (begin, entry.file_size)
            with archive.open(members[PICKLE]) as file:
                return read_pickle(file)

    def _from_stream(self) -> Any:
        """Five pickles, of which the fourth is the object, then the storages."""
        with self.path.open("rb") as file:
            if read_pickle(file) != MAGIC_NUMBER:
                raise ValueError("it is a pickle that torch did not write")
            storages: dict[str, Storage] = {}
            _, _, loaded, keys = (read_pickle(file, storages) for _ in range(4))
            size = self.path.stat().st_size
            for key in keys:
                count, storage = int.from_bytes(file.read(8), "little"), storages[key]
                begin = file.tell()
                nbytes = count * DTYPES[storage.kind].itemsize
                if count != storage.count or nbytes > size - begin:
                    raise ValueError("it ends before its numbers do")
                self._places[key] = (begin, nbytes)
                file.seek(begin + nbytes)
        return loaded

    def _info(self, view: TensorView) -> TensorInfo:
        """Dtype and shape, once the view is known to lie inside its storage."""
        storage, sizes, strides = view.storage, view.sizes, view.strides
        if not isinstance(storage, Storage) or storage.kind not in DTYPES:
            raise ValueError("a tensor has a dtype svdh cannot read")
        for numbers in (sizes, strides):
            if not isinstance(numbers, tuple) or not all(_is_size(number) for number in numbers):
                raise ValueError("a tensor has sizes that are none")
        dtype = DTYPES[storage.kind]
        last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        held = self._places.get(storage.key, (0, -1))[1]
        fits = _is_size(view.offset) and held == storage.count * dtype.itemsize
        count = math.prod(sizes)
        if not fits or (count and view.offset + last >= storage.count) or count > storage.count:
            raise ValueError("a tensor reaches beyond its storage")
        return TensorInfo(DTYPE_NAMES[dtype], sizes)


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**53


def _tensors(loaded: Any) -> Iterator[tuple[str, TensorView]]:
    """Names and tensors of a module or a state dict, bare or nested."""
    for key in NESTED_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict | Inert):
            loaded = loaded[key]
            break
    if isinstance(loaded, Inert):
        yield from _of_module(loaded, "", 0, [0])
        return
    if isinstance(loaded, dict):
        others = [str(k) for k, v in loaded.items() if not isinstance(v, TensorView)]
        if others:
            raise ValueError(f"its state dict holds entries that are no tensors: {shorten(others)}")
        yield from ((str(name), view) for name, view in loaded.items())


def _of_module(
    module: Inert, prefix: str, depth: int, seen: list[int]
) -> Iterator[tuple[str, TensorView]]:
    state = module.state
    if not isinstance(state, dict) or "_modules" not in state:
        raise ValueError(f"{prefix or 'its object'} of class {module.named} is no torch module")
    if depth > DEEPEST_MODULE:
        raise ValueError(f"submodules are nested deeper than {DEEPEST_MODULE}")
    for kind in ("_parameters", "_buffers"):
        hidden = _names(state.get("_non_persistent_buffers_set")) if kind == "_buffers" else ()
        for name, view in _entries(state.get(kind)):
            if view is None or name in hidden:
                continue
            if not isinstance(view, TensorView):
                raise TypeError(f"{prefix}{name} is no tensor")
            yield f"{prefix}{name}", view
    for name, child in _entries(state["_modules"]):
        seen[0] += 1
        if seen[0] > MOST_MEMBERS:
            raise ValueError(f"it has more than {MOST_MEMBERS} submodules")
        if child is not None:
            if not isinstance(child, Inert):
                raise ValueError(f"{prefix}{name} is no module")
            yield from _of_module(child, f"{prefix}{name}.", depth + 1, seen)


def _entries(found: Any) -> Iterator[tuple[str, Any]]:
    if found is None:
        return
    if not isinstance(found, dict):
        raise TypeError("a module keeps its tensors in something that is no dictionary")
    yield from ((str(name), value) for name, value in found.items())


def _names(found: Any) -> set[str]:
    """Of a set, as newer pickles hold it or as a call of one."""
    listed = found.args[0] if isinstance(found, Inert) and found.args else found
    return {str(name) for name in listed} if isinstance(listed, set | list | tuple) else set()


def _unreadable(path: Path, why: str) -> FamilyError:
    return FamilyError(
        f"pickled module cannot be read: {why[:200]}",
        where=str(path),
        fix="save its state_dict() with torch.save or as safetensors",
    )
