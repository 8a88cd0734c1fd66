"""A whole comparison with a user's function: what is tried, chosen, reported and written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svd_hybrid import Artifact
from svd_hybrid.cache import ResultsCache
from svd_hybrid.comparison.grid import combinations, parse_axis
from svd_hybrid.comparison.rule import RULES
from svd_hybrid.comparison.run import CompareRequest, run_compare
from svd_hybrid.comparison.search import SearchSettings
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.request import CompressRequest
from svd_hybrid.errors import StorageError, UsageError
from svd_hybrid.evaluation.callable import load_callable
from svd_hybrid.evaluation.split import Part
from tests.evaluation import scorers
from tests.families import load_state, pack, write_family, write_state

TASKS = ("ant", "bee", "cat")
SCALINGS = ("scaling=0.5:3:0.5",)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("family"), tasks=TASKS, scale=0.2)


@pytest.fixture(scope="module")
def artifact(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "a"
    pack(family, folder, profile="fast", bits=8)
    return folder


def asked(files, methods=("task-arithmetic", "ties"), grids=SCALINGS, **changes) -> CompareRequest:
    whole = load_callable("tests.evaluation.scorers:closeness", TASKS)
    fields = {
        "family": CompressRequest(files.base, files.tasks, Path(), CompressConfig()),
        "combinations": tuple(combinations(methods, [parse_axis(text) for text in grids], {})),
        "validation": whole.restricted(Part("validation")),
        "test": whole.restricted(Part("test")),
        "rule": RULES["normalised"],
        "cache": ResultsCache(),
    }
    return CompareRequest(**(fields | changes))


def test_candidates_are_chosen_on_validation_and_only_finalists_see_test_data(family):
    scorers.CALLS.clear()
    result = run_compare(asked(family, patience=0))
    assert len(result.candidates) == 12
    parts = [part for _, part in scorers.CALLS]
    per_model = len(TASKS)
    assert parts.count("validation") == (12 + 1 + 1) * per_model  # candidates, base, fine-tunes
    assert parts.count("test") == (2 + 1 + 1) * per_model
    for finalist in result.finalists:
        own = [c for c in result.candidates if c.method == finalist.candidate.method]
        values = [c.verdict.value for c in own]
        assert finalist.candidate is own[values.index(max(values))]
        assert finalist.candidate.verdict.found != finalist.test.found
    winner = max(result.finalists, key=lambda finalist: finalist.candidate.verdict.value)
    assert result.best is winner


def test_candidates_have_the_scores_of_the_merge_itself(family):
    result = run_compare(asked(family, ("task-arithmetic",), ("scaling=0.7",)))
    base = load_state(family.base)
    deltas = [
        load_state(path)["block.weight"] - base["block.weight"] for path in family.tasks.values()
    ]
    merged = {"block.weight": base["block.weight"] + 0.7 * sum(deltas)}
    (candidate,) = result.candidates
    for task in TASKS:
        wanted = scorers.closeness(merged, task, "validation")
        assert candidate.verdict.found[task].scores == pytest.approx(wanted)
    scores = candidate.verdict.found
    references = result.references["validation"]["scores"]
    shares = [scores[task].scores["closeness"] / references[task] for task in TASKS]
    assert candidate.verdict.value == pytest.approx(sum(shares) / 3)


def test_a_falling_grid_stops_early_and_says_how_much_it_left_out(family):
    result = run_compare(asked(family, ("task-arithmetic",), ("scaling=20:80:10",)))
    (finalist,) = result.finalists
    assert (finalist.tried, finalist.skipped) == (4, 3)
    assert finalist.candidate.parameters == {"scaling": 20.0}
    every = run_compare(asked(family, ("task-arithmetic",), ("scaling=20:80:10",), patience=0))
    assert every.finalists[0].tried == 7


def test_a_diverging_candidate_is_passed_over(tmp_path):
    small = write_family(tmp_path / "half", tasks=TASKS, dtype=torch.float16)
    result = run_compare(asked(small, ("task-arithmetic",), ("scaling=1e9,0.3,1e8",), patience=0))
    assert [bool(c.verdict.found) for c in result.candidates] == [False, True, False]
    assert result.best is not None
    assert result.best.candidate.parameters == {"scaling": 0.3}
    alone = run_compare(asked(small, ("task-arithmetic",), ("scaling=1e9",)))
    assert alone.best is None
    assert alone.finalists[0].test is None
    assert any("all diverge" in note for note in alone.notes)


def test_bytes_are_those_of_an_artifact_of_the_merge_alone(family, tmp_path):
    result = run_compare(asked(family, ("ties",), ("scaling=1", "density=0.1,0.5")))
    (finalist,) = result.finalists
    density = finalist.candidate.parameters["density"]
    pack(
        family,
        tmp_path / "alone",
        method="ties",
        density=density,
        scaling=1.0,
        store_tasks="off",
        eval_reconstruction=False,
    )
    size = sum(p.stat().st_size for p in (tmp_path / "alone").rglob("*") if p.is_file())
    assert abs(finalist.nbytes - size) < 200  # diagnostics.json states times and names
    assert finalist.merge_cpu_s > 0


def test_the_best_is_written_and_scored_as_it_comes_back(family, tmp_path):
    out = tmp_path / "best"
    family_request = CompressRequest(family.base, family.tasks, out, CompressConfig())
    request = asked(
        family, ("ties", "iso-c"), ("scaling=0.5,1",), family=family_request, writes=True
    )
    result = run_compare(request)
    artifact = Artifact.open(out)
    best = result.best.candidate
    state = dict(artifact.iter_tensors(family.base))
    assert artifact.scalings[artifact.default_merge] == best.parameters["scaling"]
    assert result.shipped.artifact_id == artifact.id
    for task in TASKS:
        wanted = scorers.closeness(state, task, "test")
        assert result.shipped.test.found[task].scores == wanted
        assert result.best.test.found[task].scores == wanted  # the same bits
    with pytest.raises(StorageError):
        run_compare(request)


def test_lower_can_be_better(family):
    whole = load_callable("tests.evaluation.scorers:error", TASKS)
    parts = {name: whole.restricted(Part(name)) for name in ("validation", "test")}
    for rule in RULES.values():
        result = run_compare(asked(family, rule=rule, patience=0, **parts))
        errors = [c.verdict.mean for c in result.candidates]
        assert result.best.candidate is result.candidates[errors.index(min(errors))]


def test_scores_below_zero_can_be_the_best_mean(family):
    whole = load_callable("tests.evaluation.scorers:gain", TASKS)
    parts = {name: whole.restricted(Part(name)) for name in ("validation", "test")}
    result = run_compare(asked(family, rule=RULES["mean"], patience=0, **parts))
    means = [c.verdict.mean for c in result.candidates]
    assert max(means) < 0
    assert result.best.candidate is result.candidates[means.index(max(means))]


def test_an_artifact_serves_without_the_originals(family, artifact):
    request = CompressRequest(family.base, {}, Path(), CompressConfig(), from_artifact=artifact)
    stored = run_compare(asked(family, family=request))
    assert stored.references["test"]["kind"] == "recovered"
    original = run_compare(asked(family))
    assert stored.best.candidate.method == original.best.candidate.method
    assert stored.best.test.mean == pytest.approx(original.best.test.mean, abs=0.05)


def test_weights_are_searched_and_become_a_merge(family, artifact, tmp_path):
    out = tmp_path / "searched"
    config = CompressConfig()
    request = CompressRequest(family.base, {}, out, config, from_artifact=artifact)
    result = run_compare(
        asked(family, (), (), family=request, search=SearchSettings(40), writes=True)
    )
    weights = result.best.candidate.parameters["weights"]
    assert list(weights) == list(TASKS)
    alike = [c for c in result.candidates if len(set(c.parameters["weights"].values())) == 1]
    assert result.best.candidate.verdict.value >= max(c.verdict.value for c in alike)
    made = Artifact.open(out)
    assert made.default_merge == "searched-weights"
    assert made.merges["searched-weights"] == weights
    assert set(made.merges) == {"merged", "searched-weights"}
    assert result.shipped.test == result.best.test
    again = run_compare(
        asked(
            family,
            (),
            (),
            family=replace(request, artifact_dir=tmp_path / "b"),
            search=SearchSettings(40),
        )
    )
    assert again.best.candidate.parameters == result.best.candidate.parameters


def test_choosing_on_test_data_is_never_silent(family):
    evaluator = load_callable("tests.evaluation.scorers:closeness", TASKS)
    result = run_compare(asked(family, validation=evaluator, test=evaluator))
    assert any("the same, so scores flatter: 'ant', 'bee', 'cat'" in n for n in result.notes)
    assert not any("flatter" in note for note in run_compare(asked(family)).notes)


def test_originals_are_what_scores_of_an_artifact_are_compared_with(family, artifact):
    request = CompressRequest(family.base, {}, Path(), CompressConfig(), from_artifact=artifact)
    result = run_compare(asked(family, family=request, originals=family.tasks))
    assert result.references["test"]["kind"] == "fine-tuned"


def test_a_method_that_lacks_its_statistics_is_refused_before_anything_is_scored(family):
    scorers.CALLS.clear()
    with pytest.raises(UsageError, match="reads layer statistics"):
        run_compare(asked(family, ("ties", "scale-svd"), ()))
    assert scorers.CALLS == []


def test_what_a_method_says_of_its_statistics_is_passed_on(family, tmp_path):
    for task in TASKS:
        write_state(tmp_path / f"{task}.safetensors", {"block.weight": torch.eye(20)})
    request = CompressRequest(
        family.base, family.tasks, Path(), CompressConfig(), statistics_dir=tmp_path
    )
    result = run_compare(asked(family, ("ties", "sparsegpt-ties"), (), family=request))
    assert any(
        note.startswith("sparsegpt-ties: ") and "'embed.weight'" in note for note in result.notes
    )


@pytest.mark.parametrize("key", ["statistics_dir", "mask_dir"])
def test_files_that_no_method_compared_reads_are_refused(family, tmp_path, key):
    scorers.CALLS.clear()
    request = CompressRequest(
        family.base, family.tasks, Path(), CompressConfig(), **{key: tmp_path / "absent"}
    )
    with pytest.raises(UsageError, match="no method compared reads --" + key.replace("_", "-")):
        run_compare(asked(family, ("ties", "iso-c"), (), family=request))
    assert scorers.CALLS == []


def test_searching_needs_an_artifact(family):
    with pytest.raises(UsageError, match="among the tasks of an artifact"):
        run_compare(asked(family, search=SearchSettings()))


def test_rules_that_need_fine_tunes_need_them(family, tmp_path):
    pack(family, tmp_path / "alone", method="ties", store_tasks="off")
    request = CompressRequest(
        family.base, {}, Path(), CompressConfig(), from_artifact=tmp_path / "alone"
    )
    with pytest.raises(UsageError):
        run_compare(asked(family, family=request))
