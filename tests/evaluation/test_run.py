"""A whole evaluation with a user's function: which models are scored on what, and kept results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from svd_hybrid import Artifact
from svd_hybrid.cache import ResultsCache
from svd_hybrid.errors import BaseMismatchError, FamilyError, UnknownNameError, UsageError
from svd_hybrid.evaluation.base import EvaluationError
from svd_hybrid.evaluation.callable import load_callable
from svd_hybrid.evaluation.run import EvalRequest, asked_tasks, run_eval
from svd_hybrid.evaluation.subjects import ArtifactSubjects, fine_tuned, state_identity
from svd_hybrid.evaluation.table import header, rows
from svd_hybrid.io.family import FamilyPolicy
from tests.evaluation import scorers
from tests.families import load_state, pack, write_family, write_state

TASKS = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("family"), tasks=TASKS)


@pytest.fixture(scope="module")
def artifact(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "a"
    pack(family, folder, profile="fast")
    return folder


@pytest.fixture
def request_(family, artifact):
    return EvalRequest(
        family.base,
        load_callable("tests.evaluation.scorers:closeness", TASKS),
        artifact,
        family.tasks,
        cache=ResultsCache(),
    )


def by_label(result):
    return {(row.kind, row.name): row.tasks for row in result.subjects}


def test_every_model_is_scored_on_what_it_is_for(request_, family, artifact):
    result = run_eval(request_)
    found = by_label(result)
    assert list(found) == [
        ("base", "base"),
        *(("fine-tuned", task) for task in TASKS),
        *(("recovered", task) for task in TASKS),
        ("merge", "merged"),
    ]
    assert [list(tasks) for (kind, _), tasks in found.items() if kind == "recovered"] == [
        ["ant"],
        ["bee"],
        ["cat"],
    ]
    assert list(found["base", "base"]) == list(found["merge", "merged"]) == list(TASKS)
    expected = {
        ("base", "base"): load_state(family.base),
        ("fine-tuned", "bee"): load_state(family.tasks["bee"]),
        ("recovered", "bee"): dict(Artifact.open(artifact).iter_tensors(family.base, task="bee")),
        ("merge", "merged"): dict(Artifact.open(artifact).iter_tensors(family.base)),
    }
    for key, state in expected.items():
        assert found[key]["bee"].scores == scorers.closeness(state, "bee"), key


def test_normalised_scores_refer_to_the_originals_else_to_the_recovered(request_):
    result = run_eval(request_)
    own = {row.name: row for row in result.subjects if row.kind == "fine-tuned"}
    record = next(r for r in result.as_json()["subjects"] if r["kind"] == "merge")
    for task, scores in record["scores"].items():
        reference = own[task].tasks[task].scores["closeness"]
        assert scores["normalised"] == scores["closeness"] / reference
    assert result.references.kind == "fine-tuned"
    assert run_eval(replace(request_, checkpoints={})).references.kind == "recovered"


def test_cross_scores_every_fine_tune_on_every_task(request_):
    result = run_eval(replace(request_, cross=True))
    assert all(list(row.tasks) == list(TASKS) for row in result.subjects)
    assert len(list(rows(result))) == len(result.subjects)


def test_tasks_kinds_merges_and_weights_can_be_chosen(request_):
    chosen = replace(
        request_, tasks=("Bee",), kinds=("recovered", "weights"), weights=dict.fromkeys(TASKS, 0.5)
    )
    assert list(by_label(run_eval(chosen))) == [("recovered", "bee"), ("weights", "given")]
    with pytest.raises(UnknownNameError, match="nothing"):
        run_eval(replace(request_, merges=("nothing",)))
    with pytest.raises(UsageError, match="come from an artifact"):
        run_eval(replace(request_, artifact_dir=None, merges=("merged",)))
    with pytest.raises(UsageError, match="nothing to evaluate"):
        run_eval(replace(request_, artifact_dir=None, checkpoints={}, kinds=("merge",)))


def test_a_task_without_data_is_an_error_before_anything_is_scored(request_):
    scorers.CALLS.clear()
    partial = load_callable("tests.evaluation.scorers:only_ant", TASKS)
    with pytest.raises(EvaluationError, match="no data for task 'bee', 'cat'"):
        run_eval(replace(request_, evaluator=partial))
    assert run_eval(replace(request_, evaluator=partial, tasks=("ant",))).tasks == ("ant",)


def test_a_second_run_measures_nothing(request_):
    first = run_eval(request_)
    scorers.CALLS.clear()
    second = run_eval(replace(request_, cache=ResultsCache()))
    assert scorers.CALLS == []
    assert first.kept == 0
    assert second.kept == 3 + 3 + 3 + 3
    assert [row.tasks["bee"].scores for row in first.subjects if "bee" in row.tasks] == [
        row.tasks["bee"].scores for row in second.subjects if "bee" in row.tasks
    ]
    assert run_eval(replace(request_, cache=None)).kept == 0
    assert len(scorers.CALLS) == 12


def test_another_artifact_of_the_same_tasks_is_measured_anew(request_, family, tmp_path):
    run_eval(request_)
    pack(family, tmp_path / "b", profile="fast", scaling=0.5)
    scorers.CALLS.clear()
    run_eval(replace(request_, artifact_dir=tmp_path / "b"))
    assert len(scorers.CALLS) == 3 + 3  # recovered and merge; base and originals are the same


def test_another_base_is_refused_even_when_results_are_kept(request_, family, tmp_path):
    run_eval(request_)
    state = load_state(family.base)
    state["block.bias"][0] += 1
    other = write_state(tmp_path / "other.safetensors", state)
    with pytest.raises(BaseMismatchError):
        run_eval(replace(request_, base=other))


def test_a_cache_that_cannot_be_written_costs_a_note(request_, tmp_path):
    (tmp_path / "file").write_text("")
    result = run_eval(replace(request_, cache=ResultsCache(tmp_path / "file")))
    assert any(note.startswith("results are not kept") for note in result.notes)


def test_an_evaluator_without_identity_is_never_kept(request_):
    plain = replace(request_, evaluator=load_callable("tests.evaluation.scorers:norm", TASKS))
    assert any("no identity" in note for note in run_eval(plain).notes)
    assert run_eval(plain).kept == 0


def test_a_partial_fine_tune_counts_as_unchanged_when_asked(family, tmp_path):
    state = load_state(family.tasks["ant"])
    partial = {"block.weight": state["block.weight"]}
    path = write_state(tmp_path / "ant.safetensors", partial)
    with pytest.raises(FamilyError, match="lacks"):
        list(fine_tuned(family.base, {"ant": path}, FamilyPolicy()))
    (subject,) = fine_tuned(family.base, {"ant": path}, FamilyPolicy(on_missing="zero"))
    got, base = subject.load(), load_state(family.base)
    assert torch.equal(got["block.weight"], state["block.weight"])
    assert torch.equal(got["block.bias"], base["block.bias"])
    assert subject.identity() == state_identity(got)


def test_identity_sees_names_and_numbers():
    one, two = torch.zeros(2), torch.ones(2)
    models = ({"a": one, "b": two}, {"b": one, "a": two}, {"a": one}, {"a": one.half(), "b": two})
    assert len({state_identity(model)["tensors"] for model in models}) == len(models)


def test_artifact_subjects_name_the_default_merge_first(family, artifact, tmp_path):
    folder = tmp_path / "two"
    pack(family, folder, from_artifact=artifact, method="iso-c", profile="fast")
    subjects = ArtifactSubjects(folder, family.base)
    assert subjects.merges == ("iso-c", "merged")
    assert subjects.merge("merged").identity() != subjects.merge("iso-c").identity()
    weights = [dict.fromkeys(TASKS, w) for w in (0.1, 0.2)]
    first, second = (subjects.weighting("w", weight).identity() for weight in weights)
    assert first != second


def test_the_table_groups_fine_tunes_and_leaves_out_means_of_parts(request_):
    result = run_eval(request_)
    table = [header(result), *rows(result)]
    assert table[0] == ["model", *TASKS, "mean", "normalised"]
    assert [row[0] for row in table[1:]] == ["base", "fine-tuned", "recovered", "merge merged"]
    assert table[2][-1] == "1.0000"
    crossed = run_eval(replace(request_, tasks=("ant", "bee"), kinds=("fine-tuned",)))
    assert [row[0] for row in rows(crossed)] == ["fine-tuned"]


def test_task_names_are_matched_as_the_family_spells_them():
    assert asked_tasks(("Euro-SAT",), ("eurosat", "dtd")) == ("eurosat",)
    assert asked_tasks((), ("eurosat", "dtd")) == ("eurosat", "dtd")
    assert asked_tasks(("other",), ("eurosat",)) == ("other",)
