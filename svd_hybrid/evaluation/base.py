"""What an evaluator is: it scores a live model on the data of one task.

An evaluator holds data and settings, never a model. `open` builds a model from a state dict; what
it returns scores one task at a time. `identity` says everything a score depends on besides the
model, so that results can be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from svd_hybrid.errors import SvdhError, shorten
from svd_hybrid.evaluation.split import Part

State: TypeAlias = Mapping[str, Tensor]
Scores: TypeAlias = Mapping[str, float]
Scorer: TypeAlias = Callable[[str], Scores]


class EvaluationError(SvdhError):
    """Data, heads, tokenizer or evaluator do not fit the model, or each other."""

    exit_code = 3
    usual_fix = "check that model, data and heads belong together"


class DivergedError(EvaluationError):
    """The model's outputs are NaN, infinite, or too large to score."""

    usual_fix = "repair the model that is named"


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that says how good a model is.

    Args:
        name: as scores name it.
        higher_is_better: whether larger numbers are better.
        unit: `percent`, or nothing.
    """

    name: str
    higher_is_better: bool
    unit: str = ""

    def better(self, score: float, than: float) -> bool:
        """Whether a score is strictly better than another."""
        return score > than if self.higher_is_better else score < than

    def normalised(self, score: float, reference: float) -> float | None:
        """How much of a reference is reached: 1 is as good, more is better; None beside zero.

        >>> Metric("accuracy", True).normalised(45.0, 90.0)
        0.5
        >>> Metric("perplexity", False).normalised(40.0, 20.0)
        0.5
        """
        over, under = (score, reference) if self.higher_is_better else (reference, score)
        return over / under if under else None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "unit": self.unit,
            "better": "higher" if self.higher_is_better else "lower",
        }


class Evaluator(Protocol):
    """Data of some tasks, and how a model is scored on them."""

    @property
    def name(self) -> str:
        """`vision`, `text`, `perplexity`, or `module:function`."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What `open(state)(task)` returns, by name; models are chosen by the first."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks it has data for."""

    @property
    def part(self) -> Part:
        """The part of the data that it scores on."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know."""

    def count(self, task: str) -> int:
        """Examples (for perplexity, tokens) of a task in this part; 0 when not known."""

    def identity(self, task: str) -> Mapping[str, Any] | None:
        """Everything a score depends on besides the model and code, as JSON; None if unknown."""

    def open(self, state: State) -> Scorer:
        """A function that scores the model of these weights on one task.

        Raises:
            EvaluationError: the weights do not fit the model, or the heads.
        """

    def restricted(self, part: Part) -> Evaluator:
        """The same on another part of the data.

        Raises:
            UsageError: this evaluator cannot be asked for parts.
        """


def checked(scores: Mapping[str, Any], evaluator: Evaluator, task: str) -> dict[str, float]:
    """The scores, when they are one finite number for each metric.

    Raises:
        EvaluationError: they are not.
    """
    names = [metric.name for metric in evaluator.metrics]
    where = f"evaluator {evaluator.name}, task {task!r}"
    if set(scores) != set(names):
        raise EvaluationError(
            f"evaluator gave scores {shorten(sorted(map(str, scores)))}, "
            f"it declares {shorten(sorted(names))}",
            where=where,
            fix="return every declared metric and no other",
        )
    found = {}
    for name in names:
        score = scores[name]
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if not (is_number and math.isfinite(score)):
            raise EvaluationError(
                f"evaluator gave {name} = {score!r}, which is no finite number", where=where
            )
        found[name] = float(score)
    return found
