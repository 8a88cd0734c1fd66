"""Scores as a table: a row per model, or per group of fine-tunes each on its own task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from svd_hybrid.evaluation.result import EvalResult, SubjectScores, mean, normalised
from svd_hybrid.evaluation.scoring import TaskScore

GROUPED = ("fine-tuned", "recovered")
NOTHING = "–"


def header(result: EvalResult) -> list[str]:
    """Column names."""
    shares = ["normalised"] if result.references.scores else []
    return ["model", *result.tasks, "mean", *shares]


def rows(result: EvalResult) -> Iterator[list[str]]:
    """Cells, row by row."""
    for label, tasks in _groups(result):
        scores = [tasks[task].scores[result.metric.name] for task in tasks]
        cells = [
            shown(tasks[task].scores[result.metric.name]) if task in tasks else NOTHING
            for task in result.tasks
        ]
        whole = len(tasks) == len(result.tasks)
        cells.append(shown(mean(scores)) if whole else NOTHING)
        if result.references.scores:
            shares = normalised(tasks, result.references, result.metric)
            share = mean(list(shares.values())) if len(shares) == len(result.tasks) else None
            cells.append(shown(share, 4))
        yield [label, *cells]


def _groups(result: EvalResult) -> Iterator[tuple[str, Mapping[str, TaskScore]]]:
    """Fine-tunes scored on nothing but their own task make one row together."""
    grouped: dict[str, dict[str, TaskScore]] = {}
    for row in result.subjects:
        if _only_own(row):
            grouped.setdefault(row.kind, {}).update(row.tasks)
    shown: set[str] = set()
    for row in result.subjects:
        if not _only_own(row):
            yield (row.name if row.kind == "base" else f"{row.kind} {row.name}"), row.tasks
        elif row.kind not in shown:
            shown.add(row.kind)
            yield row.kind, grouped[row.kind]


def _only_own(row: SubjectScores) -> bool:
    return row.kind in GROUPED and list(row.tasks) == [row.name]


def shown(score: float | None, digits: int = 2) -> str:
    """A number; two digits are what accuracies of a few hundred examples hold."""
    return NOTHING if score is None else f"{score:.{digits}f}"
