"""The demo's data: one set of handwritten digits seen through seven different lenses.

What goes in: scikit-learn's bundled `load_digits` (1,797 images of 8 x 8 pixels, ten classes).
What comes out: float32 images of (n, 1, 16, 16) in [0, 1] and int64 labels of (n,). A *task* is a
way to look at a digit (turned, mirrored, cut into shuffled blocks, ...) and a question about it
(which digit, or even or odd).

Promised: nothing is downloaded; the split and every task are the same in every run, on every
machine and for every training seed; the test images are held out from all tasks at once. Left to
others: random augmentation and training (`svd_hybrid.demo.train`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from sklearn.datasets import load_digits
from torch import Generator, Tensor

IMAGE_SIZE: Final = 16
"""Pixels per side: the 8 x 8 originals, enlarged, so that patches of 4 x 4 have some content."""

BLOCK: Final = 4
"""Pixels per side of the blocks that `shuffled` moves."""

TEST_IMAGES: Final = 597
"""Held-out images; 1,200 remain for training."""

_SPLIT_SEED: Final = 20240229


def generator(seed: int, *scope: str) -> Generator:
    """A CPU generator whose stream depends on the seed and the scope alone.

    Args:
        seed: any integer.
        scope: words that name the use, for example `"finetune", "rotated"`.
    """
    digest = hashlib.sha256("\x00".join([str(seed), *scope]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True, slots=True)
class Split:
    """Images (n, 1, 16, 16) float32 in [0, 1] with their digits (n,) int64 in 0..9."""

    images: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.digits)


@dataclass(frozen=True, slots=True)
class Task:
    """A way to look at a digit and a question about it.

    Attributes:
        name: the task's id; its checkpoint directory and head carry it.
        classes: number of answers.
        view: upright images (n, 1, 16, 16) and a generator to the task's images, same shape.
            Views without chance leave the generator alone.
        label: digits (n,) int64 to answers (n,) int64 in 0..classes-1.
        summary: one line for people.
    """

    name: str
    classes: int
    view: Callable[[Tensor, Generator], Tensor]
    label: Callable[[Tensor], Tensor]
    summary: str


def _enlarge(images: Tensor) -> Tensor:
    """Images (n, 1, 16, 16) from (n, 1, 8, 8), bilinear."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


@lru_cache(maxsize=1)
def load_splits() -> tuple[Split, Split]:
    """Train and test split, upright; the caller must not write into them.

    >>> [len(split) for split in load_splits()]
    [1200, 597]
    """
    bunch = load_digits()
    images = _enlarge(torch.from_numpy(bunch.images).float().div(16.0).unsqueeze(1))
    digits = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(digits), generator=generator(_SPLIT_SEED, "split"))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Split(images[train], digits[train]), Split(images[test], digits[test])


def _pixel_grid() -> tuple[Tensor, Tensor]:
    """Row (1, 1, 16, 1) and column (1, 1, 1, 16) numbers of the pixels."""
    line = torch.arange(IMAGE_SIZE)
    return line.view(1, 1, -1, 1), line.view(1, 1, 1, -1)


def _digit(digits: Tensor) -> Tensor:
    return digits


def _parity(digits: Tensor) -> Tensor:
    return digits % 2


def _upended(images: Tensor, _: Generator) -> Tensor:
    return images.flip(2)


def _rotated(images: Tensor, _: Generator) -> Tensor:
    return torch.rot90(images, 1, (2, 3))


def _mirrored(images: Tensor, _: Generator) -> Tensor:
    return images.flip(3)


def _negative(images: Tensor, rng: Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=rng)
    return (1.0 - images + 0.15 * noise).clamp(0.0, 1.0)


def _shuffled(images: Tensor, _: Generator) -> Tensor:
    per_side = IMAGE_SIZE // BLOCK
    order = torch.randperm(per_side**2, generator=generator(_SPLIT_SEED, "shuffled"))
    blocks = F.unfold(images, BLOCK, stride=BLOCK)
    return F.fold(blocks[:, :, order], (IMAGE_SIZE, IMAGE_SIZE), BLOCK, stride=BLOCK)


def _occluded(images: Tensor, rng: Generator) -> Tensor:
    """Digits with a grey square of 6 x 6 somewhere over them."""
    top, left = torch.randint(2, 9, (2, len(images), 1, 1, 1), generator=rng)
    row, column = _pixel_grid()
    hidden = (row >= top) & (row < top + 6) & (column >= left) & (column < left + 6)
    return torch.where(hidden, 0.5, images)


def _striped(images: Tensor, rng: Generator) -> Tensor:
    """Digits behind slanted bars whose phase differs from image to image."""
    phase = torch.randint(0, 6, (len(images), 1, 1, 1), generator=rng)
    row, column = _pixel_grid()
    bars = (row + column + phase) % 6 < 2
    return torch.where(bars, 0.8, images)


TASKS: Final = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("mirrored", 10, _mirrored, _digit, "left and right exchanged"),
            Task("negative", 10, _negative, _digit, "dark on light, with noise"),
            Task("occluded", 10, _occluded, _digit, "a grey square hides a part"),
            Task("parity", 2, _upended, _parity, "upside down: even or odd"),
            Task("rotated", 10, _rotated, _digit, "a quarter turn anticlockwise"),
            Task("shuffled", 10, _shuffled, _digit, "sixteen blocks in a fixed wrong order"),
            Task("striped", 10, _striped, _digit, "behind slanted bars"),
        )
    }
)
"""Task name to task, in the order everything is trained, written and reported."""


def task_data(task: Task, split: Split, rng: Generator) -> tuple[Tensor, Tensor]:
    """The task's images (n, 1, 16, 16) and answers (n,) for the images of a split."""
    return task.view(split.images, rng), task.label(split.digits)


def held_out(task: Task) -> tuple[Tensor, Tensor]:
    """The task's held-out images (n, 1, 16, 16) and answers (n,), the same in every run."""
    return task_data(task, load_splits()[1], generator(_SPLIT_SEED, "test", task.name))
