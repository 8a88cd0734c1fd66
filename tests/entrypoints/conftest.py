"""A tiny family laid out as users of the original have it, and running our programs on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
TASKS = ["Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SUN397", "SVHN"]
SHAPES = {
    "visual.class_embedding": (12,),
    "visual.conv1.weight": (6, 3, 2, 2),
    "visual.ln_post.weight": (12,),
    "visual.proj": (16, 10),
    "logit_scale": (),
}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def draw(seed: int, scale: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base.pt (nested), ckpts/ in all the original's spellings, accuracies.json, masks/."""
    folder = tmp_path_factory.mktemp("family")
    ids = {"visual.position_ids": torch.arange(5).unsqueeze(0)}
    base = draw(0, 1.0)
    torch.save({"state_dict": base | ids}, folder / "base.pt")
    shared = draw(1, 0.02)
    (folder / "masks").mkdir()
    for number, task in enumerate(TASKS):
        own = draw(10 + number, 0.01)
        tuned = {name: base[name] + shared[name] + own[name] for name in SHAPES} | ids
        path = folder / "ckpts" / f"{task}.pt"
        if number % 3 == 1:
            path = folder / "ckpts" / task / "finetuned.pt"
        if task == "SUN397":
            path = folder / "ckpts" / "sun397.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tuned, path)
        masks = {name: (own[name].abs() > 0.008) for name in ("visual.proj", "visual.conv1.weight")}
        torch.save(masks, folder / "masks" / f"{task}_mask.pt")
    accuracies = ", ".join(f'"{task}": {0.6 + 0.04 * i:.2f}' for i, task in enumerate(TASKS))
    (folder / "accuracies.json").write_text(f"{{{accuracies}}}")
    return folder


@pytest.fixture
def here(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the family lies as in the original's examples."""
    for name in ("base.pt", "ckpts", "masks", "accuracies.json"):
        (tmp_path / name).symlink_to(family / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path) -> Run:
    """Run a Python program as a user would, in the working directory."""

    def start(*args: str | Path, cwd: Path = here) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)

    return start


def deltas(folder: Path) -> list[dict[str, Tensor]]:
    """Task minus base, in task order."""
    base = torch.load(folder / "base.pt", weights_only=True)["state_dict"]
    found = []
    for task in TASKS:
        spelled = "sun397" if task == "SUN397" else task
        candidates = [f"{spelled}.pt", f"{spelled}.pth", f"{spelled}/finetuned.pt"]
        path = next(folder / "ckpts" / c for c in candidates if (folder / "ckpts" / c).is_file())
        tuned = torch.load(path, weights_only=True)
        found.append({name: tuned[name] - base[name] for name in SHAPES})
    return found


def relative_error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Of all tensors together, in float64."""
    lost = sum(float((got[n].double() - want[n].double()).square().sum()) for n in want)
    size = sum(float(want[n].double().square().sum()) for n in want)
    return float((lost / size) ** 0.5)
