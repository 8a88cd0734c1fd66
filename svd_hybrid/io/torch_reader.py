"""One torch state dict (.pt, .pth, .bin), loaded weights-only and never otherwise.

Files in torch's zip format are memory-mapped; the older format has to be read whole.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.errors import FamilyError, SvdhError, UnsafeError, shorten
from svd_hybrid.io.tensors import info_of
from svd_hybrid.io.torch_archive import check_archive

ZIP_MAGIC = b"PK\x03\x04"
NESTED_KEYS = ("state_dict", "model_state_dict", "model")


class TorchReader:
    """Reads tensors of a state dict, unwrapping `state_dict`, `model_state_dict` or `model`.

    Raises (on construction):
        UnsafeError: loading would need more than tensors and plain containers.
        FamilyError: the file is damaged, or does not hold a state dict.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        self._tensors = _state_dict(load_torch(path), path)
        self.infos = {name: info_of(tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, contiguous."""
        return self._tensors[name].detach().contiguous()


def load_torch(path: Path) -> Any:
    """Whatever torch.save wrote, as long as it is tensors and plain containers.

    Raises:
        UnsafeError: loading would need more than that.
        FamilyError: the file is damaged.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of is an error below, or is loaded
            mapped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            file.seek(0)
            source: Any = path
            if mapped:
                check_archive(path)
            if path.suffix == ".safetensors":  # by which torch would judge it, not by its content
                source, mapped = file, False
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise _unsafe(
            f"it names {named[1][:80]}" if named else "it pickles more than tensors and containers",
            path,
        ) from error
    except (PermissionError, SvdhError):
        raise
    except Exception as error:  # damaged bytes fail in torch in many ways, none of them ours
        if "TorchScript" in str(error):
            raise _unsafe("it is a TorchScript program", path) from error
        raise _damaged(path, error) from error


def _unsafe(why: str, path: Path) -> UnsafeError:
    return UnsafeError(
        f"checkpoint needs code to load: {why}",
        where=str(path),
        fix="save its state_dict() with torch.save or as safetensors, or pass "
        "--allow-module-pickle, which reads the tensors of a module and runs nothing; any other "
        "file is damaged",
    )


def _damaged(path: Path, error: Exception) -> FamilyError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return FamilyError(
        f"torch checkpoint cannot be read: {first_line[:200]}",
        where=str(path),
        fix="the file is damaged or incomplete; copy or download it again",
    )


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in NESTED_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise FamilyError(
            f"torch checkpoint holds {type(loaded).__name__}, not a state dict",
            where=str(path),
            fix="save model.state_dict(), bare or under " + ", ".join(NESTED_KEYS),
        )
    others = [
        str(k) for k, v in loaded.items() if not isinstance(v, Tensor) or not isinstance(k, str)
    ]
    if others:
        raise FamilyError(
            f"state dict holds entries that are not tensors: {shorten(others)}",
            where=str(path),
            fix="save model.state_dict() alone, or nest it under state_dict",
        )
    layouts = [k for k, v in loaded.items() if v.layout != torch.strided or v.is_quantized]
    if layouts:
        raise FamilyError(
            f"state dict holds sparse or quantised tensors: {shorten(layouts)}",
            where=str(path),
            fix="save them dense (tensor.to_dense() or dequantize())",
        )
    return loaded
