"""From statistics to a merged model that transformers loads: the whole way, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from svd_hybrid import Artifact, compress
from svd_hybrid.cli.app import main
from svd_hybrid.compress.statistics import FamilyStatistics, MeasuredFamily
from svd_hybrid.errors import FamilyError
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.models.load import live_model
from tests.collect.test_layers_seen import tokens
from tests.families import deltas_of, relative_error
from tests.models.tiny import CAUSAL, saved_family

TASKS = ("ant", "bee")
IDS = torch.arange(12).view(2, 6)
METHODS = {
    "scale-svd": ["--missing-statistics", "ones"],
    "iso-iasad": ["--missing-statistics", "ones"],
    "sparsegpt-ties": [],
    "sparsegpt-dare": ["--set", "compensate=true"],
}
COMPENSATED = {"sparsegpt-ties": ["--compensate"]}


@pytest.fixture(scope="module", params=CAUSAL)
def project(request, tmp_path_factory) -> Path:
    root = saved_family(request.param, tmp_path_factory.mktemp(request.param))
    tokens(root / "data.npz", count=12, length=12)
    assert main(["stats", "collect", *family(root), *collect(root, "stats")]) == 0
    return root


def family(root: Path) -> list[str]:
    tasks = ["--tasks", *TASKS, "--checkpoint-dir", str(root)]
    return ["--base-model-path", str(root / "base"), *tasks]


def collect(root: Path, out: str) -> list[str]:
    data = ["--data", str(root / "data.npz"), "--samples", "all", "--kind", "gram"]
    return [*data, "--output-dir", str(root / out), "-q"]


def compressed(root: Path, out: Path, method: str, *more: str, stats: str = "stats") -> Path:
    words = ["compress", *family(root), "--method", method, "--statistics-dir", str(root / stats)]
    words += ["--profile", "fast", "--artifact-dir", str(out), "-q", *METHODS[method], *more]
    assert main(words) == 0
    return out


@pytest.mark.parametrize(("method", "more"), [*((m, []) for m in METHODS), *COMPENSATED.items()])
def test_the_merged_folder_has_the_logits_of_the_merged_tensors(project, tmp_path, method, more):
    art = compressed(project, tmp_path / "art", method, *more)
    merged = tmp_path / "merged"
    words = ["reload", "--artifact-dir", str(art), "--base-model-path", str(project / "base")]
    assert main([*words, "--output-path", str(merged), "-q"]) == 0
    live = live_model(open_checkpoint(project / "base"))
    live.put(Artifact.open(art).iter_tensors(project / "base"), "artifact")
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    with torch.inference_mode():
        got, want = model(IDS).logits, live({"input_ids": IDS}).logits
        base = live_model(open_checkpoint(project / "base"))({"input_ids": IDS}).logits
    assert torch.equal(got, want)
    assert relative_error(base, want) > 1e-3


def without_records(root: Path, folder: Path) -> Path:
    folder.mkdir()
    for task in TASKS:
        save_file(load_file(root / "stats" / f"{task}.safetensors"), folder / f"{task}.safetensors")
    return folder


@pytest.mark.parametrize("method", ["scale-svd", "sparsegpt-ties"])
def test_the_record_says_how_conv1d_is_stored(tmp_path, method):
    """Square matrices would be weighed along the wrong axis without a word."""
    root = saved_family("gpt2", tmp_path / "gpt2")
    tokens(root / "data.npz", count=12, length=12)
    assert main(["stats", "collect", *family(root), *collect(root, "stats")]) == 0
    art = compressed(root, tmp_path / "art", method)
    plain = without_records(root, tmp_path / "plain")
    conv = "*.c_attn.weight,*.c_fc.weight,*.c_proj.weight"
    told = compressed(
        root, tmp_path / "told", method, "--set", f"transposed={conv}", stats=str(plain)
    )
    recorded, named = (deltas_of(Artifact.open(path)) for path in (art, told))
    assert all(torch.equal(recorded[name], named[name]) for name in recorded)
    wide = "*.c_attn.weight,*.c_fc.weight,*.mlp.c_proj.weight"  # the square one is left out
    wrong = compressed(
        root, tmp_path / "wrong", method, "--set", f"transposed={wide}", stats=str(plain)
    )
    square = "transformer.h.0.attn.c_proj.weight"
    assert relative_error(deltas_of(Artifact.open(wrong))[square], recorded[square]) > 1e-4


def arguments(root: Path) -> dict[str, Any]:
    tasks = {task: root / task for task in TASKS}
    return {"base": root / "base", "tasks": tasks, "method": "sparsegpt-ties"}


def test_statistics_of_other_weights_are_refused(project, tmp_path):
    state = load_file(project / "bee" / "model.safetensors")
    last = ("mlp.c_proj.weight", "down_proj.weight", "4h_to_h.weight")
    name = next(name for name in state if name.endswith(last))
    state[name][0, 0] += 1
    other = tmp_path / "bee.safetensors"
    save_file(state, other)
    wanted = arguments(project)
    wanted["tasks"]["bee"] = other
    with pytest.raises(FamilyError, match="collected on other weights than this task 'bee'") as bad:
        compress(artifact_dir=tmp_path / "art", statistics_dir=project / "stats", **wanted)
    assert name in bad.value.where
    assert not (tmp_path / "art").exists()


def test_statistics_of_the_other_task_are_refused(project, tmp_path):
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for task, other in zip(TASKS, reversed(TASKS), strict=True):
        source = project / "stats" / f"{task}.safetensors"
        (swapped / f"{other}.safetensors").write_bytes(source.read_bytes())
    with pytest.raises(FamilyError, match="collected on other weights"):
        compress(artifact_dir=tmp_path / "a", statistics_dir=swapped, **arguments(project))


def test_a_task_without_statistics_is_named(project, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    (one / "ant.safetensors").write_bytes((project / "stats" / "ant.safetensors").read_bytes())
    with pytest.raises(FamilyError, match="no statistics of task 'bee'"):
        compress(artifact_dir=tmp_path / "a", statistics_dir=one, **arguments(project))


def test_statistics_are_of_use_without_a_merge_method(project):
    readers = {task: open_checkpoint(project / task) for task in TASKS}
    measured = MeasuredFamily(open_checkpoint(project / "base"), TASKS, readers)
    for kind, axes in (("moment", 1), ("gram", 2)):
        found = FamilyStatistics.open(project / "stats", measured, kind)  # type: ignore[arg-type]
        stored = load_file(project / "stats" / "bee.safetensors")
        for name, tensor in stored.items():
            values = found.of(name)
            if len(measured.base.infos[name].shape) < 2:
                assert values is None
                continue
            assert values is not None
            assert values[1].ndim == axes
            want: Tensor = tensor if axes == 2 else tensor.diagonal()
            assert torch.equal(values[1], want)


def test_an_artifact_as_source_says_that_records_are_unchecked(project, tmp_path):
    first = {"profile": "fast", **arguments(project), "method": "task-arithmetic"}
    compress(artifact_dir=tmp_path / "first", **first)
    result = compress(
        project / "base", {}, tmp_path / "again", from_artifact=tmp_path / "first",
        method="sparsegpt-ties", statistics_dir=project / "stats",
    )  # fmt: skip
    assert "is unchecked: 'ant', 'bee'" in " ".join(result.notes)


def test_the_command_says_what_it_did(project, capsys):
    assert main(["stats", "inspect", "--statistics-dir", str(project / "stats"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["tasks"]
    assert list(shown) == list(TASKS)
    assert shown["ant"]["kind"] == "gram"
    assert shown["ant"]["data"]["samples"] == 12
    assert shown["ant"]["fingerprint"] != shown["bee"]["fingerprint"]
    words = ["stats", "collect", *family(project), *collect(project, "stats"), "--json"]
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["seconds"] == {"ant": 0.0, "bee": 0.0}
    assert again["tasks"] == shown
    assert main([word for word in words if word not in ("-q", "--json")]) == 0
    assert "12 samples; 64 and more are steadier" in capsys.readouterr().err
