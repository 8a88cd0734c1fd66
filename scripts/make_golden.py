"""Write the golden artifacts of format version 1: tiny, committed, read by every later release.

    python scripts/make_golden.py [--out artifacts] [--overwrite]

Makes `golden-base/model.safetensors`, the artifacts `golden-v1-hybrid` (what a default run with
masks and a noise region stores), `golden-v1-hybrid-tasks` (the original layout, float32 parts),
`golden-v1-merges` (stored merges side by side, no task stacks), `golden-v1-exact` (the fine-tunes
bit for bit) and one for each of three published schemes; `golden-wide-base/model.safetensors`,
larger matrices, and the artifacts `golden-v1-auto`, `golden-v1-auto-error` and `golden-v1-max` of
those; `golden-blocks-base/model.safetensors` and the artifact `golden-v1-blocks` of it, with a
shard of two blocks; and `expected.json`: the digest of every rebuilt tensor. Between them they hold
every codec and every operation of the format.

All weights are multiples of 1/64 drawn with Python's own generator, so the family is the same
everywhere; only the eigenvectors inside the artifacts depend on the machine that made them.
What is committed is never made anew: it is what proves that old artifacts stay readable.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import svd_hybrid
from svd_hybrid.errors import StorageError
from svd_hybrid.io.tensors import tensor_digest

SEED = 20250601
UNIT = 64
TASKS = ("alpha", "beta", "gamma")
FLOATS: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "block.conv.weight": ((4, 3, 2, 2), torch.float32),
    "block.norm.running_mean": ((6,), torch.float32),
    "block.norm.running_var": ((6,), torch.float32),
    "block.norm.weight": ((6,), torch.float16),
    "embed.weight": ((9, 5), torch.bfloat16),
    "frozen.weight": ((2, 3), torch.float16),
    "proj.weight": ((6, 11), torch.float32),
    "temperature": ((), torch.float32),
}
UNTOUCHED = slice(7, 9)  # rows of the embedding that no task changes: negative zeros, which stay
MASKED = ("block.conv.weight", "proj.weight")
ARTIFACTS: dict[str, dict[str, Any]] = {
    "golden-v1-hybrid": {
        "model": "golden",
        "missing_mask": "ignore",
        "include_noise": True,
        "scaling": 0.75,
        "max_rank": 2,
    },
    "golden-v1-hybrid-tasks": {
        "model": "golden",
        "missing_mask": "ignore",
        "include_noise": True,
        "noise_shrink": 0.25,
        "basis": "tasks",
        "fp16": False,
        "low_bits": 3,
        "max_rank": 1,
        "weighting": "cluster",
    },
}
UNMASKED: dict[str, dict[str, Any]] = {
    "golden-v1-exact": {"model": "golden", "method": "task-arithmetic", "profile": "exact"},
    "golden-v1-bitdelta": {"model": "golden", "profile": "bitdelta", "dense_below": 0},
    "golden-v1-compeft": {"model": "golden", "profile": "compeft", "kept_share": 0.2},
    "golden-v1-fast": {"model": "golden", "profile": "fast", "dense_below": 0, "group_size": 16},
}
"""The same of the fine-tunes whole."""
WIDE: dict[str, dict[str, Any]] = {
    "golden-v1-auto": {"model": "golden-wide", "profile": "auto", "step": 0.12},
    "golden-v1-auto-error": {
        "model": "golden-wide",
        "profile": "auto",
        "objective": "error",
        "step": 0.08,
    },
    "golden-v1-max": {"model": "golden-wide", "profile": "max", "step": 0.1},
}
"""Of the wide family."""
BLOCKS: dict[str, dict[str, Any]] = {
    "golden-v1-blocks": {
        "model": "golden-blocks",
        "profile": "hybrid",
        "basis": "tasks",
        "fp16": False,
        "energy_threshold": 1.0,
    },
}
"""Of the family for blocks: the longest layout, so that the base may be short."""
WIDE_FLOATS: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "conv.weight": ((16, 3, 2, 2), torch.bfloat16),
    "embed.weight": ((12, 10), torch.bfloat16),
    "frozen.weight": ((2, 3), torch.float16),
    "mlp.weight": ((40, 24), torch.float16),
    "norm.weight": ((24,), torch.float32),
    "proj.weight": ((24, 40), torch.float32),
    "temperature": ((), torch.float32),
}
BLOCKS_FLOATS: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "embed.weight": ((12, 10), torch.bfloat16),
    "mlp.weight": ((48, 56), torch.bfloat16),
    "proj.weight": ((48, 56), torch.bfloat16),
    "temperature": ((), torch.float32),
}
BASE, WIDE_BASE, BLOCKS_BASE = "golden-base", "golden-wide-base", "golden-blocks-base"
MERGES = "golden-v1-merges"
ADDED: list[dict[str, Any]] = [
    {"method": "emr", "merged_dtype": "fp16"},
    {"method": "tsv-compress", "out_dtype": "F32"},
    {
        "method": "ties",
        "merge_name": "ties.20",
        "overrides": [{"tensors": "proj.*", "density": 0.5, "scaling": 0.5}],
    },
]
"""Merges of `golden-v1-merges`, one run after the other; the last one is the default."""
EXTRAPOLATED = {"alpha": 1.5, "beta": -0.75, "gamma": 0.0}
SELECTIONS: dict[str, dict[str, Any]] = {
    "merged": {},
    **{task: {"task": task} for task in TASKS},
    "extrapolated": {"weights": EXTRAPOLATED},
}
OF_MERGES: dict[str, dict[str, Any]] = {
    "emr": {"merge": "emr"},
    "gamma from emr": {"merge": "emr", "task": "gamma"},
    "extrapolated from emr": {"merge": "emr", "weights": EXTRAPOLATED},
    "tsv-compress": {"merge": "tsv-compress"},
    "alpha from tsv-compress": {"merge": "tsv-compress", "task": "alpha"},
    "extrapolated from tsv-compress": {"merge": "tsv-compress", "weights": EXTRAPOLATED},
}
"""What else `golden-v1-merges` gives."""


class Family:
    """Base, tasks and masks, the same on every machine."""

    def __init__(self) -> None:
        self._random = random.Random(SEED)  # noqa: S311 (weights, not secrets)
        self.base: dict[str, Tensor] = {
            name: self._numbers(shape, 3 * UNIT).to(dtype)
            for name, (shape, dtype) in FLOATS.items()
        }
        self.base["block.norm.running_var"].abs_()
        self.base["embed.weight"][UNTOUCHED] = -0.0
        self.base["head.weight"] = self.base["embed.weight"].clone()
        self.base["block.norm.num_batches_tracked"] = torch.tensor(1000)
        self.base["position_ids"] = torch.arange(5, dtype=torch.int32)
        self.base["mirror"] = torch.tensor([True, False, True])
        self.tasks = {task: self._tuned() for task in TASKS}
        self.masks = {task: self._masks() for task in TASKS}

    def _numbers(self, shape: tuple[int, ...], largest: int) -> Tensor:
        """Multiples of 1/UNIT, at most largest/UNIT in magnitude."""
        drawn = [self._random.randint(-largest, largest) for _ in range(math.prod(shape))]
        return (torch.tensor(drawn, dtype=torch.float32) / UNIT).reshape(shape)

    def _tuned(self) -> dict[str, Tensor]:
        tuned = dict(self.base)
        for name, (shape, dtype) in FLOATS.items():
            if name == "frozen.weight":
                continue
            change = self._numbers(shape, UNIT)
            if len(shape) > 1:  # a spectrum worth a basis: every row half of the one above it
                change *= (0.5 ** torch.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1))
            if name == "embed.weight":
                change[UNTOUCHED] = 0
            tuned[name] = (self.base[name].float() + change).to(dtype)
        tuned["block.norm.running_var"].abs_()
        tuned["head.weight"] = tuned["embed.weight"].clone()
        return tuned

    def _masks(self) -> dict[str, Tensor]:
        return {name: self._numbers(FLOATS[name][0], UNIT) > 0.5 for name in MASKED}


class WideFamily(Family):
    """Matrices large enough for factors: `mlp` has bases in common, `proj` some of each task."""

    def __init__(self) -> None:
        self._random = random.Random(SEED + 1)  # noqa: S311
        self.base = {
            name: self._numbers(shape, 3 * UNIT).to(dtype)
            for name, (shape, dtype) in WIDE_FLOATS.items()
        }
        self.base["embed.weight"][UNTOUCHED] = -0.0
        self.base["position_ids"] = torch.arange(5, dtype=torch.int32)
        self._sides = self._numbers((40, 2), UNIT), self._numbers((2, 24), UNIT)
        self.tasks = {task: self._tuned() for task in TASKS}
        self.masks = {}

    def _tuned(self) -> dict[str, Tensor]:
        changes = {
            "conv.weight": self._numbers((16, 3, 2, 2), 16),
            "embed.weight": self._numbers((12, 10), 8),
            "mlp.weight": self._on_grid(
                self._sides[0] @ self._numbers((2, 2), UNIT) @ self._sides[1]
            )
            + self._numbers((40, 24), 3),
            "norm.weight": self._numbers((24,), 8),
            "proj.weight": self._on_grid(self._numbers((24, 1), UNIT) @ self._numbers((1, 40), 24))
            + self._numbers((24, 40), 4),
            "temperature": self._numbers((), 8),
        }
        changes["embed.weight"][UNTOUCHED] = 0
        return self.base | {
            name: (self.base[name].float() + change).to(self.base[name].dtype)
            for name, change in changes.items()
        }

    def _on_grid(self, x: Tensor) -> Tensor:
        return (x * UNIT).round() / UNIT


class BlocksFamily(Family):
    """Matrices whose parts fill a shard of just over 64 KiB; `temperature` lies at its end."""

    def __init__(self) -> None:
        self._random = random.Random(SEED + 2)  # noqa: S311
        self.base = {
            name: self._numbers(shape, 3 * UNIT).to(dtype)
            for name, (shape, dtype) in BLOCKS_FLOATS.items()
        }
        self.base["embed.weight"][UNTOUCHED] = -0.0
        self.tasks = {task: self._tuned() for task in TASKS}
        self.masks = {}

    def _tuned(self) -> dict[str, Tensor]:
        changes = {name: self._numbers(shape, 16) for name, (shape, _) in BLOCKS_FLOATS.items()}
        changes["embed.weight"][UNTOUCHED] = 0
        return {
            name: (self.base[name].float() + change).to(self.base[name].dtype)
            for name, change in changes.items()
        }


def write_base(folder: Path, family: Family, name: str = BASE) -> Path:
    """The base checkpoint; returns its path."""
    path = folder / name / "model.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(family.base, path)
    return path


def write_artifacts(folder: Path, family: Family, base: Path, *, overwrite: bool) -> None:
    """Compress the family once for every entry of ARTIFACTS."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = {task: Path(scratch) / f"{task}.safetensors" for task in TASKS}
        masks = Path(scratch) / "masks"
        masks.mkdir()
        for task, path in sources.items():
            save_file(family.tasks[task], path)
            save_file(family.masks[task], masks / f"{task}_mask.safetensors")
        for name, parameters in (ARTIFACTS | UNMASKED).items():
            svd_hybrid.compress(
                base,
                sources,
                folder / name,
                mask_dir=masks if name in ARTIFACTS else None,
                overwrite=overwrite,
                **parameters,
            )
        write_merges(folder / MERGES, Path(scratch), base, sources, overwrite=overwrite)


