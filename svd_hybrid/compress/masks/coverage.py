"""What masks select: per task, per tensor, and how many tasks share a scalar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svd_hybrid.errors import FamilyError, shorten
from svd_hybrid.io.masks import open_masks
from svd_hybrid.io.tensors import TensorInfo


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor.

    Args:
        scalars: of the tensor.
        selected: by each task, in order.
        shared: how many scalars are selected by 0, 1, … N tasks; sums to `scalars`.
    """

    scalars: int
    selected: tuple[int, ...]
    shared: tuple[int, ...]

    def __add__(self, other: TensorFacts) -> TensorFacts:
        """Both tensors together."""
        return TensorFacts(
            self.scalars + other.scalars,
            tuple(a + b for a, b in zip(self.selected, other.selected, strict=True)),
            tuple(a + b for a, b in zip(self.shared, other.shared, strict=True)),
        )

    @property
    def coverage(self) -> tuple[float, ...]:
        """Share of the scalars that each task selects, in [0, 1]."""
        return tuple(count / self.scalars if self.scalars else 0.0 for count in self.selected)


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """The masks of a family.

    Args:
        tasks: names, in order.
        tensors: facts by name, ascending; of the tensors that are masked.
        total: of all of them together.
    """

    tasks: tuple[str, ...]
    tensors: Mapping[str, TensorFacts]
    total: TensorFacts

    def as_json(self, *, tensors: bool) -> dict[str, Any]:
        """For `--json`; with `tensors` one entry per tensor."""
        record = self._record(self.total)
        if tensors:
            record["tensors"] = {name: self._record(facts) for name, facts in self.tensors.items()}
        return record

    def _record(self, facts: TensorFacts) -> dict[str, Any]:
        return {
            "scalars": facts.scalars,
            "coverage": dict(zip(self.tasks, facts.coverage, strict=True)),
            "shared_by": list(facts.shared),
        }


def mask_facts(path: Path, tasks: Sequence[str], infos: Mapping[str, TensorInfo]) -> MaskFacts:
    """Measure masks, tensor by tensor.

    Args:
        path: mask folder, or one packed file.
        tasks: whose masks, in order.
        infos: the base's tensors.

    Raises:
        StorageError: there is nothing at `path`.
        FamilyError: a mask is damaged or does not fit; a task has none; or the masks cover
            different tensors.
        UnsafeError: a file would need code to load.
    """
    found = open_masks(path, list(tasks), infos)
    without = [task for task in tasks if task not in found]
    if without:
        raise FamilyError(
            f"no mask for task {shorten(without)}", where=str(path), fix="name the tasks that have"
        )
    total = TensorFacts(0, (0,) * len(tasks), (0,) * (len(tasks) + 1))
    tensors: dict[str, TensorFacts] = {}
    for name in sorted(infos):
        read = {task: found[task].read(name) for task in tasks}
        masks = [mask.reshape(-1) for mask in read.values() if mask is not None]
        if masks and len(masks) < len(tasks):
            lacking = shorten([task for task, mask in read.items() if mask is None])
            raise FamilyError(
                f"masks of some tasks cover {name!r}, those of {lacking} do not", where=str(path)
            )
        if masks:
            votes = torch.stack(masks).sum(0)
            tensors[name] = TensorFacts(
                infos[name].count,
                tuple(int(mask.sum()) for mask in masks),
                tuple(torch.bincount(votes, minlength=len(tasks) + 1).tolist()),
            )
            total += tensors[name]
    return MaskFacts(tuple(tasks), tensors, total)
