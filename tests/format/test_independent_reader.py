"""FORMAT.md is enough: a reader written from it rebuilds every bit that svd_hybrid rebuilds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import svd_hybrid
from svd_hybrid import Artifact
from svd_hybrid.io.tensors import info_of
from tests.format import minimal_reader
from tests.format.families import (
    Tensors,
    compress_family,
    random_delta,
    read_record,
    write_family,
)

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "conv.weight": ((4, 3, 2, 2), torch.float32),
    "embed.half": ((40, 5), torch.float16),
    "empty": ((0, 4), torch.float32),
    "frozen": ((3, 3), torch.bfloat16),
    "proj.bf16": ((6, 9), torch.bfloat16),
    "proj.wide": ((5, 150), torch.float32),
    "proj.double": ((7, 6), torch.float64),
    "row": ((1, 9), torch.float32),
    "scalar": ((), torch.float32),
    "vector.bf16": ((11,), torch.bfloat16),
    "bn.running_mean": ((8,), torch.float32),
    "bn.running_var": ((8,), torch.float32),
    "tied.first": ((6, 4), torch.float32),
    "tied.second": ((6, 4), torch.float32),
    "partly": ((8, 6), torch.float32),
}


def family(tasks: list[str], seed: int) -> tuple[Tensors, dict[str, Tensors], dict[str, Tensors]]:
    """Base, tasks and masks: every kind of tensor the format knows, and zeros of both signs."""
    base: Tensors = {
        "count": torch.tensor(7),
        "ids": torch.arange(5, dtype=torch.int32),
        "flag": torch.tensor([True, False]),
    }
    for index, (name, (shape, dtype)) in enumerate(SHAPES.items()):
        values = random_delta(shape, 1000 * seed + index, 1.0)
        base[name] = (values.abs() if name.endswith("running_var") else values).to(dtype)
    base["tied.second"] = base["tied.first"].clone()
    base["partly"][::2] = -0.0
    tuned = {task: dict(base) for task in tasks}
    for position, task in enumerate(tasks):
        for index, (name, (shape, dtype)) in enumerate(SHAPES.items()):
            if name in ("frozen", "empty"):
                continue
            change = random_delta(shape, 7919 * seed + 101 * position + index)
            if name == "partly":
                change[::2] = 0
            values = (base[name].double() + change).to(dtype)
            tuned[task][name] = values.abs() if name.endswith("running_var") else values
        tuned[task]["tied.second"] = tuned[task]["tied.first"].clone()
    masks = {task: _masks(seed, position) for position, task in enumerate(tasks)}
    return base, tuned, masks


def _masks(seed: int, position: int) -> Tensors:
    masks: dict[str, Tensor] = {}
    for name in ("conv.weight", "embed.half", "proj.wide", "partly", "vector.bf16", "scalar"):
        shape = SHAPES[name][0]
        masks[name] = random_delta(shape, 31 * seed + position, 1.0) > 0.05
    return masks


def entry(tensor: Tensor) -> minimal_reader.Entry:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return minimal_reader.Entry(info_of(tensor).dtype, tuple(tensor.shape), data)


def assert_readers_agree(
    folder: Path, artifact: Path, tasks: list[str], weightings: list[dict[str, float]]
) -> None:
    """Every task and weighting as the library streams it, the merge as `reload` writes it."""
    ours, opened = minimal_reader.Artifact(artifact), Artifact.open(artifact)
    source = folder / "base.safetensors"
    base = minimal_reader.read_safetensors(source.read_bytes())

    def compare(theirs: dict[str, minimal_reader.Entry], **selection: Any) -> None:
        rebuilt = dict(ours.rebuild(base, minimal_reader.select(ours.manifest, **selection)))
        assert set(rebuilt) == set(theirs)
        different = [name for name in rebuilt if rebuilt[name] != theirs[name]]
        assert not different, f"{selection}: {different}"

    svd_hybrid.reload(artifact, source, folder / "out.safetensors", overwrite=True)
    compare(minimal_reader.read_safetensors((folder / "out.safetensors").read_bytes()))
    selections: list[dict[str, Any]] = [{"task": task} for task in tasks]
    selections += [{"weights": weights} for weights in weightings]
    for selection in selections:
        stream = opened.iter_tensors(source, **selection)
        compare({name: entry(tensor) for name, tensor in stream}, **selection)


def run(folder: Path, count: int, seed: int, *, masked: bool, **parameters: Any) -> Path:
    tasks = list(NAMES[:count])
    base, tuned, masks = family(tasks, seed)
    write_family(folder, base, tuned, masks if masked else None)
    if masked:
        parameters = {"missing_mask": "ignore"} | parameters
    artifact = compress_family(folder, tasks, **parameters)
    rng = random.Random(seed)
    some = {task: rng.uniform(-1, 2) for task in tasks}
    cancelling = {task: (-1.0) ** index for index, task in enumerate(tasks)} | {tasks[0]: 1.0}
    one = dict.fromkeys(tasks, 0.0) | {tasks[-1]: 1.0}
    none = dict.fromkeys(tasks, 0.0)
    assert_readers_agree(folder, artifact, tasks, [some, cancelling, one, none])
    return artifact


CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "left basis": {"basis": "left"},
    "right basis": {"basis": "right"},
    "tasks basis": {"basis": "tasks"},
    "masks": {"masked": True},
    "masks and noise": {"masked": True, "include_noise": True},
    "masks, noise, tasks basis": {"masked": True, "include_noise": True, "basis": "tasks"},
    "noise not counted": {"masked": True, "include_noise": True, "noise_shrink": 0.0},
    "int8 basis": {"basis_dtype": "int8"},
    "int4 basis": {"basis_dtype": "int4", "masked": True},
    "basis by trial": {"basis_dtype": "auto"},
    "float32 parts": {"fp16": False},
    "float32 parts, tasks basis": {"fp16": False, "basis": "tasks", "masked": True},
    "one group a slice": {"group_size": 0},
    "groups of three": {"group_size": 3},
    "high directions only": {"keep_low": False},
    "no centring": {"center": False},
    "scaling": {"scaling": 0.7},
    "negative scaling": {"scaling": -1.5, "masked": True, "include_noise": True},
    "scaling zero": {"scaling": 0.0},
    "one task": {"count": 1},
    "one task masked": {"count": 1, "masked": True, "include_noise": True},
    "five tasks": {"count": 5, "weighting": "cluster"},
    "auto": {"profile": "auto"},
    "auto, fine": {"profile": "auto", "target_error": 1e-3},
    "auto, least error": {"profile": "auto", "objective": "error", "step": 0.05},
    "auto, one task": {"profile": "auto", "count": 1, "step": 0.3},
    "auto, masks": {"profile": "auto", "masked": True, "step": 0.05},
    "auto, a stored merge": {
        "profile": "auto",
        "method": "ties",
        "step": 0.05,
        "store_tasks": "on",
    },
    "low directions only in stages": {"max_rank": 1, "energy_threshold": 0.01, "rtvq_stages": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_the_independent_reader_gives_the_same_bits(tmp_path, case):
    parameters = {"count": 3, "masked": False} | CASES[case]
    run(tmp_path, seed=len(case), **parameters)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_number_of_bits_and_stages(tmp_path, bits):
    stages = bits % 3 + 1
    parameters = {"low_bits": bits, "rtvq_stages": stages, "max_rank": 1}
    artifact = run(tmp_path, 3, bits, masked=bool(bits % 2), **parameters)
    codecs = minimal_reader.Artifact(artifact).manifest["codecs"]
    assert any((c.get("bits"), c.get("stages")) == (bits, stages) for c in codecs)


@pytest.mark.parametrize("seed", range(8))
def test_random_configurations(tmp_path, seed):
    rng = random.Random(seed)
    fp16 = rng.random() < 0.7
    parameters: dict[str, Any] = {
        "low_bits": rng.randint(1, 8),
        "rtvq_stages": rng.randint(1, 3),
        "group_size": rng.choice([0, 1, 5, 64]),
        "basis": rng.choice(["auto", "left", "right", "tasks"]),
        "fp16": fp16,
        "basis_dtype": rng.choice(["fp16", "int8", "int4"]) if fp16 else "fp16",
        "center": rng.random() < 0.7,
        "max_rank": rng.randint(1, 5),
        "energy_threshold": rng.uniform(0.2, 1.0),
        "scaling": rng.choice([1.0, 0.3, 1.7]),
        "include_noise": rng.random() < 0.5,
        "noise_shrink": rng.random(),
        "mask_strategy": rng.choice(["union", "intersection", "majority"]),
    }
    run(tmp_path, rng.randint(1, 5), seed, masked=rng.random() < 0.6, **parameters)


def test_a_product_of_many_directions(tmp_path):
    """Inner sizes past 32 leave fewer grid bits than a float32 has."""
    shape = (70, 90)
    base = {"v": random_delta(shape, 2).float(), "w": random_delta(shape, 1).to(torch.bfloat16)}
    noise = torch.Generator().manual_seed(0)
    tasks = {
        task: {
            name: (x.double() + torch.randn(shape, generator=noise) / 50).to(x.dtype)
            for name, x in base.items()
        }
        for task in NAMES[:2]
    }
    write_family(tmp_path, base, tasks)
    for limbs, fp16 in ((1, True), (2, False)):
        artifact = compress_family(tmp_path, list(tasks), fp16=fp16, overwrite=True)
        assert f"'limbs': {limbs}" in str(read_record(artifact))
        parts = minimal_reader.Artifact(artifact).tensors[0]["parts"]
        assert max(part["rows"] for part in parts.values()) > 32
        assert_readers_agree(tmp_path, artifact, list(tasks), [{"alpha": 0.3, "beta": -0.2}])


@pytest.mark.parametrize("objective", ["quality", "error"])
@pytest.mark.parametrize("step", [0.003, 0.1])
def test_factors_shared_bases_and_rotated_rests(tmp_path, objective, step):
    """Matrices large enough for every kind of row, and for several lanes."""
    noise = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64)

    shapes = {"own": (90, 70), "shared": (70, 90), "lanes": (150, 301)}
    base = {name: normal(*shape).float() for name, shape in shapes.items()}
    left, right = normal(70, 3), normal(3, 90)
    tasks = {}
    for task in NAMES[:2]:
        delta = {
            "own": 0.3 * normal(90, 1) @ normal(1, 70) + 0.02 * normal(90, 70),
            "shared": left @ normal(3, 3) @ right / 3 + 0.02 * normal(70, 90),
            "lanes": 0.05 * normal(150, 301),
        }
        tasks[task] = {name: (base[name] + x).float() for name, x in delta.items()}
    write_family(tmp_path, base, tasks)
    artifact = compress_family(
        tmp_path, list(tasks), profile="auto", objective=objective, step=step
    )
    text = str(read_record(artifact))
    assert "'low-rank'" in text
    fine = step < 0.01
    assert ("'tucker'" in text) == (not fine or objective == "quality")
    assert ("'rotated'" in text) == (not fine and objective == "quality")
    assert_readers_agree(tmp_path, artifact, list(tasks), [{"alpha": 0.3, "beta": -0.2}])


def test_blocks_and_panels_change_no_bit(tmp_path, monkeypatch):
    tasks = list(NAMES[:3])
    base, tuned, masks = family(tasks, 5)
    write_family(tmp_path, base, tuned, masks)
    artifact = compress_family(
        tmp_path, tasks, missing_mask="ignore", include_noise=True, basis="tasks"
    )

    def rebuild() -> list[tuple[str, minimal_reader.Entry]]:
        stream = Artifact.open(artifact).iter_tensors(tmp_path / "base.safetensors")
        return [(name, entry(tensor)) for name, tensor in stream]

    whole = rebuild()
    monkeypatch.setattr("svd_hybrid.reload.rebuild.BLOCK_SCALARS", 1)
    monkeypatch.setattr("svd_hybrid.numerics.reproducible.COLUMN_PANEL", 3)
    assert rebuild() == whole


def test_the_independent_reader_is_independent():
    text = Path(minimal_reader.__file__).read_text(encoding="utf-8")
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    foreign = ("svd_hybrid", "torch", "import safetensors", "from safetensors")
    assert not any(word in line for line in imports for word in foreign)
