"""Tiny random models of transformers, and fine-tunes of them, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svd_hybrid import Artifact, compress
from svd_hybrid.io.reader import open_checkpoint
from tests.io.checkpoints import write


def llama(*, tied: bool = False) -> nn.Module:
    """Two layers of LLaMA, random."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    """One layer of GPT-2, whose linear weights are stored (inputs, outputs); random, tied."""
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    return transformers.GPT2LMHeadModel(config).eval()


def tuned(model: nn.Module, rank: int, wanted: str = "") -> dict[str, Tensor]:
    """A fine-tune: deltas of some rank in matrices, random ones elsewhere.

    Args:
        model: the base.
        rank: of the deltas of matrices.
        wanted: part of the names that change; all by default.
    """
    random = torch.Generator().manual_seed(1)
    state = {}
    for name, value in model.state_dict().items():
        delta = torch.zeros_like(value)
        if wanted in name and value.ndim == 2:
            m, n = value.shape
            left = torch.randn(m, rank, generator=random)
            delta = left @ torch.randn(rank, n, generator=random) * 0.02
        elif wanted in name:
            delta = torch.randn(value.shape, generator=random) * 0.05
        state[name] = value + delta
    return state


def packed(folder: Path, model: nn.Module, state: dict[str, Tensor], **config: Any) -> Artifact:
    """An artifact that keeps one fine-tune bit for bit, beside its base `folder/base`."""
    base = folder / "base"
    model.save_pretrained(base)
    names = open_checkpoint(base).infos
    task = write(folder / "task.safetensors", {name: state[name].clone() for name in names})
    compress(base, {"one": task}, folder / "art", **({"profile": "exact"} | config))
    return Artifact.open(folder / "art")


def logits(model: nn.Module) -> Tensor:
    """Of a fixed input."""
    with torch.inference_mode():
        out: Tensor = model(input_ids=torch.arange(8)[None]).logits
    return out


def rebuilt(artifact: Artifact, base: Path, model: nn.Module) -> nn.Module:
    """The model with the weights that reload gives."""
    state = dict(artifact.iter_tensors(base, task="one"))
    missing = model.load_state_dict(state, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    assert not missing.unexpected_keys
    model.tie_weights()
    return model