def write_unmasked(
    folder: Path,
    entries: Mapping[str, dict[str, Any]],
    family: Family,
    base: Path,
    *,
    overwrite: bool,
) -> None:
    """Compress a family without masks once for every entry of WIDE or BLOCKS."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = {task: Path(scratch) / f"{task}.safetensors" for task in TASKS}
        for task, path in sources.items():
            save_file(family.tasks[task], path)
        for name, parameters in entries.items():
            svd_hybrid.compress(base, sources, folder / name, overwrite=overwrite, **parameters)


def write_merges(
    target: Path, scratch: Path, base: Path, sources: Mapping[str, Path], *, overwrite: bool
) -> None:
    """The artifact of several merges: each run adds one to what the run before made."""
    before: Path | None = None
    for step, parameters in enumerate(ADDED, start=1):
        last = step == len(ADDED)
        made = target if last else scratch / f"merges-{step}"
        named = {"merge_name": parameters["method"]} | parameters
        svd_hybrid.compress(
            base, sources, made, from_artifact=before, overwrite=last and overwrite, **named
        )
        before = made


def selections_of(name: str) -> dict[str, dict[str, Any]]:
    """What is rebuilt from an artifact, by label."""
    return SELECTIONS | OF_MERGES if name == MERGES else SELECTIONS


def digests(artifact: Path, base: Path) -> dict[str, Any]:
    """What the artifact gives: its id, and a digest per selection and tensor."""
    opened = svd_hybrid.Artifact.open(artifact)
    rebuilt: Mapping[str, dict[str, str]] = {
        label: {
            name: tensor_digest(tensor) for name, tensor in opened.iter_tensors(base, **selection)
        }
        for label, selection in selections_of(artifact.name).items()
    }
    return {"artifact_id": opened.id, "tensors": rebuilt}


def main(argv: list[str] | None = None) -> int:
    """Write everything; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--out", type=Path, default=root / "artifacts", help="target folder")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    expected = out / "expected.json"
    if expected.exists() and not arguments.overwrite:
        raise StorageError(
            "golden artifacts are there already, and are never made anew",
            where=str(expected),
            fix="write to another folder with --out, and compare",
        )
    out.mkdir(exist_ok=True)
    family = Family()
    base = write_base(out, family)
    write_artifacts(out, family, base, overwrite=arguments.overwrite)
    bases = dict.fromkeys((*ARTIFACTS, *UNMASKED, MERGES), base)
    for base_name, entries, other in (
        (WIDE_BASE, WIDE, WideFamily()),
        (BLOCKS_BASE, BLOCKS, BlocksFamily()),
    ):
        other_base = write_base(out, other, base_name)
        write_unmasked(out, entries, other, other_base, overwrite=arguments.overwrite)
        bases |= dict.fromkeys(entries, other_base)
    record = {
        "selections": SELECTIONS | OF_MERGES,
        "bases": dict.fromkeys(WIDE, WIDE_BASE) | dict.fromkeys(BLOCKS, BLOCKS_BASE),
        "artifacts": {name: digests(out / name, bases[name]) for name in bases},
    }
    expected.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
