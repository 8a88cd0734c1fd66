"""The changes an adapter makes to a tensor: exact products, in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK_SCALARS = 2**20

Read = Callable[[], Tensor]


class Update(Protocol):
    """What is added to one tensor."""

    def delta(self, start: Tensor, dtype: torch.dtype) -> Tensor:
        """The change of a tensor, in its shape and in `dtype`."""


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """delta = scaling * left @ right, and with magnitudes the change DoRA makes.

    The weight is a matrix (m, n) here: its first axis, and the others flattened.

    Args:
        left: reads the left factor (m, r), in the layout of the stored weight.
        right: reads the right factor (r, n).
        scaling: factor on the product.
        magnitude: reads the norms of DoRA, one per output; None for plain LoRA.
        outputs_last: whether the outputs are the columns of the stored weight.
    """

    left: Read
    right: Read
    scaling: float
    magnitude: Read | None = None
    outputs_last: bool = False

    def delta(self, start: Tensor, dtype: torch.dtype) -> Tensor:
        """The change of the weight, computed in float64 and rounded once.

        Args:
            start: the weight without it, any float dtype.
            dtype: of the result, float32 or float64.
        """
        base = start.reshape(start.shape[0], -1)
        left, right = self.left().to(torch.float64), self.right().to(torch.float64)
        left = left * self.scaling
        gains = self._gains(base, left, right)
        delta = torch.empty(base.shape, dtype=dtype)
        for rows in _blocks(base):
            change = left[rows] @ right
            if gains is not None:
                wide = base[rows].to(torch.float64)
                gain = gains if self.outputs_last else gains[rows, None]
                change = gain * (wide + change) - wide
            delta[rows] = change.to(dtype)
        return delta.reshape(start.shape)

    def _gains(self, base: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
        """Magnitude over norm, per output; None without magnitudes."""
        if self.magnitude is None:
            return None
        squares = torch.zeros(base.shape[1 if self.outputs_last else 0], dtype=torch.float64)
        for rows in _blocks(base):
            energy = (base[rows].to(torch.float64) + left[rows] @ right).square()
            if self.outputs_last:
                squares += energy.sum(dim=0)
            else:
                squares[rows] = energy.sum(dim=1)
        return self.magnitude().to(torch.float64).reshape(-1) / squares.sqrt()


@dataclass(frozen=True, slots=True)
class BiasUpdate:
    """delta = scaling * bias: what stands behind the factors and scales with them."""

    bias: Read
    scaling: float

    def delta(self, start: Tensor, dtype: torch.dtype) -> Tensor:
        """The change of the bias."""
        return (self.bias().to(torch.float64) * self.scaling).reshape(start.shape).to(dtype)


def _blocks(matrix: Tensor) -> list[slice]:
    rows, columns = matrix.shape
    step = max(1, BLOCK_SCALARS // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
