"""Exported adapters, judged by their files and by what svdh itself reads in them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svd_hybrid.cli.app import main
from svd_hybrid.errors import BaseMismatchError, StorageError, UsageError
from svd_hybrid.export.factors import best_factors
from svd_hybrid.export.run import ExportRequest, run_export
from svd_hybrid.io.adapter.reader import open_task
from svd_hybrid.io.reader import open_checkpoint
from tests.families import FamilyFiles, deltas_of, pack, relative_error, write_family
from tests.io.checkpoints import random_state, write

SHAPES = {
    "embed.weight": (30, 8),
    "h.0.fc.weight": (12, 8),
    "h.0.fc.bias": (12,),
    "h.0.norm.weight": (8,),
    "h.1.fc.weight": (12, 8),
    "h.1.fc.bias": (12,),
    "conv.weight": (4, 3, 2, 2),
    "scale": (),
}
PREFIX = "base_model.model."


@pytest.fixture
def files(tmp_path) -> FamilyFiles:
    return write_family(tmp_path, SHAPES, ("ant", "bee"))


@pytest.fixture
def artifact(tmp_path, files):
    return pack(files, tmp_path / "art", profile="hybrid")


def export(tmp_path: Path, files: FamilyFiles, rank: int = 3, **options):
    request = ExportRequest(tmp_path / "art", files.base, tmp_path / "out", rank, **options)
    return run_export(request)


def adapter_delta(tmp_path: Path, files: FamilyFiles, name: str) -> torch.Tensor:
    return open_task(tmp_path / "out", open_checkpoint(files.base)).delta(name, torch.float32)


def test_factors_are_the_best_of_their_rank_and_the_loss_is_the_rest_of_the_spectrum(
    tmp_path, files, artifact
):
    result = export(tmp_path, files, task="bee")
    deltas = deltas_of(artifact, task="bee")
    found = {tensor.name: tensor for tensor in result.named("factors")}
    assert found.keys() == {"h.0.fc.weight", "h.1.fc.weight"}
    for name, outcome in found.items():
        sigma = torch.linalg.svdvals(deltas[name].double())
        best = float(sigma[3:].norm() / sigma.norm())
        assert outcome.relative_error == pytest.approx(best, rel=1e-4)
        got = adapter_delta(tmp_path, files, name)
        assert relative_error(got, deltas[name]) == pytest.approx(best, rel=1e-4)


def test_the_total_counts_what_is_lost(tmp_path, files, artifact):
    result = export(tmp_path, files, task="bee")
    deltas = deltas_of(artifact, task="bee")
    assert {tensor.name for tensor in result.tensors} == set(SHAPES)
    lost = {tensor.name: tensor.why for tensor in result.named("lost")}
    assert lost == {
        "embed.weight": "an embedding",
        "h.0.fc.bias": "a bias",
        "h.0.norm.weight": "a vector",
        "h.1.fc.bias": "a bias",
        "conv.weight": "an array of 4 axes",
        "scale": "no module's weight",
    }
    energy = sum(float(delta.double().square().sum()) for delta in deltas.values())
    left = sum(tensor.lost for tensor in result.tensors)
    assert result.relative_error == pytest.approx(math.sqrt(left / energy), rel=1e-6)
    text = (tmp_path / "out/README.md").read_text()
    assert f"{result.relative_error:.2e}" in text
    for name in SHAPES:
        assert f"`{name}`" in text


def test_full_rank_loses_rounding_only(tmp_path, files, artifact):
    result = export(tmp_path, files, rank=64, task="ant")
    assert result.rank == 8
    assert result.factors_error < 1e-6
    assert any("higher rank than 8" in note for note in result.notes)


@pytest.mark.parametrize(("dtype", "bound"), [("F16", 2e-3), ("BF16", 2e-2)])
def test_the_rounding_of_factors_is_part_of_the_stated_error(
    tmp_path, files, artifact, dtype, bound
):
    result = export(tmp_path, files, rank=8, task="ant", dtype=dtype)
    stored = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {
        {"F16": "torch.float16", "BF16": "torch.bfloat16"}[dtype]
    }
    assert 1e-5 < result.factors_error < bound
    name = "h.0.fc.weight"
    error = relative_error(
        adapter_delta(tmp_path, files, name), deltas_of(artifact, task="ant")[name]
    )
    stated = next(t.relative_error for t in result.tensors if t.name == name)
    assert stated == pytest.approx(error, rel=1e-3)


def test_what_is_asked_for_is_saved_whole(tmp_path, files, artifact):
    result = export(tmp_path, files, task="bee", keep=("norm", "*.bias", "h.1.fc"))
    assert {tensor.name for tensor in result.named("whole")} == {
        "h.0.norm.weight",
        "h.0.fc.bias",
        "h.1.fc.weight",
        "h.1.fc.bias",
    }
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["modules_to_save"] == ["h.0.norm", "h.1.fc"]
    assert config["target_modules"] == ["h.0.fc"]
    assert config["lora_bias"] is True
    reader = open_task(tmp_path / "out", open_checkpoint(files.base))
    want = dict(artifact.iter_tensors(files.base, task="bee"))
    for name in ("h.0.norm.weight", "h.0.fc.bias", "h.1.fc.weight", "h.1.fc.bias"):
        torch.testing.assert_close(reader.read(name), want[name], rtol=1e-6, atol=1e-7)


def test_what_no_module_can_hold_is_lost_and_says_so(tmp_path, files, artifact):
    result = export(tmp_path, files, task="bee", keep=("all",))
    lost = result.named("lost")
    assert [tensor.name for tensor in lost] == ["scale"]
    assert "no module that could be saved" in lost[0].why


def test_merges_and_weightings_can_be_exported(tmp_path, files, artifact):
    name = "h.0.fc.weight"
    export(tmp_path, files, rank=8)
    merged = deltas_of(artifact)[name]
    assert relative_error(adapter_delta(tmp_path, files, name), merged) < 1e-6
    export(tmp_path, files, rank=8, weights={"ant": 2.0, "bee": -1.0}, overwrite=True)
    weighted = deltas_of(artifact, weights={"ant": 2.0, "bee": -1.0})[name]
    assert relative_error(adapter_delta(tmp_path, files, name), weighted) < 1e-6
    assert relative_error(weighted, merged) > 0.1


def test_a_stored_merge_can_be_exported(tmp_path, files):
    artifact = pack(files, tmp_path / "art", method="tsv-m", store_tasks="off")
    name = "h.1.fc.weight"
    export(tmp_path, files, rank=8)
    merged = deltas_of(artifact)[name]
    assert relative_error(adapter_delta(tmp_path, files, name), merged) < 1e-6


def test_a_task_that_changed_nothing_in_a_tensor_has_no_factors_there(tmp_path, files):
    base = {name: tensor.clone() for name, tensor in read(files.base).items()}
    base["h.0.fc.weight"] += 1
    write(files.tasks["ant"], base)
    pack(files, tmp_path / "art", profile="exact")
    result = export(tmp_path, files, task="ant")
    assert [tensor.name for tensor in result.tensors] == ["h.0.fc.weight"]
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["target_modules"] == ["h.0.fc"]
    assert result.rank == 1


def read(path: Path) -> dict[str, torch.Tensor]:
    reader = open_checkpoint(path)
    return {name: reader.read(name) for name in reader.infos}


def test_equal_exports_are_equal_files(tmp_path, files, artifact):
    export(tmp_path, files, task="ant")
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    export(tmp_path, files, task="ant", overwrite=True)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert first.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_signs_do_not_depend_on_the_decomposition():
    delta = random_state(0, x=(5, 4))["x"]
    found = best_factors(delta, 2, torch.float32, in_out=False)
    strongest = found.up.abs().argmax(dim=0)
    assert bool((found.up[strongest, torch.arange(2)] > 0).all())


# --- refusals ------------------------------------------------------------------------------------


def test_another_base_is_refused_even_in_a_tensor_that_did_not_change(tmp_path, files):
    write(files.tasks["ant"], read(files.base) | {"scale": torch.tensor(9.0)})
    base = read(files.base)
    base["h.0.fc.weight"] = base["h.0.fc.weight"].clone()
    pack(FamilyFiles(files.base, {"ant": files.tasks["ant"]}), tmp_path / "art", profile="exact")
    base["h.0.fc.weight"][0, 0] += 1e-3
    write(tmp_path / "other.safetensors", base)
    request = ExportRequest(tmp_path / "art", tmp_path / "other.safetensors", tmp_path / "out", 2)
    with pytest.raises(BaseMismatchError, match="base") as caught:
        run_export(request)
    assert "h.0.fc.weight" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing(tmp_path, files, artifact, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("svd_hybrid.export.run.adapter_card", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError, match="no space left"):
        export(tmp_path, files)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"rank": 0}, UsageError, "rank is 0"),
        ({"task": "cow"}, UsageError, "cow"),
        ({"keep": ("nrom",)}, UsageError, "'nrom' fits no tensor"),
        ({"keep": ("re:(",)}, UsageError, "no regular expression"),
    ],
)
def test_parameters_that_cannot_work_are_refused(tmp_path, files, artifact, options, error, said):
    with pytest.raises(error, match=said):
        export(tmp_path, files, **options)
    assert not (tmp_path / "out").exists()


def test_a_selection_without_linear_changes_is_refused(tmp_path, files):
    write(files.tasks["ant"], read(files.base) | {"h.0.norm.weight": torch.zeros(8)})
    pack(files, tmp_path / "art", profile="exact")
    with pytest.raises(UsageError, match="task ant changes no linear weight"):
        export(tmp_path, files, task="ant")


def test_an_output_in_the_way_or_inside_the_artifact_is_refused(tmp_path, files, artifact):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(StorageError, match="output exists"):
        export(tmp_path, files)
    for path in (tmp_path / "art/out", tmp_path / "out.safetensors"):
        with pytest.raises(UsageError, match=r"inside an input of this run|a folder, not a file"):
            run_export(ExportRequest(tmp_path / "art", files.base, path, 2))


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_the_path_and_the_losses(tmp_path, files, artifact, capsys):
    arguments = ["export", "--artifact-dir", str(tmp_path / "art"), "--rank", "2"]
    arguments += ["--base-model-path", str(files.base), "--output-path", str(tmp_path / "out")]
    assert main([*arguments, "--task", "bee"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n"
    assert "2 weights as factors of rank 2" in err
    assert "--modules-to-save all" in err
    assert main([*arguments, "--task", "bee", "--overwrite", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tensors"]["h.0.norm.weight"]["stored"] == "lost"
    assert 0 < document["relative_error_of_factors"] < document["relative_error"] < 1
    words = ["--modules-to-save", "norm", "embed", "--overwrite", "-q"]
    assert main([*arguments, *words]) == 0
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["modules_to_save"] == ["embed", "h.0.norm"]


@pytest.mark.parametrize(
    ("left_out", "code"), [("--rank", 2), ("--base-model-path", 2), ("--output-path", 2)]
)
def test_a_command_without_what_it_needs_is_a_usage_error(tmp_path, left_out, code, capsys):
    words = {
        "--artifact-dir": tmp_path,
        "--rank": 2,
        "--base-model-path": tmp_path,
        "--output-path": tmp_path / "o",
    }
    given = [str(word) for key, value in words.items() if key != left_out for word in (key, value)]
    assert main(["export", *given]) == code
    assert capsys.readouterr().out == ""
