"""A user's folder: a base, three fine-tunes, an artifact; and what a command did to it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.format.families import edit_manifest

TASKS = ("cars", "dtd", "eurosat")
SVDH = (sys.executable, "-m", "svd_hybrid")


@dataclass(frozen=True)
class Run:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


def make_family(root: Path) -> None:
    """base.safetensors and ckpts/<task>.safetensors: a matrix, a bias, a norm, a counter."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * size

    base = {
        "blocks.0.fc.bias": normal(12),
        "blocks.0.fc.weight": normal(12, 20),
        "norm.weight": torch.ones(20),
        "steps": torch.tensor([3]),
    }
    (root / "ckpts").mkdir(parents=True)
    save_file(base, root / "base.safetensors")
    for task in TASKS:
        tuned = {
            name: tensor + normal(*tensor.shape, size=0.01)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in base.items()
        }
        save_file(tuned, root / "ckpts" / f"{task}.safetensors")


@dataclass(frozen=True)
class Project:
    """Paths of one user's folder."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base.safetensors"

    @property
    def ckpts(self) -> Path:
        return self.root / "ckpts"

    @property
    def art(self) -> Path:
        return self.root / "art"

    def checkpoint(self, task: str) -> Path:
        return self.ckpts / f"{task}.safetensors"

    def compress(self, *more: object, **replaced: object) -> list[str]:
        """A command line that works; `replaced` changes or (None) drops one option's value."""
        options: dict[str, Any] = {
            "base-model-path": self.base,
            "checkpoint-dir": self.ckpts,
            "tasks": TASKS,
            "artifact-dir": self.root / "new",
        }
        options |= {key.replace("_", "-"): value for key, value in replaced.items()}
        return command("compress", options, more)

    def reload(self, *more: object, **replaced: object) -> list[str]:
        """The same for reload."""
        options: dict[str, Any] = {
            "artifact-dir": self.art,
            "base-model-path": self.base,
            "output-path": self.root / "merged.safetensors",
        }
        options |= {key.replace("_", "-"): value for key, value in replaced.items()}
        return command("reload", options, more)

    def file(self, name: str, content: Any) -> Path:
        """A file of that text, or of that value as JSON."""
        path = self.root / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return path

    def edit_base(self, name: str = "other.safetensors", **tensors: Tensor | None) -> Path:
        """A copy of the base with tensors replaced, added or (None) dropped; `__` is a dot."""
        return self._edit(self.base, self.root / name, tensors)

    def edit_task(self, task: str, **tensors: Tensor | None) -> Path:
        """The same for a task's checkpoint, in place."""
        return self._edit(self.checkpoint(task), self.checkpoint(task), tensors)

    @staticmethod
    def _edit(source: Path, target: Path, tensors: Mapping[str, Tensor | None]) -> Path:
        state = {name: tensor.clone() for name, tensor in load_file(source).items()}
        for key, tensor in tensors.items():
            name = key.replace("__", ".")
            if tensor is None:
                del state[name]
            else:
                state[name] = tensor
        save_file(state, target)
        return target

    def edit_manifest(self, change: Any) -> None:
        """Change the manifest's record and write it back in canonical form, sealed anew."""
        edit_manifest(self.art, change)

    def snapshot(self) -> dict[str, str]:
        """Every path below the folder with a digest of its content."""
        return snapshot(self.root)


def command(verb: str, options: Mapping[str, Any], more: tuple[object, ...]) -> list[str]:
    words = [verb]
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{name}", *map(str, values)]
    return [*words, *map(str, more)]


def snapshot(root: Path) -> dict[str, str]:
    found = {}
    for parent, folders, files in os.walk(root):
        for name in folders:
            found[str(Path(parent, name).relative_to(root))] = "folder"
        for name in files:
            path = Path(parent, name)
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "odd"
            found[str(path.relative_to(root))] = digest
    return found
