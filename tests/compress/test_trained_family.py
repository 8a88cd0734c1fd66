"""The same promises on a really trained family: seven fine-tunes of a small ViT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svd_hybrid import Artifact, compress, reload
from tests.families import FAMILIES, load_state, relative_error

VIT = FAMILIES / "vit-tiny"
TASKS = ("handsigns", "kannada", "mnist", "notmnist", "telugu", "trafficsigns", "usps")

pytestmark = [
    pytest.mark.family,
    pytest.mark.skipif(not VIT.is_dir(), reason=f"no trained family in {VIT}; set SVDH_FAMILIES"),
]


def pack(artifact: Path, **parameters):
    return compress(VIT / "base", {task: VIT / task for task in TASKS}, artifact, **parameters)


def states():
    return {name: load_state(VIT / name / "model.safetensors") for name in ("base", *TASKS)}


def flat(state):
    """All scalars in a row, float64, by ascending name."""
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


@pytest.mark.parametrize("basis", ["auto", "left", "right", "tasks"])
def test_unquantised_merge_is_the_average_and_every_task_itself(tmp_path, basis):
    pack(tmp_path / "a", fp16=False, energy_threshold=1.0, max_rank=10**6, basis=basis)
    models = states()
    artifact = Artifact.open(tmp_path / "a")
    for name, merged in artifact.iter_tensors():
        deltas = [models[task][name].double() - models["base"][name].double() for task in TASKS]
        assert relative_error(merged, sum(deltas) / len(TASKS)) < 1e-6, name
    for name, one in artifact.iter_tensors(task="telugu"):
        delta = models["telugu"][name].double() - models["base"][name].double()
        assert relative_error(one, delta) < 1e-6, name


@pytest.mark.parametrize(
    ("parameters", "error", "ratio"),
    [({}, 0.297, 24.3), ({"profile": "hybrid"}, 1.75e-3, 2.24)],
    ids=["default", "hybrid"],
)
def test_documented_defaults_lose_what_the_readme_says(tmp_path, parameters, error, ratio):
    result = pack(tmp_path / "a", **parameters)
    assert result.relative_error == pytest.approx(error, rel=0.02)
    assert result.bytes["ratio_src"] == pytest.approx(ratio, rel=0.01)
    assert Artifact.open(tmp_path / "a").verify(VIT / "base").problems == []


def test_every_task_reloads_to_what_the_diagnostics_say(tmp_path):
    result = pack(tmp_path / "a", low_bits=3, rtvq_stages=1)
    models = states()
    for task in TASKS:
        reload(tmp_path / "a", VIT / "base", tmp_path / f"{task}.safetensors", task=task)
        rebuilt = load_state(tmp_path / f"{task}.safetensors")
        error = flat({name: rebuilt[name] - models[task][name] for name in rebuilt})
        delta = flat({name: models[task][name] - models["base"][name] for name in rebuilt})
        measured = float(error.norm() / delta.norm())
        assert measured == pytest.approx(result.task_errors[task], rel=1e-4)
