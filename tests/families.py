"""Tiny random families on disk, and the few lines every test of the whole pipeline needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from svd_hybrid import Artifact, compress
from svd_hybrid.io.reader import open_checkpoint

FAMILIES = Path(
    os.environ.get("SVDH_FAMILIES", Path(__file__).resolve().parents[2] / "shared" / "families")
)
"""Where trained families are; tests that need one are skipped, visibly, without it."""

State = dict[str, Tensor]
SHAPES: dict[str, tuple[int, ...]] = {
    "block.weight": (12, 20),
    "block.bias": (20,),
    "conv.weight": (6, 3, 2, 2),
    "embed.weight": (30, 7),
    "logit_scale": (),
}
"""One tensor of every usual kind."""


@dataclass(frozen=True)
class FamilyFiles:
    """Where a family lies on disk."""

    base: Path
    tasks: dict[str, Path]

    def deltas(self, name: str) -> Tensor:
        """(N, *shape) float64, task minus base in float32, as the encoder sees them."""
        start = load_state(self.base)[name]
        wide = torch.float64 if start.dtype == torch.float64 else torch.float32
        tuned = [load_state(path)[name] for path in self.tasks.values()]
        return torch.stack([tensor.to(wide) - start.to(wide) for tensor in tuned]).double()


def write_family(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    tasks: Sequence[str] = ("ant", "bee", "cat"),
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    scale: float = 0.05,
    base_scale: float = 1.0,
) -> FamilyFiles:
    """A base of normal numbers and fine-tunes of it, as safetensors files in `folder`.

    Args:
        folder: made if it does not exist.
        shapes: tensor name → shape.
        tasks: task names, in order.
        seed: of every number.
        dtype: of base and fine-tunes.
        scale: size of a delta's entries: half of it is shared by the tasks, half is their own.
        base_scale: size of the base's entries; 0 makes deltas exact.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    base = {name: base_scale * normal(shape) for name, shape in shapes.items()}
    shared = {name: normal(shape) for name, shape in shapes.items()}
    states = {
        task: {
            name: base[name] + scale / 2 * (shared[name] + normal(shape))
            for name, shape in shapes.items()
        }
        for task in tasks
    }
    return write_states(folder, _as(base, dtype), {t: _as(s, dtype) for t, s in states.items()})


def _as(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def write_states(
    folder: Path, base: State, tasks: Mapping[str, State], suffix: str = ".safetensors"
) -> FamilyFiles:
    """A family of exactly these tensors; `suffix` chooses safetensors or a torch state dict."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {task: folder / f"{task}{suffix}" for task in ("base", *tasks)}
    for path, state in zip(paths.values(), (base, *tasks.values()), strict=True):
        write_state(path, state)
    return FamilyFiles(paths.pop("base"), paths)


def write_state(path: Path, state: State) -> Path:
    """One checkpoint, in the format its suffix names."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def load_state(path: Path) -> State:
    """Every tensor of a checkpoint: safetensors or torch file, or HF folder."""
    reader = open_checkpoint(path)
    return {name: reader.read(name).clone() for name in reader.infos}


def pack(family: FamilyFiles, artifact: Path, **parameters: Any) -> Artifact:
    """Compress a family and open the artifact."""
    compress(family.base, family.tasks, artifact, **parameters)
    return Artifact.open(artifact)


def deltas_of(artifact: Artifact, **selection: Any) -> State:
    """Name → delta of a task, weighting or merge (the default), float32."""
    return dict(artifact.iter_tensors(**selection))


def weights_of(artifact: Artifact, family: FamilyFiles, **selection: Any) -> State:
    """Name → weight, base added."""
    return dict(artifact.iter_tensors(family.base, **selection))


def relative_error(got: Tensor, want: Tensor) -> float:
    """Frobenius norm of the difference over that of `want`; 0 when both are 0."""
    difference = float((got.double() - want.double()).norm())
    return difference / float(want.double().norm()) if difference else 0.0


UNQUANTISED = {"fp16": False, "energy_threshold": 1.0, "max_rank": 10**6}
"""Parameters under which every direction is stored in float32."""
