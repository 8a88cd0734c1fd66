"""The tasks' masks of a family, combined tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.source import DeltaSource
from svd_hybrid.errors import FamilyError, UsageError, shorten
from svd_hybrid.io.family import is_buffer
from svd_hybrid.io.masks import TaskMask, open_masks
from svd_hybrid.methods import METHODS
from svd_hybrid.methods.svd_hybrid import combine_masks


@dataclass(slots=True)
class FamilyMasks:
    """Masks by task (None for a task without one), and how to combine them.

    Args:
        source: the family they belong to.
        by_task: in task order; empty when no mask folder was given.
        config: strategy and what a missing mask means.
        notes: what the user should know.
    """

    source: DeltaSource
    by_task: Mapping[str, TaskMask | None]
    config: CompressConfig
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path | None, source: DeltaSource, config: CompressConfig) -> Self:
        """Find the masks of every task.

        Raises:
            UsageError: the method takes no masks.
            StorageError: the folder does not exist.
            FamilyError: a mask is damaged or does not fit; or a task has none and `missing_mask`
                is `error`, or no task has one.
        """
        if folder is None:
            return cls(source, {}, config)
        method = METHODS[config.method]
        if not method.takes_masks:
            raise UsageError(f"method {method.name} takes no masks", fix="drop --mask-dir")
        found = open_masks(folder, source.task_names, source.base.infos)
        without = [task for task in source.task_names if task not in found]
        if without and (config.missing_mask == "error" or not found):
            raise FamilyError(
                f"no mask for task {shorten(without)}",
                where=str(folder),
                fix="add <task>_mask.pt or .safetensors for each"
                + ("" if not found else ", or pass --missing-mask ones or ignore"),
            )
        masks = cls(source, {task: found.get(task) for task in source.task_names}, config)
        if without:
            masks.notes.append(f"missing_mask={config.missing_mask} applied to {shorten(without)}")
        return masks

    def combined(self, name: str) -> Tensor | None:
        """The combined mask of one tensor, bool of its shape; None means the whole tensor.

        Raises:
            FamilyError: some tasks' masks cover the tensor and others do not, under `error`.
        """
        masks = self._of_tasks(name)
        known = [mask for mask in masks if mask is not None]
        return combine_masks(known, self.config.method_params) if known else None

    def per_task(self, name: str) -> Tensor | None:
        """Every task's mask of one tensor, (N, *shape) bool; None means the whole tensor.

        Raises:
            FamilyError: some tasks' masks cover the tensor and others do not, unless
                `missing_mask` is `ones`.
        """
        masks = self._of_tasks(name)
        known = [mask for mask in masks if mask is not None]
        if not known:
            return None
        if len(known) < len(masks):
            raise FamilyError(
                f"masks of some tasks cover {name!r}, others do not",
                fix="complete them, or pass --missing-mask ones",
            )
        return torch.stack(known)

    def _of_tasks(self, name: str) -> list[Tensor | None]:
        """The mask of each task, in order; all None where none covers the tensor."""
        if is_buffer(name):
            return []  # running statistics are averaged whole
        masks = {task: mask.read(name) if mask else None for task, mask in self.by_task.items()}
        without = [task for task, mask in masks.items() if mask is None]
        if len(without) == len(masks):
            return []
        if without and self.config.missing_mask == "error":
            raise FamilyError(
                f"masks of some tasks cover {name!r}, those of {shorten(without)} do not",
                fix="complete them, or pass --missing-mask ones or ignore",
            )
        if without and self.config.missing_mask == "ones":
            known = next(mask for mask in masks.values() if mask is not None)
            return [torch.ones_like(known) if mask is None else mask for mask in masks.values()]
        return list(masks.values())

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors of one shape are masked alike."""
        if not self.by_task:
            return True
        masks, others = self._of_tasks(name), self._of_tasks(other)
        return len(masks) == len(others) and all(
            first is second if first is None or second is None else torch.equal(first, second)
            for first, second in zip(masks, others, strict=True)
        )
