"""eval: base, fine-tunes and whatever an artifact gives back → scores on every task."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from svd_hybrid.cache import ResultsCache
from svd_hybrid.errors import UsageError, shorten
from svd_hybrid.evaluation.base import EvaluationError, Evaluator
from svd_hybrid.evaluation.result import EvalResult, References, SubjectScores
from svd_hybrid.evaluation.scoring import ModelScorer, Progress
from svd_hybrid.evaluation.subjects import (
    KINDS,
    ArtifactSubjects,
    Kind,
    Subject,
    base_subject,
    fine_tuned,
)
from svd_hybrid.io.family import FamilyPolicy
from svd_hybrid.io.lookup import fold_name, match_name
from svd_hybrid.io.reader import open_checkpoint


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What to evaluate.

    Args:
        base: base checkpoint.
        evaluator: how, and on what data.
        artifact_dir: whose tasks and merges are scored; None for none.
        checkpoints: original fine-tunes by task.
        tasks: data to score on; empty for the tasks of artifact and checkpoints, without either
            for all there are data for.
        merges: of the artifact; empty for all.
        weights: a new weighting of the artifact's tasks.
        kinds: what is scored.
        cross: score fine-tunes on every task instead of their own.
        policy: what a checkpoint that does not fit the base means.
        cache: of results; None to keep none.
    """

    base: Path
    evaluator: Evaluator
    artifact_dir: Path | None = None
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    merges: tuple[str, ...] = ()
    weights: Mapping[str, float] | None = None
    kinds: tuple[Kind, ...] = KINDS
    cross: bool = False
    policy: FamilyPolicy = field(default_factory=FamilyPolicy)
    cache: ResultsCache | None = None


def run_eval(request: EvalRequest, progress: Progress | None = None) -> EvalResult:
    """Score every subject of a request.

    Raises:
        UsageError: tasks or merges that do not exist, or nothing to score.
        EvaluationError: a task without data, or data that do not fit the model.
        SvdhError: as checkpoints and artifact deserve.
    """
    wall, cpu = time.monotonic(), time.process_time()
    artifact = None
    if request.artifact_dir is not None:
        artifact = ArtifactSubjects(request.artifact_dir, request.base)
    known = list(dict.fromkeys([*(artifact.tasks if artifact else ()), *request.checkpoints]))
    tasks = scored_tasks(request.evaluator, request.tasks, known)
    wanted = list(_subjects(request, artifact, tasks))
    if not wanted:
        raise UsageError("nothing to evaluate", fix="pass --artifact-dir or --checkpoint-dir")
    scorer = ModelScorer(request.evaluator, request.cache)
    found = []
    for done, subject in enumerate(wanted, start=1):
        own = subject.own_task
        on = tasks if own is None or request.cross else (own,)
        found.append(SubjectScores.of(subject, scorer.scores(subject, on)))
        if progress:
            progress("evaluate", done, len(wanted))
    kept = sum(score.kept for row in found for score in row.tasks.values())
    return EvalResult(
        request.evaluator.name,
        request.evaluator.metrics,
        request.evaluator.part.as_json(),
        tasks,
        tuple(found),
        References.among(found, request.evaluator.metrics[0]),
        artifact.artifact_id if artifact else "",
        (*scorer.notes, *request.evaluator.notes),
        kept,
        time.monotonic() - wall,
        time.process_time() - cpu,
    )


def asked_tasks(asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The tasks to score on, by the names the family has; all of them when none is asked for.

    A task that the family does not know is taken as it is: there may be data for it.
    """
    tasks = [_known_name(name, known) for name in asked] or list(known)
    return tuple(dict.fromkeys(tasks))


def _known_name(name: str, known: Sequence[str]) -> str:
    close = [other for other in known if fold_name(other) == fold_name(name)]
    return name if name in known or not close else match_name(name, known, "task", "--task")


def scored_tasks(
    evaluator: Evaluator, asked: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """As `asked_tasks`, of those alone that an evaluator has data for when nobody knows any.

    Raises:
        EvaluationError: a task without data.
    """
    tasks = asked_tasks(asked, known) or evaluator.tasks
    without = [task for task in tasks if task not in evaluator.tasks]
    if without:
        raise EvaluationError(
            f"no data for task {shorten(without)}",
            where=f"evaluator {evaluator.name} has data for {shorten(list(evaluator.tasks), 12)}",
            fix="add its data, or name the tasks to score with --task",
        )
    return tuple(tasks)


def _subjects(
    request: EvalRequest, artifact: ArtifactSubjects | None, tasks: tuple[str, ...]
) -> Iterator[Subject]:
    if "base" in request.kinds:
        yield base_subject(open_checkpoint(request.base))
    if "fine-tuned" in request.kinds:
        checkpoints = {t: path for t, path in request.checkpoints.items() if t in tasks}
        yield from fine_tuned(request.base, checkpoints, request.policy)
    if artifact is None:
        if request.merges or request.weights is not None:
            raise UsageError(
                "merges and weightings come from an artifact", fix="pass --artifact-dir DIR"
            )
        return
    if "recovered" in request.kinds and artifact.recovers_tasks:
        yield from (artifact.recovered(task) for task in artifact.tasks if task in tasks)
    if "merge" in request.kinds:
        yield from (artifact.merge(name) for name in request.merges or artifact.merges)
    if request.weights is not None:
        yield artifact.weighting("given", request.weights)
