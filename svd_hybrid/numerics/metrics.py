"""How far a rebuilt delta is from the original, accumulated block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORM_BLOCK = 2**16
"""Scalars widened at a time; they stay in the cache."""


def squared_norm(x: Tensor) -> float:
    """Sum of the squares of any float tensor, in float64; 1e-30 and 1e30 do not leave its range.

    >>> squared_norm(torch.tensor([3.0, 4.0]))
    25.0
    """
    flat, total = x.reshape(-1), 0.0
    for start in range(0, len(flat), NORM_BLOCK):
        block = flat[start : start + NORM_BLOCK].to(torch.float64)
        total += float(torch.dot(block, block))
    return total


@dataclass(slots=True)
class ErrorSums:
    """Running sums over the scalars of one task's deltas, in float64.

    `shrink` is the share of the original lost along itself, `noise` what was added across it;
    at equal squared error, lost signal costs far more task quality than noise (codec design §16).
    """

    count: int = 0
    original_sq: float = 0.0
    rebuilt_sq: float = 0.0
    error_sq: float = 0.0
    error_abs: float = 0.0
    error_max: float = 0.0
    inner: float = 0.0

    def add(self, original: Tensor, rebuilt: Tensor) -> None:
        """Count one block.

        Args:
            original: any shape, float; the delta that was given.
            rebuilt: same shape, float; what reload makes of the stored parts.
        """
        if original.numel() == 0:
            return
        x, y = original.to(torch.float64), rebuilt.to(torch.float64)
        error = y - x
        self.count += x.numel()
        self.original_sq += float(x.square().sum())
        self.rebuilt_sq += float(y.square().sum())
        self.error_sq += float(error.square().sum())
        self.error_abs += float(error.abs().sum())
        self.error_max = max(self.error_max, float(error.abs().max()))
        self.inner += float((x * y).sum())

    def merge(self, other: ErrorSums) -> None:
        """Add the sums of other scalars of the same task."""
        self.count += other.count
        self.original_sq += other.original_sq
        self.rebuilt_sq += other.rebuilt_sq
        self.error_sq += other.error_sq
        self.error_abs += other.error_abs
        self.error_max = max(self.error_max, other.error_max)
        self.inner += other.inner

    @property
    def relative_error(self) -> float | None:
        """Euclidean norm of the error over that of the original; None when only the latter is 0."""
        if self.original_sq == 0:
            return 0.0 if self.error_sq == 0 else None
        return math.sqrt(self.error_sq / self.original_sq)

    @property
    def shrink(self) -> float | None:
        """1 - <original, rebuilt> / <original, original>; None when the original is 0."""
        return None if self.original_sq == 0 else 1.0 - self.inner / self.original_sq

    @property
    def noise(self) -> float | None:
        """Norm of the rebuilt part orthogonal to the original, relative to the original."""
        if self.original_sq == 0:
            return None
        orthogonal_sq = self.rebuilt_sq - self.inner**2 / self.original_sq
        return math.sqrt(max(orthogonal_sq, 0.0) / self.original_sq)

    def as_json(self) -> dict[str, float | int | None]:
        """The fields users of the original diagnostics know, and the two parts of the error."""
        return {
            "absolute_error": math.sqrt(self.error_sq),
            "relative_error": self.relative_error,
            "max_absolute_error": self.error_max,
            "mean_absolute_error": self.error_abs / self.count if self.count else 0.0,
            "original_norm": math.sqrt(self.original_sq),
            "reconstructed_norm": math.sqrt(self.rebuilt_sq),
            "shrink": self.shrink,
            "noise": self.noise,
        }
