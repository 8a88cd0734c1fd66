"""What to rebuild: one task, given weights or a stored merge, as weights over the stored tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from svd_hybrid.artifact.jsonfile import read_json_object
from svd_hybrid.artifact.manifest import Manifest, TensorRecord
from svd_hybrid.artifact.merges import StoredMerge
from svd_hybrid.delta.evaluate import Mix
from svd_hybrid.errors import UsageError, shorten
from svd_hybrid.io.lookup import match_name


@dataclass(frozen=True, slots=True)
class Selection:
    """What to rebuild: one task, or a weighted sum of tasks.

    Args:
        label: for people: `task cars`, `merge merged`, `weights w.json`.
        mix: what the expressions are evaluated for; scaling included, zero weights left out.
        buffer_mix: the same for running statistics: weights that sum to 1, without scaling.
        is_task: one fine-tune as it was, rather than a merge.
        merge: the stored merge whose expressions are evaluated; None for the tensors' own.
        dtype: dtype name of float tensors, where the merge says so; None for the base's.
    """

    label: str
    mix: Mix
    buffer_mix: Mix
    is_task: bool
    merge: str | None = None
    dtype: str | None = None

    def expression(self, tensor: TensorRecord) -> Mapping[str, Any] | None:
        """The expression (JSON) of a tensor's delta; None where it is zero.

        A linear merge sums `blend` where a tensor has one; a single task is always `task`.
        """
        if self.merge is None:
            return tensor.task if self.is_task else tensor.blend or tensor.task
        entry = tensor.merges.get(self.merge, {})
        return entry.get("task") if self.by_task else entry.get("merged")

    @property
    def by_task(self) -> bool:
        """Whether it sums the expressions of single tasks."""
        return bool(self.mix.weights) or bool(self.buffer_mix.weights)


def select(
    manifest: Manifest,
    *,
    task: str | None = None,
    weights: Mapping[str, float] | None = None,
    merge: str | None = None,
) -> Selection:
    """Resolve what was asked for; by default the artifact's default merge.

    Args:
        manifest: of the artifact.
        task: name of one fine-tune; with `merge`, as that merge gives it back.
        weights: task → finite weight, every task of the artifact named; with `merge` likewise.
        merge: name of a merge.

    Raises:
        UsageError: task and weights together, weights that do not fit the tasks, or no single
            task is stored where one is needed.
        UnknownNameError: no such task or merge.
    """
    if task is not None and weights is not None:
        raise UsageError("task and weights exclude each other", fix="pass one of them")
    if task is None and weights is None:
        return _merge(manifest, merge or manifest.default_merge)
    source = manifest.tasks_from(merge)
    suffix = f" from merge {source}" if merge else ""
    if task is not None:
        index = manifest.task_index(task)
        one = {index: 1.0}
        mix = Mix(_with_gains(one, manifest, source))
        return Selection(f"task {task}{suffix}", mix, Mix(one), is_task=True, merge=source)
    assert weights is not None  # one of the two was given
    given = _weights_in_order(manifest, weights)
    return _linear(f"given weights{suffix}", given, manifest, source)


def _merge(manifest: Manifest, name: str) -> Selection:
    chosen = manifest.merge(name)
    label = f"merge {name}"
    if isinstance(chosen, StoredMerge):
        mix = Mix({}, shared=float(chosen.scaling))  # JSON may hold integers
        once = Mix({}, shared=1.0)
        return Selection(label, mix, once, is_task=False, merge=name, dtype=chosen.dtype)
    numbers = [float(weight) for weight in chosen.weights]
    linear = _linear(label, numbers, manifest, None, float(chosen.scaling))
    return replace(linear, dtype=chosen.dtype)


def _with_gains(
    weights: Mapping[int, float], manifest: Manifest, source: str | None
) -> dict[int, float]:
    """The weights times what the merge that gives the tasks multiplies each by."""
    merge = manifest.merge(source) if source else None
    if not isinstance(merge, StoredMerge) or not merge.task_gains:
        return dict(weights)
    return {task: weight * merge.task_gains[task] for task, weight in weights.items()}


def _weights_in_order(manifest: Manifest, weights: Mapping[str, float]) -> list[float]:
    by_task: dict[str, float] = {}
    for name, weight in weights.items():
        task = match_name(name, manifest.tasks, "task", "weights")
        if task in by_task:
            raise UsageError(f"task {task!r} has two weights", fix="give each task one weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UsageError(f"weight of task {name!r} is {weight!r}, not a number")
        try:
            by_task[task] = float(weight)
        except OverflowError:  # an integer beyond float64
            by_task[task] = math.inf
        if not math.isfinite(by_task[task]):
            raise UsageError(f"weight of task {name!r} is {by_task[task]}, must be finite")
    missing = [task for task in manifest.tasks if task not in by_task]
    if missing:
        raise UsageError(
            f"no weight for task {shorten(missing)}", fix="name every task; 0 leaves one out"
        )
    return [by_task[task] for task in manifest.tasks]


def _linear(
    label: str, weights: list[float], manifest: Manifest, source: str | None, scaling: float = 1.0
) -> Selection:
    try:
        total = math.fsum(weights)
    except OverflowError as error:
        raise UsageError("weights are too large to be added", fix="pass smaller ones") from error
    if total == 0:
        average = [1.0 / len(weights)] * len(weights)  # weights that cancel define no average
    else:
        average = [weight / total for weight in weights]
    scaled = {task: weight * scaling for task, weight in enumerate(weights) if weight * scaling}
    return Selection(
        label,
        Mix(_with_gains(scaled, manifest, source)),
        Mix({task: weight for task, weight in enumerate(average) if weight}),
        is_task=False,
        merge=source,
    )


def load_weights(path: Path) -> dict[str, float]:
    """A JSON object task → weight.

    Raises:
        StorageError: the file cannot be read.
        UsageError: it is no such object.
    """
    return read_json_object(path, "weights file", UsageError)
