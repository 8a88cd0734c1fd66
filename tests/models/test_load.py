"""Checkpoints in live models: strictly, whatever names the library gives their tensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from svd_hybrid.errors import FamilyError, StorageError, UsageError
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.models.load import live_model
from tests.models.tiny import BUILDERS, CAUSAL, saved

IDS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_saved_model_comes_back_with_its_checkpoint_names(kind, tmp_path):
    folder = saved(kind, tmp_path / kind)
    live = live_model(open_checkpoint(folder))
    stored = load_file(folder / "model.safetensors")
    state = live.module.state_dict()
    assert set(live.names) == set(stored)
    for name, tensor in stored.items():
        assert torch.equal(state[live.names[name]], tensor)
    assert not live.module.training


@pytest.mark.parametrize("kind", CAUSAL)
def test_other_weights_give_the_logits_of_a_fresh_load(kind, tmp_path):
    first, second = saved(kind, tmp_path / "a", seed=1), saved(kind, tmp_path / "b", seed=2)
    live = live_model(open_checkpoint(first))
    live.put_checkpoint(open_checkpoint(second))
    fresh = live_model(open_checkpoint(second))
    with torch.inference_mode():
        assert torch.equal(live({"input_ids": IDS}).logits, fresh({"input_ids": IDS}).logits)


def test_tied_weights_stored_twice_must_agree(tmp_path):
    folder = saved("gpt2", tmp_path / "gpt2")
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    save_file(state, tmp_path / "both.safetensors")
    live = live_model(open_checkpoint(tmp_path / "both.safetensors"), folder)
    assert live.names["lm_head.weight"] == "lm_head.weight"
    state["lm_head.weight"] += 1
    save_file(state, tmp_path / "differ.safetensors")
    with pytest.raises(FamilyError, match="differ, and the model holds them as one"):
        live.put_checkpoint(open_checkpoint(tmp_path / "differ.safetensors"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("model.norm.weight"), "missing 'model.norm.weight'"),
        (lambda s: s.update(extra=torch.ones(2)), "unexpected 'extra'"),
        (lambda s: s.update({"model.norm.weight": torch.ones(3)}), "another shape|cannot load"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, change, text):
    folder = saved("llama", tmp_path / "llama")
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(FamilyError, match=text):
        live_model(open_checkpoint(tmp_path / "bad.safetensors"), folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("model.norm.weight"), "lacks 'model.norm.weight'"),
        (lambda s: s.update(extra=torch.ones(2)), "has 'extra' besides"),
        (lambda s: s.update({"model.norm.weight": torch.ones(3)}), r"shape \[3\]"),
    ],
)
def test_weights_that_do_not_fit_a_live_model(tmp_path, change, text):
    live = live_model(open_checkpoint(saved("llama", tmp_path / "llama")))
    state = load_file(tmp_path / "llama" / "model.safetensors")
    change(state)
    with pytest.raises(FamilyError, match=text):
        live.put(state.items(), "here")


def test_a_folder_without_a_configuration(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match=r"no config\.json"):
        live_model(open_checkpoint(tmp_path))


def test_an_architecture_transformers_does_not_have(tmp_path):
    folder = saved("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalML"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FamilyError, match="no model class 'LlamaForCausalML'"):
        live_model(open_checkpoint(folder))


def test_without_the_extra_one_error_says_what_to_install(tmp_path, monkeypatch):
    folder = saved("llama", tmp_path / "llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"needs the package 'transformers'") as caught:
        live_model(open_checkpoint(folder))
    assert "pip install 'svd-hybrid[eval]'" in caught.value.fix


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def not_a_module() -> int:
    return 3


def write(path: Path, prefix: str = "", **more: torch.Tensor) -> Path:
    torch.manual_seed(0)
    state = {prefix + name: tensor for name, tensor in two_layers().state_dict().items()}
    save_file(state | more, path)
    return path


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_a_function_builds_the_model_and_one_prefix_may_differ(tmp_path, prefix):
    path = write(tmp_path / "m.safetensors", prefix)
    live = live_model(open_checkpoint(path), f"{__name__}:two_layers")
    stored = load_file(path)
    assert live.names == {name: name.removeprefix(prefix) for name in stored}
    assert torch.equal(live.module.state_dict()["0.weight"], stored[f"{prefix}0.weight"])
    assert bool(live.notes) == bool(prefix)
    assert live({"pixel_values": torch.ones(5, 4)}).shape == (5, 2)


def test_a_function_whose_model_has_other_tensors(tmp_path):
    path = write(tmp_path / "m.safetensors", extra=torch.ones(1))
    with pytest.raises(FamilyError, match="the model has no 'extra'"):
        live_model(open_checkpoint(path), f"{__name__}:two_layers")


def test_a_function_in_the_current_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "m.safetensors")
    code = "from tests.models.test_load import two_layers as build\n"
    (tmp_path / "my_model_file.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert len(live_model(open_checkpoint(path), "my_model_file:build").names) == 4


@pytest.mark.parametrize("name", [f"{__name__}:nothing", "no_such_module:f"])
def test_a_function_that_is_not_there(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be called"):
        live_model(open_checkpoint(write(tmp_path / "m.safetensors")), name)


def test_a_function_that_returns_something_else(tmp_path):
    with pytest.raises(UsageError, match="returned int"):
        live_model(open_checkpoint(write(tmp_path / "m.safetensors")), f"{__name__}:not_a_module")
