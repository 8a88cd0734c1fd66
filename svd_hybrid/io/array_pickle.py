"""Dictionaries of byte arrays out of NumPy's and torch's pickles, without running what they name.

`TALL_mask_<n>task` files come in two shapes: np.save of a dictionary (a .npy object array) and
torch.save of a dictionary of tensors or NumPy arrays, by any NumPy version. A pickle is a program,
so nothing it names is ever imported: the few names NumPy needs stand for inert records, and the
bytes are turned into arrays here; tensors go through torch's weights-only loader.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.errors import SvdhError, UnsafeError
from svd_hybrid.io.inert_pickle import walk_over
from svd_hybrid.io.torch_archive import check_archive

NUMPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
BYTE_TYPES = ("u1", "uint8")

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class _Dtype:
    """What a pickle says of a dtype."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: nothing that matters to single bytes."""


class _Array:
    """What a pickle says of an array: shape, dtype and data, once its state arrives."""

    def __init__(self, *_: object) -> None:
        self.shape: Any = ()
        self.dtype = _Dtype()
        self.data: Any = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, _, self.data = state


class _Latin1(bytes):
    """How the oldest pickle protocols spell bytes: text and the name of its encoding."""

    def __new__(cls, text: str, encoding: str) -> Self:
        if encoding != "latin1":
            raise ValueError(f"bytes are spelled in {encoding!r}")
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: object) -> None:
        """Bytes have no state."""


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.dtypes", "UInt8DType"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Latin1,
}


class _InertUnpickler(pickle.Unpickler):
    """Builds plain containers and the records above; imports nothing.

    Every stand-in is a class with `__setstate__`, so a pickle cannot set attributes of one either.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise UnsafeError(
                f"mask file asks to import {module}.{name}",
                fix="store the masks as safetensors, one file per task",
            )
        return _STAND_INS[module, name]


def load_byte_arrays(path: Path) -> dict[str, Bytes]:
    """Name → uint8 array, from a file of torch.save or np.save.

    Raises:
        UnsafeError: the pickle names anything but NumPy's array types.
        ValueError: the file is damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:
            loaded = _unpickle(file)
        if isinstance(loaded, _Array) and isinstance(loaded.data, list):
            (loaded,) = loaded.data  # np.save puts the dictionary into an array of one object
        if not isinstance(loaded, dict) or not loaded:
            raise TypeError("it holds no dictionary task → bits")
        return {str(name): _to_numpy(str(name), value) for name, value in loaded.items()}
    except (SvdhError, OSError):
        raise
    except Exception as error:  # damaged bytes fail in pickle and zipfile in many ways
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error


def _unpickle(file: io.BufferedReader) -> Any:
    start = file.read(len(NUMPY_MAGIC))
    file.seek(0)
    if start.startswith(ZIP_MAGIC):
        return _unpickle_torch(file)
    if start == NUMPY_MAGIC:
        if np.lib.format.read_magic(file) == (1, 0):
            _, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            _, _, dtype = np.lib.format.read_array_header_2_0(file)
        if not dtype.hasobject:
            raise TypeError("it holds a plain array, not a dictionary of tasks")
    walk_over(file, Path(file.name).stat().st_size)
    return _InertUnpickler(file).load()


def _unpickle_torch(file: io.BufferedReader) -> Any:
    check_archive(Path(file.name))
    with warnings.catch_warnings(), contextlib.suppress(pickle.UnpicklingError):
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(file) as archive:  # it names something else: NumPy's arrays, or worse
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        inner = io.BytesIO(archive.read(name))
        walk_over(inner, len(inner.getvalue()))
        return _InertUnpickler(inner).load()


def _to_numpy(name: str, value: object) -> Bytes:
    if isinstance(value, Tensor) and value.dtype == torch.uint8:
        bits: Bytes = value.numpy()
        return bits
    if isinstance(value, _Array) and value.dtype.code in BYTE_TYPES:
        data = value.data
        if not isinstance(data, bytes) or math.prod(value.shape) != len(data):
            raise ValueError(f"mask of {name!r} is cut short")
        return np.frombuffer(data, np.uint8).reshape(value.shape)
    raise TypeError(f"mask of {name!r} is no array of bytes")
