"""One point of one family: compressed, every task rebuilt, compared and scored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rate_distortion.evaluator import Evaluator
from rate_distortion.families import Family, Metric
from rate_distortion.points import Point
from svd_hybrid import Artifact
from svd_hybrid.compress.api import compress
from svd_hybrid.numerics.metrics import ErrorSums
from svd_hybrid.reload.api import reload


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one point.

    Args:
        point: its name.
        series: its series.
        nbytes: every file of the directory.
        bits: per parameter of every task, all tensors, all bytes.
        relative_error: norm of all tasks' error over that of all their deltas.
        task_errors: the same per task.
        shrink: share of the deltas lost along themselves.
        noise: norm of what was added across them, relative to them.
        compress_cpu_s: of `compress()`, with its own check of what it wrote.
        reload_cpu_s: of `reload()`, mean over the tasks.
        drops: what each task lost, accuracy points or percent of perplexity; None if not scored.
    """

    point: str
    series: str
    nbytes: int
    bits: float
    relative_error: float
    task_errors: Mapping[str, float]
    shrink: float
    noise: float
    compress_cpu_s: float
    reload_cpu_s: float
    drops: Mapping[str, float] | None = None

    @property
    def worst_error(self) -> float:
        """Largest relative error of a task."""
        return max(self.task_errors.values())

    @property
    def mean_drop(self) -> float | None:
        """Mean over the tasks."""
        return fmean(self.drops.values()) if self.drops else None

    @property
    def worst_drop(self) -> tuple[str, float] | None:
        """The task that lost most, and how much."""
        return max(self.drops.items(), key=lambda item: item[1]) if self.drops else None

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def drop(metric: Metric, before: float, after: float) -> float:
    """What a task lost; negative where it won.

    >>> drop("accuracy", 90.0, 89.5), drop("perplexity", 20.0, 21.0)
    (0.5, 5.0)
    """
    return before - after if metric == "accuracy" else 100 * (after - before) / before


def scores_of_originals(family: Family, evaluator: Evaluator) -> dict[str, float]:
    """Score of every fine-tune on its own task."""
    return {t: evaluator.scores(path, [t])[t] for t, path in family.tasks.items()}


def measure(
    family: Family,
    point: Point,
    scratch: Path,
    evaluator: Evaluator | None,
    originals: Mapping[str, float],
) -> Row:
    """Compress with the point's parameters and look at what comes back.

    Args:
        family: what is compressed.
        point: how.
        scratch: an empty folder; left empty.
        evaluator: None to leave the scores out.
        originals: score of every fine-tune, with an evaluator.
    """
    art = scratch / "artifact"
    try:
        made = compress(family.base, family.tasks, art, **point.parameters)
        nbytes = sum(path.stat().st_size for path in art.rglob("*") if path.is_file())
        errors = task_errors(family, Artifact.open(art))
        reload_s, drops = [], {}
        for task in family.tasks:
            rebuilt = reload(art, family.base, scratch / "rebuilt", task=task, overwrite=True)
            reload_s.append(rebuilt.cpu_s)
            if evaluator is not None:
                score = evaluator.scores(scratch / "rebuilt", [task])[task]
                drops[task] = drop(family.metric, originals[task], score)
    finally:
        for path in scratch.iterdir():
            shutil.rmtree(path)
    whole = ErrorSums()
    for sums in errors.values():
        whole.merge(sums)
    return Row(
        point.name,
        point.series,
        nbytes,
        8 * nbytes / (made.bytes["parameters"] * len(family.tasks)),
        whole.relative_error or 0.0,
        {task: sums.relative_error or 0.0 for task, sums in errors.items()},
        whole.shrink or 0.0,
        whole.noise or 0.0,
        made.cpu_s,
        fmean(reload_s),
        drops or None,
    )


def task_errors(family: Family, artifact: Artifact) -> dict[str, ErrorSums]:
    """What the artifact gives back of every task's deltas, against the checkpoints.

    In float32, so that rounding to the base's dtype is not counted as an error of the artifact.
    """
    errors = {task: ErrorSums() for task in family.tasks}
    rebuilt = (artifact.iter_tensors(family.base, task=t, dtype="F32") for t in family.tasks)
    stacks = family.open()
    for models in zip(*rebuilt, strict=True):
        name = models[0][0]
        stack = stacks.stack(name)
        if stack.deltas is None:
            continue
        for sums, delta, (_, weight) in zip(errors.values(), stack.deltas, models, strict=True):
            sums.add(delta, weight - stack.base.to(delta.dtype))
    return errors
