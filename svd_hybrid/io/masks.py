"""Reading per-task boolean masks, in the layouts that exist.

One file per task (`<task>_mask`, `<task>` or `<task>/mask`, as .safetensors or .pt: tensor name →
bool or 0/1 tensor), or one `TALL_mask_<n>task.npy` for all: task → bits of the model flattened in
order of tensor names, most significant bit first (nik-dim/tall_masks).
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.errors import FamilyError, StorageError, UnsafeError, UsageError, shorten
from svd_hybrid.io.lookup import match_name
from svd_hybrid.io.reader import CheckpointReader, open_checkpoint
from svd_hybrid.io.tensors import TensorInfo

TASK_MASK_NAMES = ("{task}_mask", "{task}", "{task}/mask")
MASK_SUFFIXES = (".safetensors", ".pt", ".pth")
NUMPY_MAGIC = b"\x93NUMPY"


class TaskMask(Protocol):
    """The mask of one task, tensor by tensor."""

    def read(self, name: str) -> Tensor | None:
        """Bool tensor of the named tensor's shape, or None when there is no mask for it."""


def open_masks(
    folder: Path, tasks: list[str], infos: Mapping[str, TensorInfo]
) -> dict[str, TaskMask]:
    """The masks found for each task; tasks without one are absent from the result.

    Args:
        folder: where the masks are.
        tasks: task names, in order.
        infos: the base's tensors; masks must fit their names and shapes.

    Raises:
        StorageError: the folder does not exist.
        FamilyError: a mask file is damaged or does not fit the base.
        UnsafeError: a file would need code to load.
    """
    if not folder.is_dir():
        raise StorageError("mask folder does not exist", where=str(folder))
    packed = sorted(p for p in folder.iterdir() if p.name.lower().startswith("tall_mask_"))
    if len(packed) > 1:
        raise FamilyError(
            "several packed mask files: " + ", ".join(p.name for p in packed),
            where=str(folder),
            fix="leave one of them in the mask folder",
        )
    if packed:
        return _open_packed(packed[0], tasks, infos)
    masks: dict[str, TaskMask] = {}
    for task in tasks:
        path = _find_mask(folder, task)
        if path is not None:
            masks[task] = _MaskFile(open_checkpoint(path), infos)
    return masks


def _find_mask(folder: Path, task: str) -> Path | None:
    stems: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            inside = [entry / f"mask{suffix}" for suffix in MASK_SUFFIXES]
            stems |= {f"{entry.name}/mask": path for path in inside[::-1] if path.is_file()}
        elif entry.suffix in MASK_SUFFIXES:
            better = MASK_SUFFIXES.index(entry.suffix)
            known = stems.get(entry.stem)
            if known is None or better < MASK_SUFFIXES.index(known.suffix):
                stems[entry.stem] = entry
    for pattern in TASK_MASK_NAMES:
        try:
            return stems[match_name(pattern.format(task=task), stems, "mask", str(folder))]
        except UsageError as error:
            if "ambiguous" in error.what:
                raise
    return None


class _MaskFile:
    """One task's mask file."""

    def __init__(self, reader: CheckpointReader, infos: Mapping[str, TensorInfo]) -> None:
        self.reader = reader
        for name, info in reader.infos.items():
            if name not in infos:
                raise FamilyError(
                    f"mask names tensor {name!r}, which the base lacks", where=str(reader.path)
                )
            if info.shape != infos[name].shape:
                shapes = f"{list(info.shape)}, the base has {list(infos[name].shape)}"
                raise FamilyError(f"mask of {name!r} is {shapes}", where=str(reader.path))

    def read(self, name: str) -> Tensor | None:
        if name not in self.reader.infos:
            return None
        mask = self.reader.read(name)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise FamilyError(
                f"mask of {name!r} holds values other than 0 and 1", where=str(self.reader.path)
            )
        return mask.to(torch.bool)


