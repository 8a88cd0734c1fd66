"""Write the synthetic family B of the codec design: a hard one, for size at a given error.

Four matrices and eight tasks, whose deltas are 0.02 [(0.3 C + 0.7 U_t diag(s) V_t^T) / |s| +
0.3 T_t / |T_t|] with s_i = i^-0.6, U_t = qr(U_0 / 2 + G / (2 sqrt m)), V_t alike, C = U_0 diag(s) Q
V_0^T for one random orthogonal Q, and T_t Student-t numbers of 4 degrees of freedom: a slow
spectrum, half-aligned directions, a small shared part and heavy-tailed noise of full rank.

    python scripts/make_family_b.py OUT     OUT/base/, OUT/task0/ … with model.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from svd_hybrid.numerics.seeds import generator

SHAPES = ((192, 192), (192, 768), (768, 192), (384, 384))
TASKS = 8
DECAY = 0.6
SIZE = 0.02
SHARED, OWN, TAIL = 0.3, 0.7, 0.3
DEGREES_OF_FREEDOM = 4
BASE_SIZE = 0.02
"""Of a weight of the base; rounding the fine-tunes to float32 moves the deltas by 1e-5 of them."""


def family_b_deltas(rows: int, columns: int, tasks: int = TASKS, seed: int = 0) -> Tensor:
    """(N, rows, columns) float32 deltas of one matrix; equal for equal arguments."""
    random = generator(seed, "family B", f"{rows}x{columns}")
    size = min(rows, columns)
    strengths = torch.arange(1, size + 1, dtype=torch.float64) ** -DECAY
    left, right = (_orthonormal(_normal((side, size), random)) for side in (rows, columns))
    turned = _orthonormal(_normal((size, size), random))
    shared = SHARED * (left * strengths) @ turned @ right.T

    def delta() -> Tensor:
        own = (_near(left, random) * strengths) @ _near(right, random).T
        tail = _student((rows, columns), random)
        whole = (shared + OWN * own) / strengths.norm() + TAIL * tail / tail.norm()
        scaled: Tensor = SIZE * whole.float()
        return scaled

    return torch.stack([delta() for _ in range(tasks)])


def write_family_b(folder: Path, tasks: int = TASKS, seed: int = 0) -> dict[str, Path]:
    """Write `base` and `task0` … under the folder; returns the tasks' folders by name."""
    base, tuned = {}, {f"task{index}": dict[str, Tensor]() for index in range(tasks)}
    for rows, columns in SHAPES:
        name = f"matrix_{rows}x{columns}.weight"
        weight = BASE_SIZE * _normal((rows, columns), generator(seed, "family B", "base", name))
        base[name] = weight.float()
        deltas = family_b_deltas(rows, columns, tasks, seed)
        for state, delta in zip(tuned.values(), deltas, strict=True):
            state[name] = base[name] + delta
    for model, state in {"base": base, **tuned}.items():
        (folder / model).mkdir(parents=True, exist_ok=True)
        save_file(state, folder / model / "model.safetensors", metadata={"format": "pt"})
    return {task: folder / task for task in tuned}


def _normal(shape: tuple[int, int], random: Generator) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def _student(shape: tuple[int, int], random: Generator) -> Tensor:
    """Student-t numbers: normal over the root of a chi-squared mean."""
    squares = torch.stack([_normal(shape, random).square() for _ in range(DEGREES_OF_FREEDOM)])
    return _normal(shape, random) / squares.mean(0).sqrt()


def _orthonormal(matrix: Tensor) -> Tensor:
    """Orthonormal columns; signs as in the matrix, so that a small change of it changes little."""
    q, r = torch.linalg.qr(matrix)
    fixed: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return fixed


def _near(basis: Tensor, random: Generator) -> Tensor:
    rows = basis.shape[0]
    return _orthonormal(basis / 2 + _normal((rows, basis.shape[1]), random) / (2 * rows**0.5))


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--tasks", type=int, default=TASKS)
    arguments = parser.parse_args()
    for task in write_family_b(arguments.out, arguments.tasks).values():
        print(task)


if __name__ == "__main__":
    main()
