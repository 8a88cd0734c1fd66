"""Speed of compress, entropy decoding and reload: MB of fp32 deltas per CPU second, one thread.

The matrices of one block of ViT-B/32 with deltas whose spectra decay as those of trained fine-tunes
(`bench_methods.py`). compress and reload run whole, from checkpoint files to files on disk, without
compress measuring the errors of what it wrote; profiles that search a step run once more with the
step that was found. reload counts the one task it rebuilds. Medians of process time. A memory copy
and singular value decompositions show what the machine can do.

    python scripts/bench_codec_speed.py --tasks 2 --runs 3
    python scripts/bench_codec_speed.py --profiles auto --set target_bits=1
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_methods import BLOCK, TASKS, decaying_deltas, seconds
from safetensors.torch import save_file
from torch import Tensor

from svd_hybrid.artifact.layout import CONFIG
from svd_hybrid.codec.entropy import decode, encode
from svd_hybrid.compress.api import compress
from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.numerics.seeds import generator
from svd_hybrid.reload.api import reload

PROFILES = ("fast", "hybrid", "auto", "max")
BASE_SIZE = 0.02
STEPS = (0.5, 1.0, 3.0, 4.5)
"""Of the entropy coder's input, in units of the deltas' root mean square."""
COPIED = 2**24
"""Numbers of the memory copy: 64 MiB, beyond any cache."""
SIDES = ((768, 768), (3072, 768))
MEGA = 1e6


@dataclass(frozen=True, slots=True)
class Speed:
    """One line of the table.

    Args:
        name: what was done.
        cpu_s: median.
        mb: of float32 numbers it was done to.
        note: on its size.
    """

    name: str
    cpu_s: float
    mb: float
    note: str = ""

    @property
    def line(self) -> str:
        """Markdown."""
        speed = f"{self.mb / self.cpu_s:.1f}" if self.cpu_s else "–"
        return f"| {self.name} | {self.mb:.0f} | {self.cpu_s:.3f} | {speed} | {self.note} |"


@dataclass(frozen=True, slots=True)
class Block:
    """A family of one block: deltas (N, m, n) by tensor name, and its files."""

    deltas: Mapping[str, Tensor]
    base: Path
    tasks: Mapping[str, Path]

    @property
    def mb(self) -> float:
        """Size of all deltas."""
        return sum(stack.numel() for stack in self.deltas.values()) * 4 / MEGA


def write_block(folder: Path, tasks: int) -> Block:
    """Base and tasks as files in a folder."""
    deltas = {f"matrix{i}.weight": decaying_deltas(shape)[:tasks] for i, shape in enumerate(BLOCK)}
    base = {
        name: BASE_SIZE * torch.randn(stack.shape[1:], generator=generator(0, "base", name))
        for name, stack in deltas.items()
    }
    paths = {f"task{index}": folder / f"task{index}.safetensors" for index in range(tasks)}
    save_file(base, folder / "base.safetensors")
    for index, path in enumerate(paths.values()):
        save_file({name: base[name] + stack[index] for name, stack in deltas.items()}, path)
    return Block(deltas, folder / "base.safetensors", paths)


def profile_speeds(
    block: Block, profile: str, parameters: Mapping[str, Any], scratch: Path, runs: int
) -> Iterator[Speed]:
    """Compress with a profile, and reload of one task."""
    artifact, rebuilt = scratch / profile, scratch / "rebuilt.safetensors"

    def write(**chosen: Any) -> None:
        given = {"profile": profile, "eval_reconstruction": False, "overwrite": True, **chosen}
        compress(block.base, block.tasks, artifact, **given)

    def read() -> None:
        reload(artifact, block.base, rebuilt, task=next(iter(block.tasks)), overwrite=True)

    spent = seconds(partial(write, **parameters), runs)
    bits = 8 * sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
    numbers = block.mb * MEGA / 4
    note = f"{bits / numbers:.2f} bits per parameter"
    yield Speed(f"compress, {profile}", spent, block.mb, note)
    step = json.loads((artifact / CONFIG).read_text(encoding="utf-8")).get("step")
    if step is not None and "step" not in parameters:
        spent = seconds(partial(write, step=step), runs)
        yield Speed(f"compress, {profile}, step given", spent, block.mb, note)
    read()
    yield Speed(f"reload a task, {profile}", seconds(read, runs), block.mb / len(block.tasks))


def entropy_speeds(delta: Tensor, runs: int) -> Iterator[Speed]:
    """The entropy coder on one rounded delta (m, n), at several steps."""
    mb = delta.numel() * 4 / MEGA
    scaled = delta / delta.square().mean().sqrt()
    for step in STEPS:
        matrix = np.rint((scaled / step).numpy()).astype(np.int32)
        data = encode(matrix)
        note = f"{8 * len(data) / matrix.size:.2f} bits a number"
        yield Speed("rANS encode", seconds(partial(encode, matrix), runs), mb, note)
        read = partial(decode, data, matrix.shape)
        yield Speed("rANS decode", seconds(read, runs), mb, note)


def machine_speeds(deltas: Sequence[Tensor], runs: int) -> Iterator[Speed]:
    """What the machine can do at most."""
    source, target = torch.ones(COPIED), torch.zeros(COPIED)
    copy: Callable[[], object] = partial(target.copy_, source)
    copy()
    yield Speed("memory copy", seconds(copy, runs), COPIED * 4 / MEGA)
    for side in SIDES:
        matrix = next(delta for delta in deltas if tuple(delta.shape) == side)
        name, mb = f"{side[0]} x {side[1]}", matrix.numel() * 4 / MEGA
        thin = partial(torch.linalg.svd, matrix, full_matrices=False)
        yield Speed(f"torch.linalg.svd, {name}", seconds(thin, runs), mb)
        yield Speed(f"Gram matrix and eigh, {name}", seconds(lambda m=matrix: gram(m), runs), mb)  # type: ignore[misc]


def gram(matrix: Tensor) -> Tensor:
    """Eigenvectors of the columns' Gram matrix, in float64."""
    wide = matrix.double()
    vectors: Tensor = torch.linalg.eigh(wide.T @ wide).eigenvectors
    return vectors


def main() -> None:
    """Parse the command line and print a line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", nargs="*", default=list(PROFILES))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tasks", type=int, default=2, help=f"1..{TASKS}")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parameters = dict(text.split("=", 1) for text in arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        block = write_block(Path(folder), arguments.tasks)
        deltas = [stack[0] for stack in block.deltas.values()]
        print(f"{arguments.tasks} tasks, one thread, medians of {arguments.runs}\n")
        print("| what | MB | CPU s | MB/s | |\n| --- | --: | --: | --: | --- |")
        for speed in machine_speeds(deltas, arguments.runs):
            print(speed.line, flush=True)
        for speed in entropy_speeds(max(deltas, key=torch.numel), arguments.runs):
            print(speed.line, flush=True)
        for profile in arguments.profiles:
            if profile not in PROFILE_PARAMS:
                print(f"there is no profile {profile!r}", file=sys.stderr)
                continue
            found = profile_speeds(block, profile, parameters, Path(folder), arguments.runs)
            for speed in found:
                print(speed.line, flush=True)


if __name__ == "__main__":
    main()
