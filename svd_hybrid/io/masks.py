"""Reading per-task boolean masks, in the layouts that exist.

One file per task (`<task>_mask`, `<task>` or `<task>/mask`, as .safetensors or .pt: tensor name →
bool or 0/1 tensor), or one packed file `TALL_mask_…` for all (io.packed_masks).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from svd_hybrid.errors import FamilyError, StorageError, UsageError
from svd_hybrid.io.lookup import match_name
from svd_hybrid.io.packed_masks import open_packed
from svd_hybrid.io.reader import CheckpointReader, open_checkpoint
from svd_hybrid.io.tensors import TensorInfo

TASK_MASK_NAMES = ("{task}_mask", "{task}", "{task}/mask")
MASK_SUFFIXES = (".safetensors", ".pt", ".pth")


class TaskMask(Protocol):
    """The mask of one task, tensor by tensor."""

    def read(self, name: str) -> Tensor | None:
        """Bool tensor of the named tensor's shape, or None when there is no mask for it."""


def open_masks(
    folder: Path, tasks: list[str], infos: Mapping[str, TensorInfo]
) -> dict[str, TaskMask]:
    """The masks found for each task; tasks without one are absent from the result.

    Args:
        folder: where the masks are; or one packed file.
        tasks: task names, in order.
        infos: the base's tensors; masks must fit their names and shapes.

    Raises:
        StorageError: the folder does not exist.
        FamilyError: a mask file is damaged or does not fit the base.
        UnsafeError: a file would need code to load.
    """
    if folder.is_file():
        return {**open_packed(folder, tasks, infos)}
    if not folder.is_dir():
        raise StorageError("mask folder does not exist", where=str(folder))
    packed = sorted(p for p in folder.iterdir() if p.name.lower().startswith("tall_mask_"))
    if len(packed) > 1:
        raise FamilyError(
            "several packed mask files: " + ", ".join(p.name for p in packed),
            where=str(folder),
            fix="name one of them instead of the folder",
        )
    if packed:
        return {**open_packed(packed[0], tasks, infos)}
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
