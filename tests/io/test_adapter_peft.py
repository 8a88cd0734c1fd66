"""Adapters that PEFT itself wrote, against the weights PEFT merges from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svd_hybrid.io.adapter.reader import open_task
from svd_hybrid.io.reader import open_checkpoint
from tests.io.checkpoints import write

peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install svd-hybrid[dev]")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    return transformers.GPT2LMHeadModel(config)


class Mixed(nn.Module):
    """A convolution, an embedding, a linear layer and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.Conv2d(3, 6, 3)
        self.point = nn.Conv2d(6, 4, 1)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.embed(x)))


SHARED = Path(
    os.environ.get("SVDH_FAMILIES", Path(__file__).resolve().parents[3] / "shared" / "families")
)
MODELS = {"llama": llama, "gpt2": gpt2, "mixed": Mixed}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns": (
        "llama",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 1},
            "alpha_pattern": {"q_proj": 5, r"layers\.0\.mlp\..*": 1},
            "use_rslora": True,
            "modules_to_save": ["norm", "lm_head"],
        },
    ),
    "dora": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
    "embedding-dora": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "bias": "all"}),
    "conv1d-dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "lora-bias": ("gpt2", {"target_modules": ["c_attn"], "lora_bias": True}),
    "tied": ("gpt2", {"target_modules": ["c_attn", "wpe"]}),
    "conv2d": ("mixed", {"target_modules": ["conv", "point", "out"], "bias": "lora_only"}),
    "conv2d-dora": ("mixed", {"target_modules": ["conv", "point"], "use_dora": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_gives_the_weights_that_peft_merges(tmp_path, case):
    model_name, config = CASES[case]
    torch.manual_seed(0)
    model = MODELS[model_name]()
    base = write(tmp_path / "base.safetensors", untied(model.state_dict()))
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, **config))
    trained = {name for name, value in tuned.named_parameters() if value.requires_grad}
    assert trained
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if name in trained:
                value.add_(torch.randn_like(value) * 0.05)
    tuned.save_pretrained(tmp_path / "adapter")
    reader = open_task(tmp_path / "adapter", open_checkpoint(base))
    merged = untied(tuned.merge_and_unload().state_dict())
    before = open_checkpoint(base)
    assert reader.infos.keys() == merged.keys()
    for name, want in merged.items():
        torch.testing.assert_close(reader.read(name), want, rtol=1e-5, atol=1e-6, msg=name)
    changed = {name for name in merged if not torch.equal(merged[name], before.read(name))}
    found = {name for name in merged if not torch.equal(reader.read(name), before.read(name))}
    assert found == changed


def untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each with memory of its own."""
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.family
def test_the_shared_adapter_has_the_perplexity_it_was_published_with():
    folder = SHARED / "llama-nano"
    if not folder.is_dir():
        pytest.skip(f"no trained family in {folder}; set SVDH_FAMILIES")
    published = json.loads((folder / "results.json").read_text())["lora-shakespeare"]
    reader = open_task(folder / "lora-shakespeare", open_checkpoint(folder / "base"))
    config = transformers.LlamaConfig.from_pretrained(folder / "base")
    model = transformers.LlamaForCausalLM(config).float().eval()
    state = {name: reader.read(name).float() for name in reader.infos}
    assert set(model.load_state_dict(state, strict=False).missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    ids = torch.from_numpy(np.load(folder / "test_data.npz")["shakespeare"].astype(np.int64))
    with torch.inference_mode():
        losses = [
            nn.functional.cross_entropy(
                model(input_ids=rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten()
            )
            * len(rows)
            for rows in ids.split(16)
        ]
    perplexity = float(torch.exp(torch.stack(losses).sum() / len(ids)))
    assert perplexity == pytest.approx(published["shakespeare"], rel=2e-3)
