"""Opening a checkpoint: a file or folder, judged by its content, read one tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from svd_hybrid.consent import module_pickles_allowed
from svd_hybrid.errors import FamilyError, StorageError, UnsafeError, shorten
from svd_hybrid.io.foreign import LONGEST, refuse_foreign
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.limits import MOST_JSON_BYTES
from svd_hybrid.strict_json import parse_strictly

PICKLE_MAGIC = b"\x80"
ZIP_MAGIC = b"PK\x03\x04"
FOLDER_ENTRIES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
ADAPTER_ENTRY = "adapter_config.json"


class CheckpointReader(Protocol):
    """The tensors of one model; headers are known at once, data is read on demand."""

    @property
    def path(self) -> Path:
        """The file or folder, as it was given."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape by tensor name, in file order."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files it reads; their sizes are what the checkpoint costs on disk."""

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, contiguous; may be a view of the mapped file."""


def file_bytes(reader: CheckpointReader) -> int:
    """What a checkpoint costs on disk: the sizes of its weight files, summed."""
    return sum(file.stat().st_size for file in reader.files)


def open_checkpoint(path: Path) -> CheckpointReader:
    """A reader for a safetensors file, a torch state dict, or an HF folder of either.

    Raises:
        StorageError: there is nothing at `path`, or it may not be read.
        FamilyError: it is not a checkpoint svdh can read.
        UnsafeError: it is a pickle that needs code to load.
    """
    if not path.exists():
        raise StorageError(
            "checkpoint does not exist", where=str(path), fix="check the path and its spelling"
        )
    if not path.is_dir() and not path.is_file():
        raise StorageError(
            "checkpoint is neither a file nor a folder", where=str(path), fix="write it to a file"
        )
    before = path.stat()
    try:
        reader = _open_folder(path) if path.is_dir() else _open_file(path)
        if os.path.samestat(before, path.stat()):
            return reader
        return open_checkpoint(path)  # a folder replaced meanwhile: shards of two models
    except FamilyError:
        if path.exists() and os.path.samestat(before, path.stat()):
            raise
        return open_checkpoint(path)
    except PermissionError as error:
        raise StorageError(
            "checkpoint may not be read", where=str(error.filename or path), fix="check permissions"
        ) from error


def _open_file(path: Path) -> CheckpointReader:
    from svd_hybrid.io.safetensors_reader import SafetensorsReader
    from svd_hybrid.io.torch_reader import TorchReader

    with path.open("rb") as file:
        start = file.read(LONGEST)
    header_bytes = int.from_bytes(start[:8], "little")  # one in 32 begins like a pickle
    is_safetensors = start[8:9] == b"{" and header_bytes < path.stat().st_size
    if start.startswith((PICKLE_MAGIC, ZIP_MAGIC)) and not is_safetensors:
        try:
            return TorchReader(path)
        except UnsafeError:
            if not module_pickles_allowed():
                raise
            from svd_hybrid.io.module_pickle import ModuleReader

            return ModuleReader(path)
    if not is_safetensors:
        refuse_foreign(start, str(path))
    return SafetensorsReader(path)


def _open_folder(folder: Path) -> CheckpointReader:
    for entry in FOLDER_ENTRIES:
        if (folder / entry).is_file():
            return (
                ShardedReader(folder, folder / entry)
                if entry.endswith(".index.json")
                else _Folder(folder, _open_file(folder / entry))
            )
    if (folder / ADAPTER_ENTRY).is_file():
        raise FamilyError(
            "folder holds an adapter, which is no model without its base",
            where=str(folder),
            fix="pass a whole model here; adapters are given as tasks",
        )
    single = sorted(folder.glob("*.safetensors"))
    if len(single) == 1:
        return _Folder(folder, _open_file(single[0]))
    raise FamilyError(
        "folder holds no checkpoint svdh recognises",
        where=str(folder),
        fix="it needs one of " + ", ".join(FOLDER_ENTRIES) + ", or exactly one .safetensors file",
    )


class _Folder:
    """A folder with a single weight file."""

    def __init__(self, path: Path, inner: CheckpointReader) -> None:
        self.path = path
        self.inner = inner
        self.infos = inner.infos
        self.files = inner.files

    def read(self, name: str) -> Tensor:
        return self.inner.read(name)


class ShardedReader:
    """An HF folder whose index maps each tensor to one of several weight files.

    Raises (on construction):
        FamilyError: the index and the files disagree, in either direction.
        UnsafeError: the index names a file outside its folder.
    """

    def __init__(self, path: Path, index: Path) -> None:
        self.path = path
        weight_map = _weight_map(index)
        shards: dict[str, CheckpointReader] = {}
        for file_name in dict.fromkeys(weight_map.values()):
            if Path(file_name).name != file_name or file_name in ("", ".", ".."):
                raise UnsafeError(
                    "index names a file outside its folder", where=f"{index}: {file_name!r}"
                )
            if not (path / file_name).is_file():
                raise FamilyError(
                    f"index names a shard that is missing: {file_name!r}",
                    where=str(index),
                    fix="download the checkpoint again, whole",
                )
            shards[file_name] = _open_file(path / file_name)
        self._shard_of = {name: shards[file_name] for name, file_name in weight_map.items()}
        absent = [n for n, shard in self._shard_of.items() if n not in shard.infos]
        unlisted = [
            name
            for file_name, shard in shards.items()
            for name in shard.infos
            if weight_map.get(name) != file_name
        ]
        if absent or unlisted:
            raise FamilyError(
                "index and shards disagree"
                + (f"; not in their shard: {shorten(absent, 2)}" if absent else "")
                + (f"; not in the index: {shorten(unlisted, 2)}" if unlisted else ""),
                where=str(index),
                fix="download the checkpoint again, whole",
            )
        self.infos: Mapping[str, TensorInfo] = {
            name: shard.infos[name] for shard in shards.values() for name in shard.infos
        }
        self.files = tuple(file for shard in shards.values() for file in shard.files)

    def read(self, name: str) -> Tensor:
        """One tensor, from the shard that holds it."""
        return self._shard_of[name].read(name)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        with index.open("rb") as file:
            record = parse_strictly(file.read(MOST_JSON_BYTES + 1))
        weight_map = record["weight_map"]
        if not isinstance(weight_map, dict):
            raise TypeError("weight_map is not an object")
    except (ValueError, KeyError, TypeError) as error:
        raise FamilyError(
            f"index is not a weight map: {str(error)[:160]}",
            where=str(index),
            fix="download it again",
        ) from error
    return {str(name): str(file) for name, file in weight_map.items()}
