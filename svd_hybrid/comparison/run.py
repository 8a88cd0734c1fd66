"""compare: one family, several methods and their grids → the best by a stated rule.

Every combination of parameters is merged once, in memory, and tried at each scaling on validation
data. The best of each method is then scored on test data, which no choice has seen, and weighed as
an artifact of its own; the best of all is written if asked for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from svd_hybrid.artifact.output import ARTIFACT
from svd_hybrid.cache import ResultsCache
from svd_hybrid.comparison.grid import Combination
from svd_hybrid.comparison.judge import Judge
from svd_hybrid.comparison.result import (
    SEARCHED,
    Candidate,
    CompareResult,
    Finalist,
    Shipped,
)
from svd_hybrid.comparison.rule import PATIENCE, Best, EarlyStop, Rule
from svd_hybrid.comparison.search import SearchSettings, Weights, search_weights
from svd_hybrid.comparison.shipping import ship, winning_config
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.memory import MemoryMerge, merge_in_memory
from svd_hybrid.compress.open_family import OpenFamily, open_source
from svd_hybrid.compress.request import CompressRequest
from svd_hybrid.compress.source import DeltaSource
from svd_hybrid.delta.evaluate import BeyondRangeError
from svd_hybrid.errors import UsageError, shorten
from svd_hybrid.evaluation.base import Evaluator
from svd_hybrid.evaluation.run import scored_tasks
from svd_hybrid.evaluation.scoring import Progress
from svd_hybrid.evaluation.subjects import ArtifactSubjects, Subject, base_subject, fine_tuned, held
from svd_hybrid.io.family import FamilyPolicy
from svd_hybrid.io.outputs import check_free
from svd_hybrid.methods import METHODS


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """What to compare.

    Args:
        family: where deltas come from, and what every method is given; its configuration is that
            of no method, its `artifact_dir` where the best is written.
        combinations: to be merged, those of a method together.
        validation: on whose data candidates are chosen.
        test: on whose data the chosen ones are reported.
        rule: how they are chosen.
        writes: whether the best is written.
        tasks: scored; empty for those of the family.
        patience: early stop of scaling grids; 0 for none.
        originals: fine-tunes that scores are compared with; empty for those of the family.
        search: how to search weights of the family's artifact; None for no search.
        cache: of results.
    """

    family: CompressRequest
    combinations: Sequence[Combination]
    validation: Evaluator
    test: Evaluator
    rule: Rule
    writes: bool = False
    tasks: tuple[str, ...] = ()
    patience: int = PATIENCE
    originals: Mapping[str, Path] = field(default_factory=dict)
    search: SearchSettings | None = None
    cache: ResultsCache | None = None


def run_compare(request: CompareRequest, progress: Progress | None = None) -> CompareResult:
    """Compare methods on one family.

    Raises:
        UsageError: parameters, tasks or rules that cannot work.
        EvaluationError: data that do not fit the models, or a task without data.
        SvdhError: as `run_compress`.
    """
    return _Comparison(request, progress).run()


@dataclass(slots=True)
class _Leader:
    """The best candidate of a method so far, with what is needed to score it again."""

    candidate: Candidate
    merge: MemoryMerge
    scaling: float


class _Comparison:
    def __init__(self, request: CompareRequest, progress: Progress | None) -> None:
        self.request = request
        self.family = request.family
        self.progress = progress
        self.wall, self.cpu = time.monotonic(), time.process_time()
        if request.writes:
            check_free(self.family.artifact_dir, self.family.overwrite, ARTIFACT)
        self.source: DeltaSource = open_source(self.family)
        artifact = self.family.from_artifact
        self.stored = None if artifact is None else ArtifactSubjects(artifact, self.family.base)
        if request.search is not None and (self.stored is None or self.family.tasks):
            raise UsageError(
                "weights are searched among the tasks of an artifact", fix="pass --from-artifact"
            )
        names = list(self.source.task_names)
        self.tasks = scored_tasks(request.validation, request.tasks, names)
        scored_tasks(request.test, request.tasks, names)
        self.validation, self.test = (
            Judge(evaluator, self.tasks, request.rule, request.cache)
            for evaluator in (request.validation, request.test)
        )
        self._check_methods()
        for judge in (self.validation, self.test):
            judge.refer_to(self._fine_tunes())
        self.candidates: list[Candidate] = []
        self.notes = self._shared_data()
        self.points = sum(len(c.scalings) for c in request.combinations)

    def run(self) -> CompareResult:
        base = base_subject(self.source.base)
        bases = {"validation": self.validation.verdict(base), "test": self.test.verdict(base)}
        finalists = [
            self._finalist(list(combinations))
            for _, combinations in groupby(
                self.request.combinations, lambda combination: combination.config.method
            )
        ]
        if self.request.search is not None:
            finalists.append(self._searched(self.request.search))
        chosen = Best(self.validation.floor)
        for finalist in finalists:
            chosen.offer(finalist.candidate.verdict.value)
        best = None if chosen.index is None else finalists[chosen.index]
        if best is None:
            self.notes.append("no candidate is chosen: all diverge, or none exceeds 0")
        elif _value(bases["validation"].value) >= chosen.value:
            self.notes.append("on validation data no candidate is better than the base")
        shipped = self._ship(best) if self.request.writes and best is not None else None
        judges = {"validation": self.validation, "test": self.test}
        return CompareResult(
            self.request.validation.name,
            self.validation.metric,
            self.request.rule,
            self.tasks,
            {name: judge.settings() for name, judge in judges.items()},
            {
                name: {"kind": judge.references.kind, "scores": dict(judge.references.scores)}
                for name, judge in judges.items()
            },
            bases,
            tuple(self.candidates),
            tuple(finalists),
            best,
            shipped,
            tuple(dict.fromkeys([*self.notes, *self._scorer_notes(), *self.source.all_notes()])),
            time.monotonic() - self.wall,
            time.process_time() - self.cpu,
        )

    def _check_methods(self) -> None:
        """Refuse what a method lacks before anything is scored."""
        self._refuse_unread()
        firsts = {c.config.method: c.config for c in reversed(self.request.combinations)}
        for config in firsts.values():
            alone = replace(config, store_tasks="off")  # as merges are computed
            OpenFamily.open(self._compress_request(alone), self.source, None)

    def _refuse_unread(self) -> None:
        """Files that no method compared would look at are a mistake."""
        configs = [combination.config for combination in self.request.combinations]
        methods = [(METHODS[config.method], config) for config in configs]
        unread = {
            "statistics_dir": not any(m.reads_statistics(c.method_params) for m, c in methods),
            "mask_dir": not any(m.takes_masks for m, _ in methods),
        }
        for key, is_unread in unread.items():
            if is_unread and getattr(self.family, key) is not None:
                flag = f"--{key.replace('_', '-')}"
                raise UsageError(
                    f"no method compared reads {flag} with these parameters", fix=f"drop {flag}"
                )

    def _shared_data(self) -> list[str]:
        """A warning where candidates are chosen on the data they are reported on."""
        evaluators = (self.request.validation, self.request.test)
        shared = [
            task
            for task in self.tasks
            if (known := evaluators[0].identity(task)) is not None
            and known == evaluators[1].identity(task)
        ]
        if not shared:
            return []
        return [f"validation and test data are the same, so scores flatter: {shorten(shared)}"]

    def _scorer_notes(self) -> list[str]:
        judges = (self.validation, self.test)
        return [n for j in judges for n in (*j.scorer.notes, *j.scorer.evaluator.notes)]

    def _fine_tunes(self) -> Iterator[Subject]:
        """Every task's own model: the originals where they are given."""
        config = self.family.config
        originals = self.request.originals or self.family.tasks
        if originals:
            policy = FamilyPolicy(
                config.on_missing, config.on_extra, config.on_shape_mismatch, config.nonfinite
            )
            yield from fine_tuned(self.family.base, originals, policy)
        elif self.stored is not None and self.stored.recovers_tasks:
            yield from (self.stored.recovered(task) for task in self.stored.tasks)

    # --- a method -------------------------------------------------------------------------------

    def _finalist(self, combinations: list[Combination]) -> Finalist:
        best = Best(self.validation.floor)
        leader: _Leader | None = None
        first = len(self.candidates)
        for combination in combinations:
            merge = merge_in_memory(self._compress_request(combination.config), self.source)
            self.notes += [f"{combination.config.method}: {note}" for note in merge.notes]
            stop = EarlyStop(self.request.patience)
            for scaling in combination.scalings:
                candidate = self._try(combination, merge, scaling)
                if best.offer(candidate.verdict.value):
                    leader = _Leader(candidate, merge, scaling)
                if stop.after(candidate.verdict.absolute):
                    break
        tried = len(self.candidates) - first
        skipped = sum(len(combination.scalings) for combination in combinations) - tried
        if leader is None:
            return Finalist(self.candidates[first], None, None, None, tried, skipped)
        subject = held("merge", leader.candidate.method, leader.merge.state(leader.scaling))
        return Finalist(
            leader.candidate,
            self.test.verdict(subject),
            _bytes_alone(leader),
            leader.merge.cpu_s,
            tried,
            skipped,
        )

    def _try(self, combination: Combination, merge: MemoryMerge, scaling: float) -> Candidate:
        method = combination.config.method
        parameters = {**combination.varied, "scaling": scaling}
        label = f"{method} " + " ".join(f"{key}={value}" for key, value in parameters.items())
        try:
            verdict = self.validation.verdict(held("merge", label, merge.state(scaling)))
        except BeyondRangeError:
            verdict = self.validation.of({})
        candidate = Candidate(method, parameters, verdict)
        self.candidates.append(candidate)
        if self.progress:
            self.progress("compare", len(self.candidates), max(self.points, len(self.candidates)))
        return candidate

    def _compress_request(self, config: CompressConfig) -> CompressRequest:
        """What a method is given; files that it does not read are left out."""
        method = METHODS[config.method]
        statistics = self.family.statistics_dir
        reads = method.reads_statistics(config.method_params)
        return replace(
            self.family,
            config=config,
            statistics_dir=statistics if reads else None,
            mask_dir=self.family.mask_dir if method.takes_masks else None,
        )

    def _ship(self, best: Finalist) -> Shipped:
        config = winning_config(best.candidate, self.request.combinations, self.family)
        shipped, notes = ship(self._compress_request(config), self.test)
        self.notes += notes
        return shipped

    # --- weights of an artifact -----------------------------------------------------------------

    def _searched(self, settings: SearchSettings) -> Finalist:
        stored, first = self.stored, len(self.candidates)
        assert stored is not None  # as __init__ has checked
        started = time.process_time()

        def subject(weights: Weights) -> Subject:
            return stored.weighting(SEARCHED, dict(zip(stored.tasks, weights, strict=True)))

        def value(weights: Weights) -> float | None:
            verdict = self.validation.verdict(subject(weights))
            parameters = {"weights": dict(zip(stored.tasks, weights, strict=True))}
            self.candidates.append(Candidate(SEARCHED, parameters, verdict))
            if self.progress:
                self.progress("search", len(self.candidates) - first, settings.budget)
            return verdict.value

        found = search_weights(value, len(stored.tasks), settings)
        if not found.complete:
            self.notes.append(
                f"the weight search ended with its budget of {settings.budget}; more may gain"
            )
        tried = self.candidates[first:]
        chosen = dict(zip(stored.tasks, found.weights, strict=True))
        best = next(c for c in tried if c.parameters["weights"] == chosen)
        test = self.test.verdict(subject(found.weights))
        return Finalist(best, test, None, time.process_time() - started, len(tried))


def _bytes_alone(leader: _Leader) -> int:
    """Every file of an artifact that holds this merge and nothing else."""
    with tempfile.TemporaryDirectory(prefix="svdh-compare-") as folder:
        manifest = leader.merge.write(Path(folder) / "merge", leader.scaling)
        return sum(manifest.breakdown.values())


def _value(value: float | None) -> float:
    return float("-inf") if value is None else value
