"""`python -m svd_hybrid.hydra_entry` with the original's YAML and Hydra's overrides."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from svd_hybrid import hydra_entry
from svd_hybrid.reload.model import Artifact
from tests.entrypoints.conftest import Run

pytest.importorskip("hydra")

CONFIG = """\
tasks: [Cars, DTD, EuroSAT]
model: ViT-B-32
checkpoint_dir: ./ckpts
base_model_path: ./base.pt
mask_dir: ""
output_dir: ./out
artifact_dir: ./art
device: cpu
method:
  name: svd_hybrid
  svd_energy_threshold: 0.95
  svd_low_bits: 4
  svd_weighting: uniform
  svd_weighting_temperature: 5.0
  performance_file: null
  svd_store_artifacts: true
"""


def launch(*args: str) -> int:
    return hydra_entry.main(["--config-dir", ".", "--config-name", "my_config", *args])


@pytest.fixture
def config(here: Path) -> Path:
    path = here / "my_config.yaml"
    path.write_text(CONFIG)
    return path


def stored(here: Path) -> dict[str, object]:
    return json.loads((here / "art" / "config.json").read_text())


def test_example_with_an_override(run: Run, here: Path, config: Path):
    entry = ["-m", "svd_hybrid.hydra_entry", "--config-dir", ".", "--config-name", "my_config"]
    done = run(*entry, "method.svd_low_bits=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\n"
    assert stored(here)["low_bits"] == 3
    assert stored(here)["energy_threshold"] == 0.95
    assert torch.load(here / "out" / "merged_state_dict.pt", weights_only=True)
    assert not (here / "outputs").exists()
    assert sorted(path.name for path in here.iterdir()) == sorted(
        ["accuracies.json", "art", "base.pt", "ckpts", "masks", "my_config.yaml", "out"]
    )
    done = run(*entry, "method.svd_low_bitz=3", "output_dir=./out2")
    assert done.returncode == 2
    assert "unknown key 'low_bitz'" in done.stderr
    assert "did you mean 'low_bits'" in done.stderr
    assert "Traceback" not in done.stderr


def test_overrides_of_keys_the_file_does_not_have(here: Path, config: Path):
    overrides = ["method.svd_max_rank=7", "tasks=[SVHN,MNIST]", "method.svd_cluster_k=1"]
    assert launch(*overrides, "++method.svd_weighting=cluster") == 0
    assert stored(here)["max_rank"] == 7
    assert stored(here)["weighting"] == "cluster"
    assert Artifact.open("art").tasks == ("SVHN", "MNIST")
    assert (here / "out" / "clusters.json").is_file()


def test_defaults_list_of_the_original(here: Path, config: Path):
    config.write_text(
        "defaults:\n  - method: svd_hybrid\n" + CONFIG.partition("method:")[0].strip() + "\n"
    )
    assert launch("method.svd_low_bits=5", "method.svd_store_artifacts=true") == 0
    assert stored(here)["low_bits"] == 5


def test_method_file_of_the_original(here: Path, config: Path):
    (here / "method").mkdir()
    section = CONFIG.partition("method:\n")[2].replace("\n  ", "\n").strip()
    file = "svd_randomized_svd_threshold: 1500000\nsvd_min_mask_size: 10\n" + section
    (here / "method" / "svd_hybrid.yaml").write_text(file)
    config.write_text("defaults:\n  - method: svd_hybrid\n" + CONFIG.partition("method:")[0])
    assert launch() == 0
    assert stored(here)["energy_threshold"] == 0.95


def test_the_working_directory_stays(here: Path, config: Path):
    assert launch("-q") == 0
    assert Path.cwd() == here


def test_overwrite_and_json(here: Path, config: Path, capsys: pytest.CaptureFixture[str]):
    assert launch("-q") == 0
    assert launch("-q") == 8
    capsys.readouterr()
    assert launch("--overwrite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["artifact_dir"] == "art"


DUPLICATE = CONFIG.replace("method:\n", "method: svd_hybrid\nmethod:\n")
SHADOWED = "defaults:\n  - method: svd_hybrid\nmethod: svd_hybrid\ntasks: [Cars]\n"


@pytest.mark.parametrize(
    ("text", "overrides", "code", "message"),
    [
        (DUPLICATE, [], 2, "duplicate key method"),
        (DUPLICATE, [], 2, "write method once, as a section"),
        (SHADOWED, [], 2, "method is both in the defaults list and a key"),
        (CONFIG + "task: [Cars]\n", [], 2, "did you mean 'tasks'?"),
        (CONFIG + "low_bits: 3\n", [], 2, "key 'low_bits' is given twice"),
        (CONFIG, ["method.name=tries"], 2, "there is no merge method 'tries' here"),
        ("defaults:\n  - method: tries\n", [], 2, "there is no merge method 'tries' here"),
        (CONFIG, ["tasks=[Cars"], 2, "configuration cannot be composed"),
        (CONFIG, ["mask_dirs=x"], 2, "Could not override 'mask_dirs'"),
        (CONFIG, ["hydra.run.dir=x"], 2, "hydra.* settings mean nothing here"),
        (CONFIG, ["method.svd_low_bits=12"], 2, "low_bits is 12, outside 1..8"),
        (CONFIG, ["method.svd_low_bits=many"], 2, "low_bits is 'many', must be an integer"),
        (CONFIG, ["method.svd_weighting=performance"], 2, "needs a performance file"),
        (CONFIG, ["base_model_path=none.pt"], 8, "checkpoint does not exist"),
        (CONFIG, ["tasks=[Flowers]"], 3, "no checkpoint for task 'Flowers'"),
        ("tasks: ${nothing}\n", [], 2, "configuration cannot be composed"),
        ("tasks: [a\n", [], 2, "configuration cannot be composed"),
        (CONFIG, ["--multirun"], 2, "no such option"),
    ],
)
def test_typical_mistakes(
    here: Path,
    config: Path,
    text: str,
    overrides: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
):
    config.write_text(text)
    assert launch(*overrides) == code
    seen = capsys.readouterr().err
    assert message in seen
    assert seen.startswith("error: ")
    assert not (here / "out").exists()


def test_missing_files(here: Path, capsys: pytest.CaptureFixture[str]):
    assert launch() == 8
    assert "there is no configuration 'my_config'" in capsys.readouterr().err
    assert hydra_entry.main(["--config-dir", "nowhere"]) == 8
    assert "configuration folder does not exist" in capsys.readouterr().err


def test_without_hydra_the_error_says_how_to_get_it(
    here: Path,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(sys.modules, "hydra", None)
    assert launch() == 2
    assert "pip install 'svd-hybrid[hydra]'" in capsys.readouterr().err
