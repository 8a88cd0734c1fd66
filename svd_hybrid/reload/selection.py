"""What to rebuild: one task, given weights or a stored merge, as weights over the stored tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from svd_hybrid.artifact.jsonfile import read_json_object
from svd_hybrid.artifact.manifest import Manifest
from svd_hybrid.errors import UsageError, shorten
from svd_hybrid.io.lookup import match_name


@dataclass(frozen=True, slots=True)
class Selection:
    """What to rebuild: one task, or a weighted sum of tasks.

    Args:
        label: for people: `task cars`, `merge merged`, `weights w.json`.
        weights: task index → weight, zero weights left out; scaling included.
        buffer_weights: the same for running statistics: they sum to 1, without scaling.
        is_task: one fine-tune as it was, rather than a merge.
    """

    label: str
    weights: Mapping[int, float]
    buffer_weights: Mapping[int, float]
    is_task: bool


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
        task: name of one fine-tune.
        weights: task → finite weight, every task of the artifact named.
        merge: name of a stored merge.

    Raises:
        UsageError: more than one of the three, or weights that do not fit the tasks.
        UnknownNameError: no such task or merge.
    """
    if sum(choice is not None for choice in (task, weights, merge)) > 1:
        raise UsageError("task, weights and merge exclude each other", fix="pass one of them")
    if task is not None:
        index = manifest.task_index(task)
        return Selection(f"task {task}", {index: 1.0}, {index: 1.0}, is_task=True)
    if weights is not None:
        given = _weights_in_order(manifest, weights)
        return _linear("given weights", given, 1.0)
    chosen = manifest.merge(merge)
    numbers = [float(weight) for weight in chosen.weights]  # JSON may hold integers
    label = f"merge {merge or manifest.default_merge}"
    return _linear(label, numbers, float(chosen.scaling))


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


def _linear(label: str, weights: list[float], scaling: float) -> Selection:
    try:
        total = math.fsum(weights)
    except OverflowError as error:
        raise UsageError("weights are too large to be added", fix="pass smaller ones") from error
    if total == 0:
        average = [1.0 / len(weights)] * len(weights)  # weights that cancel define no average
    else:
        average = [weight / total for weight in weights]
    return Selection(
        label,
        {index: weight * scaling for index, weight in enumerate(weights) if weight * scaling != 0},
        {index: weight for index, weight in enumerate(average) if weight != 0},
        is_task=False,
    )


def load_weights(path: Path) -> dict[str, float]:
    """A JSON object task → weight.

    Raises:
        StorageError: the file cannot be read.
        UsageError: it is no such object.
    """
    return read_json_object(path, "weights file", UsageError)
