"""Small LoRA adapters on disk, in PEFT's layout, written without PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.io.checkpoints import write

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "base"}
PREFIX = "base_model.model."


def factors(
    module: str, outputs: int, inputs: int, rank: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Random A and B of one linear module."""
    random = torch.Generator().manual_seed(seed)
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(rank, inputs, generator=random),
        f"{PREFIX}{module}.lora_B.weight": torch.randn(outputs, rank, generator=random),
    }


def write_adapter(
    folder: Path,
    state: Mapping[str, Tensor],
    file_name: str = "adapter_model.safetensors",
    **config: Any,
) -> Path:
    """An adapter folder; `config` is put over `CONFIG`, keys given as None are left out."""
    write(folder / file_name, state)
    record = {key: value for key, value in (CONFIG | config).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
