"""Parts of scripts/bench_rate_distortion.py."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from rate_distortion.cache import Cache
from rate_distortion.evaluator import Evaluator
from rate_distortion.families import open_measured_family
from rate_distortion.measure import Row, drop, measure
from rate_distortion.plot import draw
from rate_distortion.points import POINTS, Point, select
from rate_distortion.report import COLUMNS, FamilyReport, markdown
from safetensors.torch import save_file

from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.numerics.bounds import delta_spectrum

TASKS = ("ant", "bee")
EVALUATOR = """
import argparse, json
from safetensors.torch import load_file

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--tasks")
    arguments = parser.parse_args()
    print("noise of a library")
    tensors = load_file(arguments.model + "/model.safetensors")
    score = 90 - float(tensors["w"].abs().sum())
    print(json.dumps({task: score for task in arguments.tasks.split(",")}))
"""
GUARDED = "\nif __name__ == '__main__':\n    main()\n"
UNGUARDED = "\nmain()\n"
ROW = Row(
    "fast 4", "fast", 1000, 4.0, 0.1, {"ant": 0.1, "bee": 0.12}, 0.01, 0.09, 0.5, 0.1, {"ant": 1.0}
)


@pytest.fixture
def folder(tmp_path):
    random = torch.Generator().manual_seed(0)
    base = torch.randn(80, 80, generator=random)
    for name in ("base", *TASKS):
        (tmp_path / "tiny" / name).mkdir(parents=True)
        tuned = base if name == "base" else base + 0.01 * torch.randn(80, 80, generator=random)
        save_file({"w": tuned}, tmp_path / "tiny" / name / "model.safetensors")
    (tmp_path / "tiny" / "evaluate.py").write_text(EVALUATOR + GUARDED)
    return tmp_path / "tiny"


@pytest.fixture
def family(folder, tmp_path):
    return open_measured_family(str(folder), tmp_path / "made")


def point(name):
    return next(p for p in POINTS if p.name == name)


# --- points ---------------------------------------------------------------------------------------


def test_point_names_are_unique():
    assert len({p.name for p in POINTS}) == len(POINTS)


@pytest.mark.parametrize("given", POINTS, ids=lambda p: p.name)
def test_every_point_is_a_configuration(given):
    if given.profile not in {None, *PROFILE_PARAMS}:
        pytest.skip(f"there is no profile {given.profile!r}")
    resolve_config(dict(given.parameters), "points")


def test_points_are_chosen_by_series_profile_or_method_and_by_pattern():
    assert [p.name for p in select(["tvq"], [])] == ["tvq 4 g64", "tvq 3 g64", "tvq 2 g64"]
    assert [p.name for p in select(["tvq", "fast"], ["* 4*"])] == ["tvq 4 g64", "fast 4"]
    assert {p.series for p in select(["auto"], [])} == {"auto", "auto, least error"}
    assert select([], []) == list(POINTS)


@pytest.mark.parametrize(("profiles", "patterns"), [(["tfq"], []), ([], ["tvq 9*"])])
def test_a_name_that_fits_no_point_is_refused(profiles, patterns):
    with pytest.raises(SystemExit, match="no point"):
        select(profiles, patterns)


# --- families and scores --------------------------------------------------------------------------


def test_a_family_is_its_folders(family, folder):
    assert list(family.tasks) == list(TASKS)
    assert family.base == folder / "base"
    assert family.metric == "accuracy"


def test_perplexity_is_told_by_the_evaluator_itself(family):
    family.evaluator.write_text('"""Perplexity of a model."""')
    assert family.metric == "perplexity"


def test_the_fingerprint_follows_the_weights(family):
    before = family.fingerprint
    assert family.fingerprint == before
    save_file({"w": torch.zeros(80, 80)}, family.tasks["bee"] / "model.safetensors")
    assert family.fingerprint != before


def test_a_folder_without_a_family_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="neither"):
        open_measured_family(str(tmp_path), tmp_path)


def test_a_family_may_have_to_be_made(folder, tmp_path):
    maker = "import shutil, sys\nfor n in ('base', 'ant'): shutil.copytree(%r + '/' + n, %s)\n"
    (tmp_path / "seed").mkdir()
    text = maker % (str(folder), "sys.argv[1] + '/' + n")
    (tmp_path / "seed" / "materialize.py").write_text(text)
    made = open_measured_family(str(tmp_path / "seed"), tmp_path / "made")
    assert list(made.tasks) == ["ant"]
    assert made.base == tmp_path / "made" / "seed" / "base"


@pytest.mark.parametrize("ending", [GUARDED, UNGUARDED], ids=["imported", "run"])
def test_an_evaluator_scores_many_models(family, ending):
    family.evaluator.write_text(EVALUATOR + ending)
    with Evaluator(family.evaluator) as evaluator:
        for path in family.tasks.values():
            assert evaluator.scores(path, ["bee"])["bee"] < 90


def test_a_failing_evaluator_says_why_and_goes_on(family):
    with Evaluator(family.evaluator) as evaluator:
        with pytest.raises(RuntimeError, match="nowhere"):
            evaluator.scores(family.base / "nowhere", ["ant"])
        assert evaluator.scores(family.base, ["ant"]).keys() == {"ant"}


def test_lost_quality_counts_up_for_both_metrics():
    assert drop("accuracy", 90.0, 89.5) == 0.5
    assert drop("perplexity", 20.0, 21.0) == pytest.approx(5.0)


# --- rows -----------------------------------------------------------------------------------------


def test_a_row_counts_every_byte_and_compares_every_task(family, tmp_path):
    with Evaluator(family.evaluator) as evaluator:
        (tmp_path / "scratch").mkdir()
        originals = {t: evaluator.scores(p, [t])[t] for t, p in family.tasks.items()}
        row = measure(family, point("fast 4"), tmp_path / "scratch", evaluator, originals)
    assert row.bits == 8 * row.nbytes / (2 * 80 * 80)
    assert 0.05 < row.relative_error < 0.15
    assert row.task_errors.keys() == row.drops.keys() == set(TASKS)
    assert row.relative_error**2 == pytest.approx(row.shrink**2 + row.noise**2)
    assert not list((tmp_path / "scratch").iterdir())


def test_exact_loses_nothing(family, tmp_path):
    (tmp_path / "scratch").mkdir()
    row = measure(family, point("exact"), tmp_path / "scratch", None, {})
    assert row.relative_error == 0
    assert row.drops is None
    assert row.mean_drop is row.worst_drop is None


def test_kept_rows_come_back_for_the_same_family_point_and_scoring(family, tmp_path):
    fast = point("fast 4")
    cache = Cache.of(family, tmp_path, None)
    assert cache.row(fast, scored=True) is None
    cache.keep(fast, ROW)
    assert cache.row(fast, scored=True) == ROW
    assert cache.row(replace(fast, parameters={"profile": "fast"}), scored=True) is None
    assert Cache.of(family, tmp_path, 10).row(fast, scored=True) is None
    assert replace(cache, stamp="another family").row(fast, scored=True) is None


def test_a_row_without_scores_is_measured_again_when_they_are_wanted(family, tmp_path):
    cache = Cache.of(family, tmp_path, None)
    cache.keep(point("fast 4"), replace(ROW, drops=None))
    assert cache.row(point("fast 4"), scored=False) is not None
    assert cache.row(point("fast 4"), scored=True) is None


def test_names_that_differ_only_in_signs_have_files_of_their_own(family, tmp_path):
    cache = Cache.of(family, tmp_path, None)
    cache.keep(Point("a 1", "a"), ROW)
    cache.keep(Point("a-1", "a"), replace(ROW, point="a-1"))
    assert cache.row(Point("a 1", "a"), scored=True) == ROW


# --- report ---------------------------------------------------------------------------------------


@pytest.fixture
def report():
    changed = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    spectra = [delta_spectrum(changed), delta_spectrum(torch.zeros(2, 8, 8))]
    exact = replace(ROW, point="exact", series="exact", relative_error=0.0)
    scores = {"ant": 90.0, "bee": 80.0}
    why = {"auto 1": "there is no profile 'auto'"}
    return FamilyReport("tiny", "accuracy", TASKS, 128, spectra, [ROW, exact], scores, scores, why)


def test_the_bounds_are_per_parameter_of_all_tensors(report):
    assert report.changed == 0.5
    white, manifold = report.bounds(0.25)
    assert white == pytest.approx(1.0)
    assert 0 < manifold < 1.3


def test_the_table_has_a_cell_for_every_column(report):
    lines = markdown([report]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count(" | ") for line in table if "---" not in line} == {len(COLUMNS) - 1}
    assert "1.00 (ant)" in table[2]
    assert "- not measured: auto 1: there is no profile 'auto'" in lines


def test_the_json_has_no_infinities(report):
    text = json.dumps(report.as_json(), allow_nan=False)
    first, second = json.loads(text)["rows"]
    assert first["white_bits"] == pytest.approx(math.log2(10) / 2)
    assert second["white_bits"] is None


def test_the_picture_is_drawn_where_matplotlib_is(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw(report, tmp_path / "a.png") is False
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    assert draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
