"""The masks of all tasks in one file, a bit per scalar.

The canonical flattening of a model is its float tensors by ascending name, each row-major. A mask
is one bit for each of its scalars, most significant bit first, zero padded to a byte. Files hold
task → bytes: `TALL_mask_<n>task.npy` (nik-dim/tall_masks) is a pickle of NumPy or torch, what we
write is safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.errors import FamilyError, StorageError, UnsafeError, UsageError
from svd_hybrid.io.array_pickle import Bytes, load_byte_arrays
from svd_hybrid.io.lookup import match_name
from svd_hybrid.io.new_file import NewFile
from svd_hybrid.io.safetensors_reader import SafetensorsReader
from svd_hybrid.io.safetensors_writer import SafetensorsWriter
from svd_hybrid.io.storage import storage
from svd_hybrid.io.tensors import TensorInfo


def flattened(infos: Mapping[str, TensorInfo]) -> list[str]:
    """Names of the tensors that a packed mask covers, in its order."""
    return [name for name in sorted(infos) if infos[name].is_float]


def packed_bytes(scalars: int) -> int:
    """Bytes of that many bits."""
    return (scalars + 7) // 8


class BitPacker:
    """Bits that come in pieces of any length, as bytes."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, dtype=np.bool_)

    def feed(self, bits: Tensor) -> Bytes:
        """The whole bytes once these bits (bool, any shape) are added."""
        joined = np.concatenate([self._rest, bits.reshape(-1).numpy()])
        whole = len(joined) // 8 * 8
        self._rest = joined[whole:].copy()
        return np.packbits(joined[:whole])

    def finish(self) -> Bytes:
        """The last byte, zero padded; nothing when all bits are out."""
        return np.packbits(self._rest)


class PackedMaskWriter:
    """Writes one packed file as a stream of tensors; nothing larger than a tensor is in memory.

    Args:
        path: a new file in a staging folder; a scratch file per task lies beside it until the end.
        tasks: in order.
        scalars: of the whole model, in float tensors.
    """

    def __init__(self, path: Path, tasks: Sequence[str], scalars: int) -> None:
        self.path = path
        self.infos = {task: TensorInfo("U8", (packed_bytes(scalars),)) for task in tasks}
        self._packers = [BitPacker() for _ in tasks]
        self._scratch = [path.with_name(f"{path.name}.{index}") for index in range(len(tasks))]
        self._files: list[NewFile] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._files = [
            self._open.enter_context(NewFile(path, durable=False)) for path in self._scratch
        ]
        return self

    def add(self, masks: Tensor) -> None:
        """The masks of the next tensor in the canonical order: (N, …) bool."""
        for mask, packer, file in zip(masks, self._packers, self._files, strict=True):
            file.write(packer.feed(mask).data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            for packer, file in zip(self._packers, self._files, strict=True):
                file.write(packer.finish().data)
        self._open.close()
        if error is None:
            self._assemble()
            for path in self._scratch:
                storage().remove_file(path)

    def _assemble(self) -> None:
        scratch = dict(zip(self.infos, self._scratch, strict=True))
        with SafetensorsWriter(self.path, self.infos) as writer:
            for task in writer.order:
                (count,) = self.infos[task].shape
                path = str(scratch[task])
                writer.write(task, torch.from_file(path, size=count, dtype=torch.uint8))


def open_packed(
    path: Path, tasks: Sequence[str], infos: Mapping[str, TensorInfo]
) -> dict[str, PackedMask]:
    """The masks of those tasks that the file has.

    Args:
        path: safetensors, or a pickle of NumPy or torch; none of its code is run.
        tasks: task names, in order.
        infos: the base's tensors; masks must have a bit for each of their scalars.

    Raises:
        FamilyError: the file is damaged, or packed for another model.
        UnsafeError: it would need code to load.
        StorageError: it may not be read.
    """
    bits_by_name = _load(path)
    starts, position = dict[str, int](), 0
    for name in flattened(infos):
        starts[name] = position
        position += infos[name].count
    masks: dict[str, PackedMask] = {}
    for task in tasks:
        try:
            bits = bits_by_name[match_name(task, bits_by_name, "mask for task", str(path))]
        except UsageError as error:
            if "ambiguous" in error.what:
                raise
            continue
        if bits.shape != (packed_bytes(position),):
            raise FamilyError(
                f"packed mask of task {task!r} has shape {list(bits.shape)}; "
                f"{position} scalars need {packed_bytes(position)} bytes",
                where=str(path),
                fix="the mask belongs to another model, or was packed over other tensors",
            )
        masks[task] = PackedMask(bits, starts, infos)
    return masks


class PackedMask:
    """One task's bits over the canonical flattening of a model.

    Args:
        bits: as the file has them.
        starts: position of each tensor's first bit.
        infos: the base's tensors.
    """

    def __init__(
        self, bits: Bytes, starts: dict[str, int], infos: Mapping[str, TensorInfo]
    ) -> None:
        self.bits = bits
        self.starts = starts
        self.infos = infos

    def read(self, name: str) -> Tensor | None:
        """Bool tensor of the named tensor's shape; None for one that is not a float tensor."""
        if name not in self.starts:
            return None
        start, count = self.starts[name], self.infos[name].count
        first = start // 8
        window = np.unpackbits(self.bits[first : (start + count + 7) // 8])
        values = window[start - 8 * first : start - 8 * first + count]
        return torch.from_numpy(values.copy()).to(torch.bool).reshape(self.infos[name].shape)


def _load(path: Path) -> dict[str, Bytes]:
    """Task → packed bits."""
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        return load_byte_arrays(path)
    except UnsafeError as error:
        error.where = str(path)
        raise
    except OSError as error:
        raise StorageError(
            f"packed mask file may not be read: {error.strerror}", where=str(path)
        ) from error
    except ValueError as error:
        raise FamilyError(
            f"packed mask file cannot be read: {str(error)[:160]}",
            where=str(path),
            fix="copy it again, or store the masks as safetensors, one file per task",
        ) from error


def _load_safetensors(path: Path) -> dict[str, Bytes]:
    reader = SafetensorsReader(path)
    for task, info in reader.infos.items():
        if info.dtype != "U8" or len(info.shape) != 1:
            raise FamilyError(
                f"{task!r} is no packed mask: it is {info.dtype} of shape {list(info.shape)}",
                where=str(path),
                fix="pass a file that svdh masks build wrote, or a folder with a file per task",
            )
    return {task: reader.read(task).numpy() for task in reader.infos}
