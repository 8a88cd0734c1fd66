"""A comparison as a table: fine-tunes and base, a row per method, the winner as it comes back."""

from __future__ import annotations

from collections.abc import Iterator

from svd_hybrid.comparison.judge import Verdict
from svd_hybrid.comparison.result import Candidate, CompareResult, Finalist
from svd_hybrid.console import size
from svd_hybrid.evaluation.result import mean
from svd_hybrid.evaluation.table import NOTHING, shown

COSTS = ("tried", "bytes", "merge CPU s")


def title(result: CompareResult) -> str:
    """What the numbers are."""
    metric = result.metric
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{metric.name} on test data{unit}" + (
        "" if metric.higher_is_better else " (lower is better)"
    )


def header(result: CompareResult) -> list[str]:
    """Column names."""
    return ["merge", "chosen", *result.tasks, "mean", "normalised", "validation", *COSTS]


def rows(result: CompareResult) -> Iterator[list[str]]:
    """Cells, row by row."""
    nothing = [""] * len(COSTS)
    yield [*_reference(result), *nothing]
    base = _scores(result, result.base["test"], result.base["validation"].value)
    yield ["base", "", *base, *nothing]
    for finalist in result.finalists:
        yield _finalist(result, finalist)
    if result.shipped is not None:
        scores = _scores(result, result.shipped.test, None)
        nbytes = size(result.shipped.nbytes)
        yield [f"artifact, {result.shipped.merge}", "", *scores, "", nbytes, ""]


def parameters(candidate: Candidate) -> str:
    """What was varied, in a line."""
    found = dict(candidate.parameters)
    pairs = found.pop("weights", None) or found
    return " ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in pairs.items()
    )


def _reference(result: CompareResult) -> list[str]:
    facts = result.references["test"]
    scores = [facts["scores"].get(task) for task in result.tasks]
    known = [score for score in scores if score is not None]
    whole = mean(known) if len(known) == len(scores) else None
    return [facts["kind"] or "fine-tuned", "", *map(shown, scores), shown(whole), "", ""]


def _finalist(result: CompareResult, finalist: Finalist) -> list[str]:
    candidate = finalist.candidate
    tried = str(finalist.tried) + (f" (−{finalist.skipped})" if finalist.skipped else "")
    nbytes = NOTHING if finalist.nbytes is None else size(finalist.nbytes)
    costs = [tried, nbytes, shown(finalist.merge_cpu_s)]
    if finalist.test is None:
        return [candidate.method, "diverges", *[NOTHING] * (len(result.tasks) + 3), *costs]
    scores = _scores(result, finalist.test, candidate.verdict.value)
    return [candidate.method, parameters(candidate), *scores, *costs]


def _scores(result: CompareResult, test: Verdict, validation: float | None) -> list[str]:
    """Scores by task, mean, normalised mean, and what the model was worth on validation data."""
    name = result.metric.name
    scores = [
        test.found[task].scores[name] if task in test.found else None for task in result.tasks
    ]
    return [
        *map(shown, scores),
        shown(test.mean),
        shown(test.normalised, 4),
        "" if validation is None else shown(validation, 4),
    ]
