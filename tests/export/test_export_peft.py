"""Exported adapters, loaded by PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from svd_hybrid import compress
from svd_hybrid.export.run import ExportRequest, run_export
from tests.export.models import gpt2, llama, logits, packed, rebuilt, tuned
from tests.io.checkpoints import write

peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install svd-hybrid[dev]")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


def loaded(adapter: Path, model: nn.Module) -> nn.Module:
    """The base with the adapter; every tensor of the file must have found its place."""
    found = peft.PeftModel.from_pretrained(model, adapter)
    report = found.load_adapter(adapter, adapter_name="again")
    assert not report.unexpected_keys
    return found.eval()


MODELS = {
    "llama": llama,
    "llama-tied": lambda: llama(tied=True),
    "gpt2": gpt2,
}
LINEAR = {"llama": "proj.weight", "llama-tied": "proj.weight", "gpt2": "h.0.mlp.c_fc.weight"}


@pytest.mark.parametrize("kind", MODELS)
def test_deltas_of_low_rank_come_back_whole(tmp_path, kind):
    torch.manual_seed(0)
    model = MODELS[kind]()
    artifact = packed(tmp_path, model, tuned(model, 2, LINEAR[kind]))
    result = run_export(
        ExportRequest(tmp_path / "art", tmp_path / "base", tmp_path / "out", 4, task="one")
    )
    before = logits(model)
    got = logits(loaded(tmp_path / "out", MODELS[kind]().from_pretrained(tmp_path / "base")))
    want = logits(rebuilt(artifact, tmp_path / "base", model))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, want, atol=1e-3)
    assert result.rank == 2
    assert result.relative_error < 1e-5
    assert not result.named("lost")


@pytest.mark.parametrize("kind", MODELS)
def test_everything_that_changed_is_kept_when_asked_for(tmp_path, kind):
    torch.manual_seed(0)
    model = MODELS[kind]()
    artifact = packed(tmp_path, model, tuned(model, 3))
    result = run_export(
        ExportRequest(
            tmp_path / "art", tmp_path / "base", tmp_path / "out", 3, task="one", keep=("all",)
        )
    )
    fresh = MODELS[kind]().from_pretrained(tmp_path / "base")
    got = logits(loaded(tmp_path / "out", fresh))
    want = logits(rebuilt(artifact, tmp_path / "base", model))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not result.named("lost")
    assert result.named("whole")


def test_a_base_without_the_models_prefix_needs_it_named(tmp_path):
    torch.manual_seed(0)
    model = gpt2()
    state = {
        name.removeprefix("transformer."): value.clone()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    base = write(tmp_path / "base.safetensors", state)
    random = torch.Generator().manual_seed(0)
    delta = torch.randn(16, 1, generator=random) @ torch.randn(1, 48, generator=random)
    name = "h.0.attn.c_attn.weight"
    task = write(tmp_path / "one.safetensors", state | {name: state[name] + 0.1 * delta})
    compress(base, {"one": task}, tmp_path / "art", profile="exact")
    run_export(
        ExportRequest(
            tmp_path / "art", base, tmp_path / "out", 1, task="one", module_prefix="transformer"
        )
    )
    found = loaded(tmp_path / "out", gpt2_of(model)).merge_and_unload()
    torch.testing.assert_close(
        found.state_dict()["transformer." + name], state[name] + 0.1 * delta, rtol=1e-4, atol=1e-5
    )


def gpt2_of(model: nn.Module) -> nn.Module:
    """Another GPT-2 with the same weights."""
    other = gpt2()
    other.load_state_dict(model.state_dict())
    return other
