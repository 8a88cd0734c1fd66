"""`svdh eval`, `svdh compare` and `svdh cache`: what they print, and what they refuse."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from svd_hybrid import Artifact
from tests.cli.project import TASKS, command
from tests.models.tiny import saved_family

SCORERS = """
def size(state, task, part="all"):
    return 50.0 + float(state["blocks.0.fc.weight"].double().mean()) + len(task)
size.identity = "v1"

def nan(state, task):
    return float("nan")

def wrong(state, task):
    return {"accuracy": 1.0}
"""
LINES = {"eval": "artifact-dir", "compare": "from-artifact"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SVDH_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def line(project, monkeypatch) -> Callable[..., list[str]]:
    """A command line that works, with an evaluator from the user's own folder."""
    monkeypatch.chdir(project.root)
    project.file("my_scorers.py", SCORERS)
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)

    def make(verb: str, *more: object, **replaced: object) -> list[str]:
        options = {
            "base-model-path": project.base,
            LINES[verb]: project.art,
            "evaluator": "my_scorers:size",
        }
        options |= {key.replace("_", "-"): value for key, value in replaced.items()}
        return command(verb, options, more)

    return make


# --- eval -----------------------------------------------------------------------------------------


def test_eval_prints_a_table_and_says_where_numbers_come_from(project, svdh, line):
    run = svdh(*line("eval", checkpoint_dir=project.ckpts))
    assert run.code == 0
    for word in (
        "score",
        "model",
        *TASKS,
        "base",
        "fine-tuned",
        "recovered",
        "merge merged",
        "mean",
    ):
        assert word in run.out
    assert "12 scores, 0 of them kept from before; normalised by fine-tuned" in run.err
    again = svdh(*line("eval", checkpoint_dir=project.ckpts))
    assert (again.code, again.out) == (0, run.out)
    assert "12 scores, 12 of them kept" in again.err
    assert "0 of them kept" in svdh(*line("eval", "--no-cache")).err


def test_eval_json_is_exactly_one_document(project, svdh, line):
    weights = project.file("w.json", dict.fromkeys(TASKS, 0.25))
    run = svdh(*line("eval", "--json", "--only", "weights", "--only", "merge", weights=weights))
    document = json.loads(run.out)
    assert (run.code, run.err) == (0, "")
    assert [(s["kind"], s["name"]) for s in document["subjects"]] == [
        ("merge", "merged"),
        ("weights", "given"),
    ]
    state = dict(Artifact.open(project.art).iter_tensors(project.base))
    mean = float(state["blocks.0.fc.weight"].double().mean())
    scores = document["subjects"][0]["scores"]
    assert scores["dtd"]["score"] == pytest.approx(53.0 + mean)
    assert document["artifact_id"] == Artifact.open(project.art).id
    assert document["metric"] == {"name": "score", "unit": "", "better": "higher"}


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"merge": "mergd"}, 2, "did you mean 'merged'"),
        ({"evaluator": "my_scorers:nan"}, 3, "gave score = nan, which is no finite number"),
        ({"evaluator": "my_scorers:wrong"}, 3, "it declares 'score'"),
        ({"evaluator": "my_scorers:nothing"}, 2, "no function 'nothing'"),
        ({"evaluator": "vison"}, 2, "did you mean 'vision'"),
        ({"evaluator": None}, 2, "no evaluator given"),
        ({"evaluator": "vision"}, 2, "no data given"),
        ({"evaluator": "vision", "data": "nothing.npz"}, 8, "data does not exist"),
        ({"data": "x.npz"}, 2, "--data has no meaning"),
        ({"evaluator": "nomod:f", "data": "x.npz"}, 2, "module 'nomod' cannot be imported"),
        ({"artifact_dir": "nowhere"}, 8, "nowhere"),
        ({"family": "nowhere"}, 8, "family folder does not exist"),
        ({"base_model_path": None}, 2, "no base given"),
        ({"checkpoint_dir": "nowhere"}, 8, "checkpoint folder does not exist"),
        ({"weights": "nowhere.json"}, 8, "weights file cannot be read"),
    ],
)
def test_mistakes_are_one_clear_error(svdh, line, changes, code, text):
    run = svdh(*line("eval", **changes))
    assert run.code == code
    assert run.out == ""
    assert text in run.err
    assert run.err.startswith("error: ")
    assert "Traceback" not in run.err


def test_another_base_is_refused(project, svdh, line):
    other = project.edit_base(norm__weight=torch.zeros(20))
    run = svdh(*line("eval", base_model_path=other))
    assert (run.code, run.out) == (5, "")


# --- compare --------------------------------------------------------------------------------------


def test_compare_prints_a_row_per_method_and_writes_the_best(project, svdh, line):
    out = project.root / "best"
    grid = ("--method", "ties", "--method", "iso-c", "--grid", "scaling=0.5,1")
    run = svdh(*line("compare", *grid, artifact_dir=out))
    assert run.code == 0, run.err
    for word in ("recovered", "base", "ties", "iso-c", "scaling=", "best by rule normalised"):
        assert word in run.out
    assert run.out.splitlines()[-1] == str(out)
    assert Artifact.open(out).default_merge in ("ties", "iso-c")
    assert svdh("verify", "--artifact-dir", out, "--base-model-path", project.base).code == 0
    taken = svdh(*line("compare", *grid, artifact_dir=out))
    assert (taken.code, taken.out) == (8, "")


