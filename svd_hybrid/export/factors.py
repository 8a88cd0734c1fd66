"""The best factors of a given rank for one matrix, and what they lose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svd_hybrid.io.adapter.update import LowRankUpdate
from svd_hybrid.numerics.linalg import canonical_signs
from svd_hybrid.numerics.metrics import squared_norm
from svd_hybrid.numerics.spectral import leading, noise_level


@dataclass(frozen=True, slots=True)
class Factors:
    """delta ~ up @ down, as PEFT's B and A.

    Args:
        down: (r, inputs).
        up: (outputs, r).
        energy: squared norm of the delta.
        lost: squared norm of what the factors leave out, rounding included.
    """

    down: Tensor
    up: Tensor
    energy: float
    lost: float

    @property
    def rank(self) -> int:
        """Directions kept."""
        return len(self.down)


def best_factors(delta: Tensor, rank: int, dtype: torch.dtype, *, in_out: bool) -> Factors:
    """The factors of least squared error (Eckart and Young 1936), rounded to a dtype.

    Args:
        delta: (m, n) float32, not zero.
        rank: most directions, >= 1; fewer where the matrix has fewer above its rounding noise.
        dtype: of the factors.
        in_out: whether the matrix is stored (inputs, outputs).
    """
    found = leading(delta, min(rank, *delta.shape), noise_level(delta))
    left = canonical_signs(found.u)
    signs = torch.sign((left * found.u).sum(dim=0))
    root = found.s.sqrt()
    left, right = (left * root).to(dtype), (found.v * signs * root).T.to(dtype)
    product = LowRankUpdate(lambda: left, lambda: right, 1.0).delta(delta, delta.dtype)
    energy, lost = squared_norm(delta), squared_norm(delta - product)
    down, up = (left.T, right.T) if in_out else (right, left)
    return Factors(down.contiguous(), up.contiguous(), energy, lost)


def padded(factors: Factors, rank: int) -> tuple[Tensor, Tensor]:
    """A and B with rows and columns of zeros up to a rank, for PEFT wants one rank by default."""
    missing = rank - factors.rank
    down, up = factors.down, factors.up
    return (
        torch.cat([down, down.new_zeros(missing, down.shape[1])]),
        torch.cat([up, up.new_zeros(up.shape[0], missing)], dim=1),
    )
