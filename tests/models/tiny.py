"""Tiny transformers of several architectures with random weights, saved as local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

VOCABULARY = 40


def gpt2() -> Any:
    """Conv1D layers with weights inputs x outputs, tied embeddings."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=24, n_embd=16, n_layer=2, n_head=2,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def bloom() -> Any:
    """Fused query_key_value."""
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(
            vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def llama(layers: int = 2, width: int = 16) -> Any:
    """Grouped key and value heads, untied output."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=32, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def vit() -> Any:
    """Patch embedding, pre-norm blocks; other names in memory than on disk."""
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            image_size=16, patch_size=8, num_channels=1,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def bert() -> Any:
    """Bidirectional text encoder without a pooler."""
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=24,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


BUILDERS = {"gpt2": gpt2, "bloom": bloom, "llama": llama, "vit": vit, "bert": bert}
CAUSAL = ("gpt2", "bloom", "llama")


def randomise(module: nn.Module, seed: int) -> None:
    """Every parameter anew, biases and norms too, so that no two are alike."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            size = 0.3 if parameter.ndim > 1 else 0.1
            offset = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
            offset = offset if name.endswith("weight") and parameter.ndim == 1 else 0.0
            parameter.copy_(offset + size * torch.randn(parameter.shape, generator=random))


def saved(kind: str, folder: Path, seed: int = 0) -> Path:
    """A folder with config.json and model.safetensors."""
    module = BUILDERS[kind]().eval()
    randomise(module, seed)
    module.save_pretrained(folder)
    return folder


def saved_family(kind: str, root: Path, tasks: tuple[str, ...] = ("ant", "bee")) -> Path:
    """`base/` and fine-tunes of it, each a whole folder."""
    base = saved(kind, root / "base")
    state = load_file(base / "model.safetensors")
    for seed, task in enumerate(tasks, start=1):
        random = torch.Generator().manual_seed(seed)
        tuned = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=random)
            for name, tensor in state.items()
        }
        (root / task).mkdir()
        save_file(tuned, root / task / "model.safetensors", {"format": "pt"})
        config = (base / "config.json").read_text(encoding="utf-8")
        (root / task / "config.json").write_text(config, encoding="utf-8")
    return root
