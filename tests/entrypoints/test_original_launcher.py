"""`scripts/run_svd_hybrid.py` with the command lines of the original README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from svd_hybrid.artifact.verify import verify
from svd_hybrid.cli import original
from svd_hybrid.errors import StorageError
from svd_hybrid.reload.model import Artifact
from tests.entrypoints.conftest import ROOT, SHAPES, TASKS, Run, deltas, relative_error

SCRIPT = ROOT / "scripts" / "run_svd_hybrid.py"
FAMILY = ["--checkpoint-dir", "./ckpts", "--base-model-path", "./base.pt"]
THREE = ["--tasks", "Cars", "DTD", "EuroSAT", *FAMILY]


def launch(*args: str) -> int:
    return original.main([*args])


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def merged(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "merged_state_dict.pt", weights_only=True)


def check_merge(here: Path, output: Path, bound: float) -> None:
    """The merged model is base + sum of weight * delta, for the weights that were written."""
    base = torch.load(here / "base.pt", weights_only=True)["state_dict"]
    weights = json.loads((output / "weights.json").read_text())
    state = merged(output)
    assert torch.equal(state["visual.position_ids"], base["visual.position_ids"])
    assert list(state) == list(base)
    tasks = deltas(here)
    want = {
        n: sum(weights[t] * d[n].double() for t, d in zip(TASKS, tasks, strict=True))
        for n in SHAPES
    }
    got = {name: state[name].double() - base[name].double() for name in SHAPES}
    assert relative_error(got, want) < bound


def test_full_example_with_performance_weighting_and_artifacts(run: Run, here: Path):
    done = run(
        *(SCRIPT, "--method", "svd_hybrid", "--model", "ViT-B-32"),
        *("--energy-threshold", "0.95", "--max-rank", "64"),
        *("--tasks", "Eurosat", "Cars", "DTD", "SUN397", "RESISC45", "SVHN", "GTSRB", "MNIST"),
        *FAMILY,
        *("--low-bits", "4", "--rtvq-stages", "2", "--weighting", "performance"),
        *("--performance-file", "./accuracies.json", "--temperature", "0.1"),
        *("--mask-strategy", "union", "--store-artifacts", "--eval-reconstruction"),
        *("--output-dir", "./output"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "output\n"
    assert "note: artifact kept in artifacts" in done.stderr
    assert listing(here / "output") == ["diagnostics.json", "merged_state_dict.pt", "weights.json"]
    weights = json.loads((here / "output" / "weights.json").read_text())
    assert set(weights) == {"Eurosat", *TASKS} - {"EuroSAT"}
    assert max(weights, key=weights.get) == "SVHN"
    assert not verify(here / "artifacts", here / "base.pt").problems

    again = run(
        *("-m", "svd_hybrid.reload", "--artifact-dir", "./artifacts"),
        *("--base-model-path", "./base.pt", "--output-path", "./reloaded.pt"),
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == "reloaded.pt\n"
    first, second = merged(here / "output"), torch.load("reloaded.pt", weights_only=True)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert list(first) == list(second)


def test_cluster_example_writes_clusters(run: Run, here: Path):
    done = run(
        *(SCRIPT, "--tasks", *TASKS, *FAMILY),
        *("--weighting", "cluster", "--cluster-k", "3", "--output-dir", "./output"),
    )
    assert done.returncode == 0, done.stderr
    output = here / "output"
    names = ["clusters.json", "diagnostics.json", "merged_state_dict.pt", "weights.json"]
    assert listing(output) == names
    assert list(json.loads((output / "clusters.json").read_text())) == sorted(TASKS)
    check_merge(here, output, 0.05)
    assert listing(here) == ["accuracies.json", "base.pt", "ckpts", "masks", "output"]


def test_typical_mistakes_in_the_shell(run: Run, here: Path):
    before = listing(here)
    done = run(SCRIPT, "--method", "ties_merging", *THREE)
    assert done.returncode == 2
    assert "error: there is no merge method 'ties_merging' here" in done.stderr
    assert "fix:   use one of: svd-hybrid" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(SCRIPT, *THREE, "--weighting", "performance")
    assert done.returncode == 2
    assert "performance weighting needs a performance file" in done.stderr
    assert listing(here) == before


def test_defaults_are_those_of_the_original(here: Path, capsys: pytest.CaptureFixture[str]):
    assert launch(*THREE) == 0
    assert capsys.readouterr().out == "svd_hybrid_output\n"
    output = here / "svd_hybrid_output"
    assert json.loads((output / "weights.json").read_text()) == {
        task: pytest.approx(1 / 3) for task in ("Cars", "DTD", "EuroSAT")
    }
    config = json.loads((output / "diagnostics.json").read_text())["config"]
    assert config == {
        "svd_energy_threshold": 0.9,
        "svd_max_rank": 128,
        "svd_low_bits": 4,
        "svd_rtvq_stages": 2,
        "svd_mask_strategy": "union",
        "svd_weighting": "uniform",
    }
    assert not (here / "artifacts").exists()


def test_uniform_merge_is_the_average(here: Path):
    assert launch("--tasks", *TASKS, *FAMILY, "-q") == 0
    check_merge(here, here / "svd_hybrid_output", 1e-3)


def test_all_flags_of_the_high_quality_example(here: Path, capsys: pytest.CaptureFixture[str]):
    flags = "--mask-dir ./masks --energy-threshold 0.95 --max-rank 64 --low-bits 6 --rtvq-stages 3"
    more = "--mask-strategy majority --include-noise --noise-shrink 0.25 --no-center --no-fp16"
    last = "--no-eval-reconstruction --device cuda --store-artifacts --artifact-dir ./artifacts"
    code = launch(*THREE, *flags.split(), *more.split(), *last.split(), "--output-dir", "./output")
    seen = capsys.readouterr()
    assert code == 0, seen.err
    assert "runs on the CPU" in seen.err
    config = json.loads((here / "artifacts" / "config.json").read_text())
    wanted = {"low_bits": 6, "rtvq_stages": 3, "mask_strategy": "majority", "noise_shrink": 0.25}
    assert config.items() >= wanted.items()
    assert (config["center"], config["fp16"], config["include_noise"]) == (False, False, True)
    assert Artifact.open("artifacts").tasks == ("Cars", "DTD", "EuroSAT")


def test_options_the_original_parsed_and_never_used_are_unknown(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    for flag in ("--quantize-config", "--load-config", "--load-tv-type"):
        assert launch(*THREE, flag, "x") == 2
        assert "no such option" in capsys.readouterr().err.lower()


def test_json_is_one_document(here: Path, capsys: pytest.CaptureFixture[str]):
    assert launch(*THREE, "--json", "--store-artifacts", "--model", "ViT B/32") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output_dir"] == "svd_hybrid_output"
    assert document["artifact_dir"] == "artifacts"
    assert document["weights"]["Cars"] == pytest.approx(1 / 3)
    assert launch("--json", "--method", "nothing", *THREE) == 2
    assert json.loads(capsys.readouterr().err)["code"] == 2


@pytest.mark.parametrize("label", [[], ["--model", "openai/ViT B-32"]])
def test_an_artifact_folder_with_other_things_is_left_alone(
    here: Path, label: list[str], capsys: pytest.CaptureFixture[str]
):
    (here / "artifacts" / "basis").mkdir(parents=True)
    (here / "artifacts" / "notes.txt").write_text("mine")
    assert launch(*THREE, *label, "--store-artifacts", "--overwrite") == 0
    place = "openai-ViT-B-32" if label else "svd_hybrid_output"
    assert f"the artifact goes to artifacts/{place}" in capsys.readouterr().err
    assert listing(here / "artifacts") == sorted(["basis", "notes.txt", place])
    assert not verify(here / "artifacts" / place).problems
    again = ["--store-artifacts", "--output-dir", f"again/{place}"]
    assert launch(*THREE, *label, *again) == 8
    assert not list((here / "again").iterdir())


def test_an_artifact_inside_the_output_folder(here: Path):
    args = [*THREE, "--store-artifacts", "--output-dir", "out", "--artifact-dir", "out/artifact"]
    assert launch(*args) == 0
    assert not verify(here / "out" / "artifact", here / "base.pt").problems
    assert launch(*args, "--overwrite") == 0
    assert launch(*args) == 8
    assert launch(*args[:-1], "out", "--overwrite") == 2  # both folders the same


def test_an_output_folder_is_replaced_only_when_it_is_ours(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    (here / "empty").mkdir()
    assert launch(*THREE, "--output-dir", "empty") == 0
    assert launch(*THREE, "--output-dir", "empty") == 8
    assert "pass --overwrite" in capsys.readouterr().err
    assert launch(*THREE, "--output-dir", "empty", "--overwrite") == 0
    (here / "empty" / "thesis.tex").write_text("mine")
    assert launch(*THREE, "--output-dir", "empty", "--overwrite") == 8
    assert "holds other things: 'thesis.tex'" in capsys.readouterr().err
    assert (here / "empty" / "thesis.tex").read_text() == "mine"
    assert launch(*THREE, "--output-dir", "base.pt", "--overwrite") == 8
    (here / "mine").mkdir()
    (here / "mine" / "weights.json").write_bytes((here / "accuracies.json").read_bytes())
    accuracies = ["--weighting", "performance", "--performance-file", "mine/weights.json"]
    assert launch(*THREE, *accuracies, "--output-dir", "mine", "--overwrite") == 2
    assert (here / "mine" / "weights.json").is_file()


def test_missing_parents_are_made_as_the_original_did(here: Path):
    where = ["--output-dir", "runs/1/out", "--artifact-dir", "runs/1/art", "--store-artifacts"]
    assert launch(*THREE, *where) == 0
    assert listing(here / "runs" / "1") == ["art", "out"]


def test_a_failure_on_the_way_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **kwargs: object) -> None:
        raise StorageError("no space left on the disk")

    before = listing(here)
    monkeypatch.setattr("svd_hybrid.reload.run.run_reload", full)
    assert launch(*THREE) == 8
    assert listing(here) == before


def test_a_configuration_of_the_original(here: Path, capsys: pytest.CaptureFixture[str]):
    config = {
        "tasks": ["MNIST", "SVHN"],
        "checkpoint_dir": "./ckpts",
        "base_model_path": "./base.pt",
        "mask_dir": "",
        "svd_energy_threshold": 0.8,
        "svd_weighting": "performance",
        "svd_weighting_temperature": 0.05,
        "performance_file": "accuracies.json",
        "svd_store_artifacts": True,
        "svd_randomized_svd_threshold": 1500000,
        "output_dir": "./from_file",
        "artifact_dir": "./kept",
        "device": "cuda",
    }
    (here / "run.json").write_text(json.dumps(config))
    assert (
        launch("--config", "run.json", "--energy-threshold", "0.7", "--tasks", "DTD", "SVHN") == 0
    )
    seen = capsys.readouterr()
    assert seen.out == "from_file\n"
    assert "runs on the CPU" in seen.err
    written = json.loads((here / "kept" / "config.json").read_text())
    assert written["energy_threshold"] == 0.7  # the command line wins
    assert written["tasks"] == ["DTD", "SVHN"]
    assert written["temperature"] == 0.05


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"svd_max_rnk": 3}, "did you mean 'max_rank'?"),
        ({"output": "x"}, "did you mean 'output_dir'?"),
        ({"svd_low_bits": 9}, "low_bits is 9"),
        ({"svd_store_artifacts": "maybe"}, "store_artifacts is 'maybe'"),
        ({"method": "magic"}, "there is no merge method 'magic' here"),
        ({"tasks": "DTD"}, "'tasks' is not a list"),
    ],
)
def test_mistakes_in_a_configuration(
    here: Path, wrong: dict[str, object], text: str, capsys: pytest.CaptureFixture[str]
):
    paths = {"checkpoint_dir": "ckpts", "base_model_path": "base.pt"}
    (here / "run.json").write_text(json.dumps({"tasks": ["DTD", "SVHN"]} | paths | wrong))
    assert launch("--config", "run.json") == 2
    assert text in capsys.readouterr().err
    assert not (here / "svd_hybrid_output").exists()


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--tasks", "Cars", "Flowers", *FAMILY], 3, "no checkpoint for task 'Flowers'"),
        (["--tasks", "Cars", "Cars", *FAMILY], 2, "given twice"),
        (["--tasks", "Cars", "--base-model-path", "base.pt"], 2, "--checkpoint-dir"),
        (["--tasks", "Cars", "--checkpoint-dir", "ckpts"], 2, "no base given"),
        (FAMILY, 2, "no task given"),
        ([*THREE, "--energy-threshold", "1.5"], 2, "outside (0, 1]"),
        ([*THREE, "--mask-dir", "nowhere"], 8, "mask folder does not exist"),
        ([*THREE, "--cluster-k", "7", "--weighting", "cluster"], 2, "only 3 tasks"),
    ],
)
def test_typical_mistakes(
    here: Path, args: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
):
    assert launch(*args) == code
    assert text in capsys.readouterr().err
    assert not (here / "svd_hybrid_output").exists()


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("run.json", b'{"tasks": ["DTD"], "tasks": ["SVHN"]}', "a key appears twice"),
        ("run.yaml", b"method: svd_hybrid\nmethod:\n  svd_low_bits: 3\n", "a key appears twice"),
        ("run.yaml", b"tasks: [\xff]", "cannot be parsed"),
        ("run.json", b"\xff", "cannot be parsed"),
        ("run.json", b"[]", "not a mapping"),
        ("run.yaml", b"[a, b]: c", "cannot be parsed"),
        ("run.json", b"[" * 100_000, "cannot be parsed"),
    ],
)
def test_configurations_that_are_no_configuration(
    here: Path, name: str, data: bytes, text: str, capsys: pytest.CaptureFixture[str]
):
    (here / name).write_bytes(data)
    assert launch("--config", name) == 2
    assert text in capsys.readouterr().err
