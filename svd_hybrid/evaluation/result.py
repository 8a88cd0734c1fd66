"""What an evaluation found: scores of models by task, their means, and how much of a reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from svd_hybrid.evaluation.base import Metric
from svd_hybrid.evaluation.scoring import TaskScore
from svd_hybrid.evaluation.subjects import Kind, Subject


@dataclass(frozen=True, slots=True)
class SubjectScores:
    """One model.

    Args:
        kind, name: which.
        tasks: score by task.
    """

    kind: Kind
    name: str
    tasks: Mapping[str, TaskScore]

    @classmethod
    def of(cls, subject: Subject, tasks: Mapping[str, TaskScore]) -> SubjectScores:
        """The scores of a subject."""
        return cls(subject.kind, subject.name, tasks)


@dataclass(frozen=True, slots=True)
class References:
    """What scores are compared with: each task's own fine-tune.

    Args:
        kind: `fine-tuned` for the originals, `recovered` for what the artifact gives back, empty
            for none.
        scores: primary metric by task.
    """

    kind: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def among(cls, found: Iterable[SubjectScores], metric: Metric) -> References:
        """The originals on their own tasks, else the recovered fine-tunes."""
        rows = list(found)
        for kind in ("fine-tuned", "recovered"):
            own = {
                row.name: row.tasks[row.name].scores[metric.name]
                for row in rows
                if row.kind == kind and row.name in row.tasks
            }
            if own:
                return cls(kind, own)
        return cls()


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing.

    >>> mean([1.0, 2.0]), mean([])
    (1.5, None)
    """
    return math.fsum(values) / len(values) if values else None


def normalised(
    tasks: Mapping[str, TaskScore], references: References, metric: Metric
) -> dict[str, float]:
    """Score over reference (reference over score where lower is better), where there is one."""
    found = {}
    for task, score in tasks.items():
        if task in references.scores:
            share = metric.normalised(score.scores[metric.name], references.scores[task])
            if share is not None:
                found[task] = share
    return found


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Everything one run of `svdh eval` found.

    Args:
        evaluator: its name.
        metrics: the first one counts.
        part: of the data.
        tasks: scored, in order.
        subjects: in the order they were scored.
        references: what normalised scores refer to.
        artifact_id: of the artifact; empty without one.
        notes: what the user should know.
        kept: scores that were known from before.
        wall_s, cpu_s: time of the run.
    """

    evaluator: str
    metrics: tuple[Metric, ...]
    part: Mapping[str, Any]
    tasks: tuple[str, ...]
    subjects: tuple[SubjectScores, ...]
    references: References
    artifact_id: str
    notes: tuple[str, ...]
    kept: int
    wall_s: float
    cpu_s: float

    @property
    def metric(self) -> Metric:
        """The one that counts."""
        return self.metrics[0]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "evaluator": self.evaluator,
            "metric": self.metric.as_json(),
            "metrics": [metric.as_json() for metric in self.metrics],
            "part": dict(self.part),
            "tasks": list(self.tasks),
            "artifact_id": self.artifact_id,
            "normalised_by": self.references.kind,
            "subjects": [self._record(row) for row in self.subjects],
            "notes": list(self.notes),
            "kept": self.kept,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }

    def _record(self, row: SubjectScores) -> dict[str, Any]:
        shares = normalised(row.tasks, self.references, self.metric)
        name = self.metric.name
        return {
            "kind": row.kind,
            "name": row.name,
            "scores": {
                task: {
                    **score.scores,
                    **({"normalised": shares[task]} if task in shares else {}),
                    "count": score.count,
                }
                for task, score in row.tasks.items()
            },
            "mean": mean([score.scores[name] for score in row.tasks.values()]),
            "normalised_mean": mean(list(shares.values())),
        }
