"""What a comparison found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svd_hybrid.comparison.judge import Verdict
from svd_hybrid.comparison.rule import Rule
from svd_hybrid.evaluation.base import Metric

SEARCHED = "searched-weights"
"""What stands for a method in the row of a weight search."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One merge at one scaling, on validation data.

    Args:
        method: id.
        parameters: those that the grid varies, scaling included.
        verdict: on validation data.
    """

    method: str
    parameters: Mapping[str, Any]
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "method": self.method,
            "parameters": dict(self.parameters),
            "diverged": not self.verdict.found,
            "validation": self.verdict.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Finalist:
    """The best candidate of one method.

    Args:
        candidate: which.
        test: on test data; None when every candidate of the method diverged.
        nbytes: size of an artifact that holds this merge alone; None when there is none.
        merge_cpu_s: time to compute it.
        tried: candidates of the method.
        skipped: grid points an early stop left out.
    """

    candidate: Candidate
    test: Verdict | None
    nbytes: int | None
    merge_cpu_s: float | None
    tried: int
    skipped: int = 0

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **self.candidate.as_json(),
            "test": None if self.test is None else self.test.as_json(),
            "bytes": self.nbytes,
            "merge_cpu_s": self.merge_cpu_s,
            "tried": self.tried,
            "skipped": self.skipped,
        }


@dataclass(frozen=True, slots=True)
class Shipped:
    """The best merge as an artifact.

    Args:
        folder: the directory.
        artifact_id: of it.
        merge: name of the merge.
        nbytes: size of the directory.
        test: the merge as it comes back, on test data.
    """

    folder: Path
    artifact_id: str
    merge: str
    nbytes: int
    test: Verdict

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "artifact_dir": str(self.folder),
            "artifact_id": self.artifact_id,
            "merge": self.merge,
            "bytes": self.nbytes,
            "test": self.test.as_json(),
        }


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Everything one run of `svdh compare` found.

    Args:
        evaluator: its name.
        metric: that counts.
        rule: by which candidates are chosen.
        tasks: in order.
        parts: `validation` and `test`: which data.
        references: per part, kind and score of every task's own fine-tune.
        base: the base on both parts.
        candidates: in the order they were tried.
        finalists: one per method.
        best: the finalist that won on validation data; None when all diverged.
        shipped: the winner as an artifact; None unless asked for.
        notes: what the user should know.
        wall_s, cpu_s: time of the run.
    """

    evaluator: str
    metric: Metric
    rule: Rule
    tasks: tuple[str, ...]
    parts: Mapping[str, Mapping[str, Any]]
    references: Mapping[str, Mapping[str, Any]]
    base: Mapping[str, Verdict]
    candidates: tuple[Candidate, ...]
    finalists: tuple[Finalist, ...]
    best: Finalist | None
    shipped: Shipped | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "evaluator": self.evaluator,
            "metric": self.metric.as_json(),
            "rule": {"name": self.rule.name, "summary": self.rule.summary},
            "tasks": list(self.tasks),
            "parts": {name: dict(part) for name, part in self.parts.items()},
            "references": {name: dict(facts) for name, facts in self.references.items()},
            "base": {name: verdict.as_json() for name, verdict in self.base.items()},
            "methods": [finalist.as_json() for finalist in self.finalists],
            "best": None if self.best is None else self.best.as_json(),
            "candidates": [candidate.as_json() for candidate in self.candidates],
            "artifact": None if self.shipped is None else self.shipped.as_json(),
            "notes": list(self.notes),
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }
