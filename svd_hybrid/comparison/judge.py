"""Scores of models on one part of the data, and what they are worth by a rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svd_hybrid.cache import ResultsCache
from svd_hybrid.comparison.rule import Found, Rule, absolute
from svd_hybrid.delta.evaluate import BeyondRangeError
from svd_hybrid.errors import UsageError
from svd_hybrid.evaluation.base import DivergedError, Evaluator
from svd_hybrid.evaluation.result import References, SubjectScores, mean, normalised
from svd_hybrid.evaluation.scoring import ModelScorer
from svd_hybrid.evaluation.subjects import Subject


@dataclass(frozen=True, slots=True)
class Verdict:
    """A model on one part of the data.

    Args:
        found: score by task; empty when the model diverged.
        value: by the rule; None when not defined.
        absolute: mean score, its sign changed where lower is better; None likewise.
        mean: mean score.
        normalised: mean share of the references; None without them.
    """

    found: Found
    value: float | None = None
    absolute: float | None = None
    mean: float | None = None
    normalised: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "scores": {task: dict(score.scores) for task, score in self.found.items()},
            "value": self.value,
            "mean": self.mean,
            "normalised_mean": self.normalised,
        }


class Judge:
    """Scores models on one part of the data.

    Args:
        evaluator: of that part.
        tasks: scored.
        rule: what a verdict is worth.
        cache: of results.
    """

    def __init__(
        self, evaluator: Evaluator, tasks: Sequence[str], rule: Rule, cache: ResultsCache | None
    ) -> None:
        self.scorer = ModelScorer(evaluator, cache)
        self.metric = evaluator.metrics[0]
        self.tasks = tuple(tasks)
        self.rule = rule
        self.references = References()

    def refer_to(self, fine_tunes: Iterable[Subject]) -> None:
        """Score every fine-tune on its own task, to compare others with.

        Raises:
            UsageError: a task has none, and the rule needs it.
        """
        rows = []
        for subject in fine_tunes:
            if subject.own_task in self.tasks:
                scores = self.scorer.scores(subject, (subject.name,))
                rows.append(SubjectScores.of(subject, scores))
        self.references = References.among(rows, self.metric)
        without = [task for task in self.tasks if task not in self.references.scores]
        if without and self.rule.needs_references:
            raise UsageError(
                f"rule {self.rule.name} compares with the fine-tune of each task, and there is "
                f"none of {without[0]!r}",
                fix="pass --rule mean, or an artifact that keeps its tasks",
            )

    def verdict(self, subject: Subject) -> Verdict:
        """Score a model; one that diverges is worth nothing."""
        try:
            return self.of(self.scorer.scores(subject, self.tasks))
        except (DivergedError, BeyondRangeError):
            return Verdict({})

    def of(self, found: Found) -> Verdict:
        """What scores are worth."""
        metric, references = self.metric, self.references
        shares = normalised(found, references, metric)
        return Verdict(
            found,
            self.rule.value(found, references, metric),
            absolute(found, references, metric),
            mean([score.scores[metric.name] for score in found.values()]),
            mean(list(shares.values())) if len(shares) == len(found) else None,
        )

    @property
    def floor(self) -> float:
        """What a verdict's value must exceed: 0, where values are shares or percent."""
        positive = self.rule.needs_references or self.metric.unit == "percent"
        return 0.0 if positive else float("-inf")

    def settings(self) -> Mapping[str, Any]:
        """The part of the data, for `--json`."""
        return self.scorer.evaluator.part.as_json()
