"""`python -m svd_hybrid.reload`, `python load_and_merge.py`, and the latter as a module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import load_and_merge
import svd_hybrid
from svd_hybrid.cli.reload import reload as svdh_reload
from svd_hybrid.errors import BaseMismatchError, StorageError, UnknownNameError, UsageError
from svd_hybrid.reload import command
from tests.entrypoints.conftest import ROOT, SHAPES, TASKS, Run, deltas, relative_error

SCRIPT = ROOT / "load_and_merge.py"


@pytest.fixture(scope="module")
def artifact(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("kept") / "artifacts"
    found = {task: next((family / "ckpts").glob(f"{task}.*"), None) for task in TASKS}
    found["SUN397"] = family / "ckpts" / "sun397.pth"
    tasks = {t: path or family / "ckpts" / t / "finetuned.pt" for t, path in found.items()}
    svd_hybrid.compress(family / "base.pt", tasks, target, target_error=0.04)
    return target


def arguments(artifact: Path, output: str, base: str = "base.pt") -> list[str]:
    paths = ["--artifact-dir", str(artifact), "--base-model-path", base]
    return [*paths, "--output-path", output]


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def test_script_works_from_another_directory(run: Run, here: Path, artifact: Path):
    (here / "elsewhere").mkdir()
    done = run(
        *(SCRIPT, *arguments(artifact, "eurosat.pt", "../base.pt"), "--task", "EuroSAT"),
        *("--device", "cuda", "--debug"),
        cwd=here / "elsewhere",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "eurosat.pt\n"
    assert "note: reload runs on the CPU" in done.stderr
    state = load(here / "elsewhere" / "eurosat.pt")
    base = load(here / "base.pt")["state_dict"]
    got = {name: state[name] - base[name] for name in SHAPES}
    assert relative_error(got, deltas(here)[2]) < 0.05


def test_typical_mistakes_in_the_shell(run: Run, here: Path, artifact: Path):
    (here / "other.pt").write_bytes((here / "ckpts" / "Cars.pt").read_bytes())
    done = run("-m", "svd_hybrid.reload", *arguments(artifact, "out.pt", "other.pt"))
    assert done.returncode == 5
    assert "error: this base is not the one the artifact was made from" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "out.pt").exists()
    done = run(SCRIPT, *arguments(artifact, "out.pt"), "--task", "EuroSat", "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["fix"] == "did you mean 'EuroSAT'?"


def test_both_programs_are_the_reload_command_itself():
    assert svdh_reload is command.reload


def test_weights_file_and_json(here: Path, artifact: Path, capsys: pytest.CaptureFixture[str]):
    (here / "w.json").write_text(json.dumps(dict.fromkeys(TASKS, 0.0) | {"DTD": 1.0}))
    args = [*arguments(artifact, "dtd.pt"), "--weights", "w.json", "--json"]
    assert load_and_merge.main(args) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["selection"] == "given weights"
    assert load_and_merge.main([*arguments(artifact, "task.pt"), "--task", "DTD"]) == 0
    first, second = load(here / "dtd.pt"), load(here / "task.pt")
    assert all(torch.equal(first[name], second[name]) for name in SHAPES)


def test_an_existing_output_needs_overwrite(
    here: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
):
    (here / "out.pt").write_text("mine")
    assert command.main(arguments(artifact, "out.pt")) == 8
    assert "pass --overwrite" in capsys.readouterr().err
    assert (here / "out.pt").read_text() == "mine"
    assert command.main([*arguments(artifact, "out.pt"), "--overwrite", "-q"]) == 0
    assert load(here / "out.pt")


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        (["--task", "Cars", "--merge", "merged"], 2, "does not hold single tasks"),
        (["--merge", "mergd"], 2, "did you mean 'merged'?"),
        (["--weights", "none.json"], 8, "weights file cannot be read"),
        (["--max-shard-size", "many"], 2, "'many' is not a size"),
        (["--device", "tpu"], 2, "'tpu' is not one of"),
        (["--verify"], 2, "no such option"),
    ],
)
def test_typical_mistakes(
    here: Path,
    artifact: Path,
    more: list[str],
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
):
    assert command.main([*arguments(artifact, "out.pt"), *more]) == code
    seen = capsys.readouterr().err
    assert text in seen
    assert "python -m svd_hybrid.reload --help" in seen or "see " not in seen
    assert not (here / "out.pt").exists()


def test_an_artifact_of_the_original_is_pointed_to_convert(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    (here / "old" / "basis").mkdir(parents=True)
    assert command.main(arguments(here / "old", "out.pt")) == 4
    assert "run svdh convert first" in capsys.readouterr().err


def test_functions_give_what_the_program_writes(here: Path, artifact: Path):
    assert command.main([*arguments(artifact, "out.pt"), "-q"]) == 0
    written = load(here / "out.pt")
    merged = load_and_merge.load_merged(artifact, "base.pt")
    assert list(merged) == list(written)
    assert all(torch.equal(merged[name], written[name]) for name in written)
    task = load_and_merge.load_task(artifact, "base.pt", "MNIST")
    weighted = load_and_merge.load_merged(
        artifact, "base.pt", weights=dict.fromkeys(TASKS, 0.0) | {"MNIST": 1.0}
    )
    assert all(torch.equal(task[name], weighted[name]) for name in task)
    half = dict(load_and_merge.iter_tensors(artifact, "base.pt", task="MNIST", dtype="F16"))
    assert half["visual.proj"].dtype == torch.float16
    assert half["visual.position_ids"].dtype == torch.int64


def test_functions_raise_named_errors(here: Path, artifact: Path):
    with pytest.raises(UnknownNameError, match="no task 'Flowers'"):
        load_and_merge.load_task(artifact, "base.pt", "Flowers")
    with pytest.raises(BaseMismatchError):
        load_and_merge.load_merged(artifact, "ckpts/Cars.pt")
    with pytest.raises(StorageError):
        load_and_merge.load_merged("nowhere", "base.pt")
    with pytest.raises(UsageError, match="does not hold single tasks"):
        load_and_merge.load_merged(artifact, "base.pt", merge="merged", weights={"Cars": 1.0})
