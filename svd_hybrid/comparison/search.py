"""Weights of an artifact's tasks, found by trying: the originals are not needed.

First equal weights at several sizes, then one task at a time a step up and a step down, kept where
that is better; a round without gain halves the step. Nothing is drawn at random, and no weighting
is tried twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from svd_hybrid.errors import ParameterError

DIGITS = 6
"""Weights are decimal numbers of so many digits, so that equal ones are equal."""
SIZES = tuple(round(step / 10, 1) for step in range(1, 11))
"""Equal weights tried first: the grid of task arithmetic, methods.md §0.4."""

Weights = tuple[float, ...]
Value = Callable[[Weights], float | None]
"""How good a weighting is, larger is better; None where the model diverges."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How long and how finely to look.

    Args:
        budget: weightings tried at most.
        step: first step of a weight, > 0.
        smallest_step: the search ends below it.
    """

    budget: int = 60
    step: float = 0.2
    smallest_step: float = 0.05

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ParameterError(f"search budget is {self.budget}, must be 1 or more")
        if not 0 < self.smallest_step <= self.step:
            raise ParameterError(
                f"search steps are {self.step} and {self.smallest_step}, "
                "must be > 0 and the second no larger"
            )


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best weighting that was tried.

    Args:
        weights: in task order.
        value: of it.
        tried: weightings.
        complete: whether the search ended by itself, not by its budget.
    """

    weights: Weights
    value: float
    tried: int
    complete: bool


class _Spent(Exception):  # noqa: N818 (no error: the budget is used up)
    pass


class _Search:
    def __init__(self, value: Value, settings: SearchSettings) -> None:
        self.value = value
        self.settings = settings
        self.known: dict[Weights, float] = {}
        self.best: Weights = ()

    def better(self, weights: Weights) -> bool:
        """Try a weighting; whether it is strictly better than the best."""
        if weights in self.known:
            return False
        if len(self.known) >= self.settings.budget:
            raise _Spent
        found = self.value(weights)
        self.known[weights] = float("-inf") if found is None else found
        if self.best and not self.known[weights] > self.known[self.best]:
            return False
        self.best = weights
        return True

    def run(self, count: int, sizes: Sequence[float]) -> None:
        for size in sizes:
            self.better((size,) * count)
        step = self.settings.step
        while step >= self.settings.smallest_step:
            moves = [self._moved(task, step) for task in range(count)]
            step = step if any(moves) else step / 2

    def _moved(self, task: int, step: float) -> bool:
        """Whether a step up, else a step down, of one weight is better."""
        for change in (step, -step):
            weight = round(max(self.best[task] + change, 0.0), DIGITS)
            if self.better((*self.best[:task], weight, *self.best[task + 1 :])):
                return True
        return False


def search_weights(
    value: Value,
    count: int,
    settings: SearchSettings | None = None,
    sizes: Sequence[float] = SIZES,
) -> SearchResult:
    """Weights that make `value` large.

    Args:
        value: how good a weighting is.
        count: tasks.
        settings: how long to look.
        sizes: equal weights to begin with; at least one.

    Raises:
        ParameterError: every weighting tried diverges.

    >>> target = lambda w: -abs(w[0] - 0.8) - abs(w[1] - 0.3)
    >>> search_weights(target, 2).weights
    (0.8, 0.3)
    """
    search = _Search(value, settings or SearchSettings())
    try:
        search.run(count, sizes)
        complete = True
    except _Spent:
        complete = False
    best = search.known[search.best]
    if best == float("-inf"):
        raise ParameterError("every weighting that was tried diverges", fix="try smaller weights")
    return SearchResult(search.best, best, len(search.known), complete)