def _open_packed(
    path: Path, tasks: list[str], infos: Mapping[str, TensorInfo]
) -> dict[str, TaskMask]:
    bits_by_name = _load_packed(path)
    floats = [name for name in sorted(infos) if infos[name].is_float]
    total = sum(infos[name].count for name in floats)
    starts, position = {}, 0
    for name in floats:
        starts[name] = position
        position += infos[name].count
    masks: dict[str, TaskMask] = {}
    for task in tasks:
        try:
            bits = bits_by_name[match_name(task, bits_by_name, "mask for task", str(path))]
        except UsageError as error:
            if "ambiguous" in error.what:
                raise
            continue
        if bits.dtype != np.uint8 or bits.ndim != 1 or bits.size != (total + 7) // 8:
            raise FamilyError(
                f"packed mask of task {task!r} holds {bits.size} bytes of {bits.dtype}; "
                f"{total} scalars need {(total + 7) // 8} bytes of uint8",
                where=str(path),
                fix="the mask belongs to another model, or was packed over other tensors",
            )
        masks[task] = _PackedMask(bits, starts, infos)
    return masks


class _PackedMask:
    """One task's bits over the canonical flattening of the model's float tensors."""

    def __init__(
        self, bits: np.ndarray[Any, Any], starts: dict[str, int], infos: Mapping[str, TensorInfo]
    ) -> None:
        self.bits = bits
        self.starts = starts
        self.infos = infos

    def read(self, name: str) -> Tensor | None:
        if name not in self.starts:
            return None
        start, count = self.starts[name], self.infos[name].count
        first = start // 8
        window = np.unpackbits(self.bits[first : (start + count + 7) // 8])
        values = window[start - 8 * first : start - 8 * first + count]
        return torch.from_numpy(values.copy()).to(torch.bool).reshape(self.infos[name].shape)


_NUMPY_GLOBALS = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries and NumPy arrays and imports nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY_GLOBALS:
            raise UnsafeError(
                f"mask file asks to import {module}.{name}",
                fix="store the masks as safetensors, one file per task",
            )
        return super().find_class(module, name)


def _load_packed(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Task → packed bits, from torch's or NumPy's file format, without running any code."""
    try:
        loaded = _load_torch_arrays(path) if zipfile.is_zipfile(path) else _load_numpy_dict(path)
    except UnsafeError as error:
        error.where = error.where or str(path)
        raise
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        RuntimeError,
        KeyError,
    ) as error:
        raise FamilyError(
            f"packed mask file cannot be read: {str(error).splitlines()[0][:160]}", where=str(path)
        ) from error
    if not isinstance(loaded, dict) or not loaded:
        raise FamilyError("packed mask file holds no task → bits dictionary", where=str(path))
    arrays = {
        str(task): value.numpy() if isinstance(value, Tensor) else value
        for task, value in loaded.items()
    }
    odd = [task for task, value in arrays.items() if not isinstance(value, np.ndarray)]
    if odd:
        raise FamilyError(f"packed masks are not arrays: {shorten(odd)}", where=str(path))
    return arrays


def _load_torch_arrays(path: Path) -> Any:
    import numpy._core.multiarray as multiarray

    allowed: list[Any] = [
        multiarray._reconstruct,
        np.ndarray,
        np.dtype,
        np.dtypes.UInt8DType,
    ]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UnsafeError(
                "mask file needs code to load",
                where=str(path),
                fix="store the masks as safetensors, one file per task",
            ) from error


def _load_numpy_dict(path: Path) -> Any:
    """The dictionary inside a .npy object array, unpickled with NumPy's array types alone."""
    data = path.read_bytes()
    if not data.startswith(NUMPY_MAGIC):
        return _ArrayUnpickler(io.BytesIO(data)).load()
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        _, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        _, _, dtype = np.lib.format.read_array_header_2_0(stream)
    if not dtype.hasobject:
        raise ValueError("it holds a plain array, not a dictionary of tasks")
    loaded = _ArrayUnpickler(stream).load()
    return loaded.item() if isinstance(loaded, np.ndarray) else loaded
