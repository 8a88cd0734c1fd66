"""Small checkpoints in every container, and pickles that must never run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

EVERY_KIND = {
    "b16": torch.tensor([[1.5, -2.0], [0.25, 3.0]], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "f16": torch.tensor([0.5, -0.125], dtype=torch.float16),
    "f32": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "f64": torch.tensor([1e-300, 2.0], dtype=torch.float64),
    "flag": torch.tensor([True, False, True]),
    "i64": torch.tensor([2**40, -1]),
    "scalar": torch.tensor(2.5),
    "u8": torch.tensor([0, 255], dtype=torch.uint8),
}
"""One tensor of every dtype and shape svdh reads."""


def random_state(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Normal float32 tensors by name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Save by suffix: safetensors, else torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(dict(state), path)
    return path


def write_sharded(
    folder: Path,
    shards: Mapping[str, Mapping[str, Tensor]],
    index: Mapping[str, str] | None = None,
    index_name: str = "model.safetensors.index.json",
) -> Path:
    """An HF folder of several weight files; `index` replaces the true one."""
    folder.mkdir(exist_ok=True)
    for file_name, state in shards.items():
        write(folder / file_name, state)
    weight_map = {name: file_name for file_name, state in shards.items() for name in state}
    document = {"metadata": {}, "weight_map": weight_map if index is None else dict(index)}
    (folder / index_name).write_text(json.dumps(document), encoding="utf-8")
    return folder


def same(first: Tensor, second: Tensor) -> bool:
    """Equal in dtype, shape and every bit."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and bool(torch.equal(first, second))
    )


class Detonator:
    """Creates a file when it is unpickled: the proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def poisoned(mark: Path, **others: Any) -> dict[str, Any]:
    """A state dict with code in it."""
    return {"weight": torch.zeros(2), "code": Detonator(mark), **others}


def pickled_twice(value: Any) -> bytes:
    """Two pickles in a row, as torch's old format starts."""
    return pickle.dumps(value, protocol=2) * 2
