"""Scores of models on tasks, measured once and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from svd_hybrid.cache import ResultsCache
from svd_hybrid.errors import StorageError
from svd_hybrid.evaluation.base import DivergedError, Evaluator, Scorer, State, checked
from svd_hybrid.evaluation.subjects import Subject
from svd_hybrid.numerics.largest import all_finite

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One model on one task.

    Args:
        scores: by metric.
        count: examples (for perplexity, tokens); 0 when not known.
        kept: whether it was measured before.
    """

    scores: Mapping[str, float]
    count: int
    kept: bool = False


class ModelScorer:
    """Scores models with one evaluator, through a cache.

    Args:
        evaluator: whose first metric counts.
        cache: where results are kept; None to keep none.
    """

    def __init__(self, evaluator: Evaluator, cache: ResultsCache | None) -> None:
        self.evaluator = evaluator
        self.cache = cache
        self.notes: list[str] = []

    def scores(self, subject: Subject, tasks: Sequence[str]) -> dict[str, TaskScore]:
        """Scores of a model on some tasks; it is built only if one of them is not known yet.

        Raises:
            EvaluationError: the model does not fit, or the evaluator does not do what it says.
        """
        scorer: Scorer | None = None
        found: dict[str, TaskScore] = {}
        for task in tasks:
            key = self._key(subject, task)
            kept = self.cache.get(key) if self.cache and key else None
            count = self.evaluator.count(task)
            if kept is not None:
                found[task] = TaskScore(kept["scores"], count, kept=True)
                continue
            scorer = scorer or self.evaluator.open(_finite(subject))
            scores = checked(scorer(task), self.evaluator, task)
            found[task] = TaskScore(scores, count)
            if key:
                self._keep(key, scores, subject, task)
        return found

    def _key(self, subject: Subject, task: str) -> Mapping[str, object] | None:
        if self.cache is None:
            return None
        identity = self.evaluator.identity(task)
        if identity is None:
            self._note(f"results of {self.evaluator.name} are not kept: it has no identity")
            return None
        return {"model": subject.identity(), "task": task, "evaluation": identity}

    def _keep(
        self, key: Mapping[str, object], scores: Mapping[str, float], subject: Subject, task: str
    ) -> None:
        if self.cache is None:
            return
        about = {
            "model": subject.label,
            "task": task,
            "part": self.evaluator.part.name,
            "evaluator": self.evaluator.name,
        }
        try:
            self.cache.put(key, {"scores": dict(scores)}, about)
        except StorageError as error:  # a result is worth more than its copy
            self._note(f"results are not kept: {error.what} ({error.where})")
            self.cache = None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _finite(subject: Subject) -> State:
    """The weights of a model, each a number: attention may hide a NaN from the outputs."""
    state = subject.load()
    for name, tensor in state.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise DivergedError(
                "model holds NaN or infinity", where=f"tensor {name!r} of {subject.label}"
            )
    return state