def test_compare_json_names_every_candidate(project, svdh, line):
    run = svdh(*line("compare", "--json", "--method", "ties", "--grid", "density=0.1,0.5"))
    document = json.loads(run.out)
    assert (run.code, run.err) == (0, "")
    assert [c["parameters"] for c in document["candidates"]] == [
        {"density": 0.1, "scaling": 1.0},
        {"density": 0.5, "scaling": 1.0},
    ]
    assert document["parts"]["validation"] == {"name": "validation", "share": 0.5, "seed": 0}
    assert document["best"]["method"] == "ties"


def test_searched_weights_are_written_and_evaluated(project, svdh, line):
    found = project.root / "w.json"
    run = svdh(*line("compare", "--search-weights", "--search-budget", 12, weights_out=found))
    assert run.code == 0, run.err
    weights = json.loads(found.read_text())
    assert sorted(weights) == sorted(TASKS)
    again = svdh(*line("compare", "--search-weights", "--data", "no.npz", weights_out=found))
    assert (again.code, "output exists" in again.err) == (8, True)  # seen before anything else
    evaluated = svdh(*line("eval", "--json", "--only", "weights", weights=found))
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out)["subjects"][0]["kind"] == "weights"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "nothing to compare"),
        (["--method", "tise"], 2, "did you mean 'ties'"),
        (["--method", "ties", "--grid", "dens=1"], 2, "no method compared has a parameter 'dens'"),
        (["--method", "ties", "--grid", "density=2"], 2, "density"),
        (["--method", "ties", "--validation-share", "1"], 2, "validation share is 1"),
        (["--method", "ties", "--weights-out", "w.json"], 2, "--weights-out without"),
        (["--method", "ties", "--evaluator", "my_scorers:nan"], 2, "no parts of its data"),
        (["--method", "scale-svd"], 2, "reads layer statistics"),
    ],
)
def test_comparisons_that_cannot_be_made(svdh, line, words, code, text):
    run = svdh(*line("compare", *words))
    assert (run.code, run.out) == (code, "")
    assert text in run.err


def test_choices_on_the_command_line_are_those_of_the_library():
    from svd_hybrid.cli import compare, evaluating
    from svd_hybrid.cli.eval import KINDS
    from svd_hybrid.comparison.rule import PATIENCE, RULES
    from svd_hybrid.comparison.search import SearchSettings
    from svd_hybrid.evaluation import features, subjects

    assert subjects.KINDS == KINDS
    assert tuple(RULES) == compare.RULES
    assert get_args(features.Pooling) == evaluating.POOLINGS
    defaults = {option.name: option.default for option in compare.compare.params}
    assert defaults["patience"] == PATIENCE
    assert defaults["search_budget"] == SearchSettings().budget


# --- cache ----------------------------------------------------------------------------------------


def test_the_cache_is_listed_and_cleared(project, svdh, line):
    assert svdh(*line("eval", "--only", "base")).code == 0
    listed = svdh("cache", "list")
    assert listed.code == 0
    for word in ("base", *TASKS, "my_scorers:size", "score 5"):
        assert word in listed.out
    assert "3 results" in listed.err
    document = json.loads(svdh("cache", "list", "--json").out)
    assert len(document["entries"]) == 3
    entry = next((project.root / "cache").rglob("*.json"))
    entry.write_bytes(entry.read_bytes()[:40])
    assert "1 damaged files count as absent" in svdh("cache", "list").err
    cleared = svdh("cache", "clear")
    assert (cleared.code, cleared.out[:7]) == (0, "3 files")
    assert json.loads(svdh("cache", "list", "--json").out)["entries"] == []


# --- a family folder with live models -------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_family(tmp_path_factory) -> Path:
    """base/, two tasks, heads and images, as the shared families are laid out."""
    root = saved_family("vit", tmp_path_factory.mktemp("family") / "vit")
    random = np.random.default_rng(0)
    heads, data = {}, {}
    for task in ("ant", "bee"):
        heads[f"{task}.weight"] = torch.from_numpy(random.normal(size=(3, 16))).float()
        data[f"{task}_images"] = random.integers(0, 255, (12, 16, 16), dtype=np.uint8)
        data[f"{task}_labels"] = random.integers(0, 3, 12)
    save_file(heads, root / "heads.safetensors")
    np.savez(root / "test_data.npz", **data)
    return root


def test_a_family_folder_says_it_all(vit_family, svdh):
    run = svdh("eval", "--family", vit_family, "--json")
    document = json.loads(run.out)
    assert document["evaluator"] == "vision"
    assert document["tasks"] == ["ant", "bee"]
    assert [s["kind"] for s in document["subjects"]] == ["base", "fine-tuned", "fine-tuned"]
    assert all(0 <= s["mean"] <= 100 for s in document["subjects"])
    compared = svdh(
        "compare", "--family", vit_family, "--method", "task-arithmetic", "--task", "bee", "--json"
    )
    assert json.loads(compared.out)["tasks"] == ["bee"]


def test_heads_of_another_model_and_no_extra(vit_family, svdh, tmp_path, monkeypatch):
    heads = load_file(vit_family / "heads.safetensors")
    save_file({n: t[:, :8].contiguous() for n, t in heads.items()}, tmp_path / "h.safetensors")
    run = svdh("eval", "--family", vit_family, "--heads", tmp_path / "h.safetensors")
    assert run.code == 3
    assert "head takes 8 features, the model gives [16]" in run.err
    monkeypatch.setitem(sys.modules, "transformers", None)
    run = svdh("eval", "--family", vit_family)
    assert run.code == 2
    assert "pip install 'svd-hybrid[eval]'" in run.err
