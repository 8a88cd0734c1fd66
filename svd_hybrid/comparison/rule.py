"""Which candidate is best: a stated rule on validation scores, and when a grid stops early.

Source: methods.md §0.4: the mean over tasks of score / fine-tuned score decides, the first maximum
wins, it must exceed 0; a scaling grid stops after three scalings without a better absolute mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from svd_hybrid.evaluation.base import Metric
from svd_hybrid.evaluation.result import References, mean, normalised
from svd_hybrid.evaluation.scoring import TaskScore
from svd_hybrid.registry import Registry

Found = Mapping[str, TaskScore]
PATIENCE = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """A number that says how good a candidate is; larger is better.

    Args:
        name: kebab-case.
        summary: one sentence.
        value: of scores by task; None where it is not defined.
        needs_references: whether scores of the tasks' own fine-tunes are needed.
    """

    name: str
    summary: str
    value: Callable[[Found, References, Metric], float | None]
    needs_references: bool = True


def _normalised(found: Found, references: References, metric: Metric) -> float | None:
    shares = normalised(found, references, metric)
    return mean(list(shares.values())) if len(shares) == len(found) else None


def _worst(found: Found, references: References, metric: Metric) -> float | None:
    shares = normalised(found, references, metric)
    return min(shares.values(), default=None) if len(shares) == len(found) else None


def absolute(found: Found, _references: References, metric: Metric) -> float | None:
    """The mean score over tasks, its sign changed where lower is better."""
    value = mean([score.scores[metric.name] for score in found.values()])
    return value if value is None or metric.higher_is_better else -value


RULES = Registry(
    "rule",
    [
        Rule("normalised", "Mean over tasks of the score over the fine-tune's own.", _normalised),
        Rule("worst", "The same of the task that suffers most.", _worst),
        Rule("mean", "Mean score over tasks.", absolute, needs_references=False),
    ],
)


class Best:
    """The first of the best candidates seen so far.

    Args:
        floor: a value that must be exceeded.
    """

    def __init__(self, floor: float = float("-inf")) -> None:
        self.value = floor
        self.index: int | None = None
        self._seen = 0

    def offer(self, value: float | None) -> bool:
        """Count a candidate; whether it is strictly better than all before."""
        index, self._seen = self._seen, self._seen + 1
        if value is None or not value > self.value:
            return False
        self.value, self.index = value, index
        return True


class EarlyStop:
    """Says when a grid is no longer worth trying.

    Args:
        patience: candidates in a row without a better one; 0 to try all.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        self.patience = patience
        self._best = Best()
        self._without = 0

    def after(self, value: float | None) -> bool:
        """Count a candidate; whether to stop."""
        self._without = 0 if self._best.offer(value) else self._without + 1
        return bool(self.patience) and self._without >= self.patience
