"""The demo's main job, on a family trained for a few steps only."""

from __future__ import annotations

import json

import pytest

from svd_hybrid.artifact.files import directory_bytes
from svd_hybrid.demo.run import run_demo
from svd_hybrid.demo.tasks import TASKS
from svd_hybrid.demo.train import TrainConfig
from svd_hybrid.demo.vit import ViTConfig
from svd_hybrid.errors import StorageError

SHORT = TrainConfig(
    model=ViTConfig(width=16, layers=2, heads=2, mlp_ratio=2),
    pretrain_steps=2,
    finetune_steps=2,
    batch_images=8,
    shots=2,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    said: list[str] = []
    return run_demo(out, training=SHORT, report=said.append), said


def test_the_table_has_a_row_for_every_model(demo):
    result, _ = demo
    names = [row.model for row in result.rows]
    assert names[1:-2] == list(TASKS)
    assert names[0].startswith("base")
    assert names[-2] == "all fine-tunes"
    assert names[-1].startswith("merged")


def test_rebuilt_fine_tunes_score_like_the_originals(demo):
    result, _ = demo
    for row in result.rows[1:-2]:
        assert row.rebuilt_accuracy == pytest.approx(row.accuracy, abs=1.0)
        assert 0 < row.relative_error < 0.35  # the default target is 0.3 over the family


def test_bytes_are_those_of_the_files(demo):
    result, _ = demo
    family = result.rows[-2]
    sources = [*result.out.glob("family/tasks/*/model.safetensors")]
    assert family.artifact_bytes == directory_bytes(result.out / "artifact")
    assert family.source_bytes == sum(path.stat().st_size for path in sources)
    assert family.ratio == family.source_bytes / family.artifact_bytes


def test_results_are_kept_beside_the_models(demo):
    result, said = demo
    assert json.loads((result.out / "results.json").read_text())["rows"] == result.as_json()["rows"]
    assert "verifying" in said


def test_an_existing_directory_is_refused_before_any_training(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(StorageError, match="output exists"):
        run_demo(tmp_path, training=SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
