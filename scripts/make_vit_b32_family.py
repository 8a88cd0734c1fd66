"""Write a family shaped like ViT-B/32 image encoders, for measuring memory and speed.

One base and N fine-tunes with the names and shapes of Hugging Face's CLIPVisionModel ViT-B/32
(87 456 000 float32 numbers, 350 MB a checkpoint): `OUT/base.safetensors`, `OUT/task0.safetensors` …
The weights are random; a task's difference has a decaying spectrum and the usual size of a
fine-tune's, and the same call writes the same bytes. Memory and time depend on shapes alone, so
they are real; **random differences say nothing about compression**, for they share no structure.

    python scripts/make_vit_b32_family.py /tmp/vit-b32 --tasks 8
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from svd_hybrid.io.safetensors_writer import SafetensorsWriter
from svd_hybrid.io.tensors import TensorInfo

WIDTH, LAYERS, MLP, PATCH, POSITIONS = 768, 12, 3072, 32, 50
DIRECTIONS = 64
"""Directions of a matrix's difference that decay; the rest is a flat floor."""
DECAY = 0.93
DELTA_SIZE = 1e-3
FLOOR = 0.1
"""Size of the floor relative to the whole difference."""

Shape = tuple[int, ...]


def vit_b32_shapes() -> dict[str, Shape]:
    """Name → shape, in the order of the model."""
    shapes: dict[str, Shape] = {
        "embeddings.class_embedding": (WIDTH,),
        "embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": (POSITIONS, WIDTH),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        shapes[f"{name}.bias"] = (rows,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (WIDTH,)
        shapes[f"{name}.bias"] = (WIDTH,)

    norm("pre_layrnorm")
    for layer in range(LAYERS):
        block = f"encoder.layers.{layer}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{block}.self_attn.{projection}", WIDTH, WIDTH)
        norm(f"{block}.layer_norm1")
        linear(f"{block}.mlp.fc1", MLP, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, MLP)
        norm(f"{block}.layer_norm2")
    norm("post_layernorm")
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def generator(*scope: str) -> torch.Generator:
    """Randomness that depends on names alone."""
    digest = hashlib.sha256("\x00".join(scope).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def base_tensor(name: str, shape: Shape) -> Tensor:
    """Weights of the size of a trained transformer's."""
    if name.endswith("norm.weight") or "layer_norm" in name:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator("base", name)).mul_(0.02)


def task_difference(task: str, name: str, shape: Shape) -> Tensor:
    """A difference whose first singular values decay, over a flat floor."""
    source = generator("task", task, name)
    floor = torch.randn(shape, generator=source).mul_(DELTA_SIZE * FLOOR)
    if len(shape) < 2:
        return floor.div_(FLOOR)
    rows, columns = shape[0], floor.numel() // shape[0]
    strengths = DECAY ** torch.arange(DIRECTIONS)
    strengths *= DELTA_SIZE / strengths.norm()
    left = torch.randn((rows, DIRECTIONS), generator=source) * strengths
    right = torch.randn((DIRECTIONS, columns), generator=source)
    return torch.addmm(floor.view(rows, columns), left, right).view(shape)


def write_family(folder: Path, tasks: int, progress: Callable[[str], None] = print) -> list[str]:
    """Write base and tasks, one tensor in memory at a time; returns the tasks' names.

    Raises:
        FileExistsError: one of the files is already there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = vit_b32_shapes()
    infos = {name: TensorInfo("F32", shape) for name, shape in shapes.items()}
    names = [f"task{index}" for index in range(tasks)]
    with contextlib.ExitStack() as stack:
        base, *others = (
            stack.enter_context(SafetensorsWriter(folder / f"{name}.safetensors", infos))
            for name in ("base", *names)
        )
        for name in base.order:
            tensor = base_tensor(name, shapes[name])
            base.write(name, tensor)
            for task, writer in zip(names, others, strict=True):
                writer.write(name, tensor + task_difference(task, name, shapes[name]))
    size = sum(info.nbytes for info in infos.values())
    progress(f"{folder}: base and {tasks} tasks of {size / 1e6:.0f} MB")
    return names


def main() -> None:
    """Parse the command line and write."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--tasks", type=int, default=8, help="fine-tunes (8)")
    arguments = parser.parse_args()
    write_family(arguments.out, arguments.tasks)


if __name__ == "__main__":
    main()
