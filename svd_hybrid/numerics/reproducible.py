"""Arithmetic that gives the same bits on every machine, thread count and block size.

A float64 matrix product of integers whose partial sums stay below 2**53 is exact, so the order of
its additions cannot matter. `ReproducibleProduct` rounds both factors onto such integer grids (a
power of two per row of the left factor and per column of the right one) and multiplies those. With
two limbs what the first grid leaves over gets a grid of its own: the splitting of Ozaki, Ogita,
Oishi and Rump, "Error-free transformations of matrix multiplication", Numerical Algorithms 59
(2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

MANTISSA_BITS = 53
MOST_GRID_BITS = 24  # a float32 significand needs no more
COLUMN_PANEL = 1024  # columns of the right factor widened to float64 at a time; bounds memory only


def grid_bits(inner: int) -> int:
    """Bits per factor such that `inner` products of two of them add up exactly in float64.

    >>> grid_bits(1), grid_bits(128), grid_bits(2048)
    (24, 23, 21)
    """
    return min(MOST_GRID_BITS, (MANTISSA_BITS - math.ceil(math.log2(max(inner, 1)))) // 2)


def exponent_above(x: Tensor) -> Tensor:
    """The smallest e with |x| < 2**e, elementwise; 0 for 0.

    Args:
        x: any shape, float.

    Returns:
        int64, same shape.

    >>> exponent_above(torch.tensor([0.75, 1.0, -5.0, 0.0])).tolist()
    [0, 1, 3, 0]
    """
    return torch.frexp(x.to(torch.float64)).exponent.to(torch.int64)


def power_of_two(exponents: Tensor) -> Tensor:
    """2**e, exact: built from the bits, because a vectorised pow need not be.

    Args:
        exponents: int64, any shape, in -1022..1023.

    Returns:
        float64, same shape.

    >>> power_of_two(torch.tensor([-1, 10])).tolist()
    [0.5, 1024.0]
    """
    return ((exponents + 1023) << 52).view(torch.float64)


def _largest_exponents(x: Tensor, dim: int) -> Tensor:
    """`exponent_above` of the largest magnitude along `dim`, with `dim` kept."""
    return exponent_above(x.abs().amax(dim=dim, keepdim=True))


class ReproducibleProduct:
    """left @ right, row block by row block, in float64 with an order-independent result.

    Args:
        left: (m, r) float32.
        right: (r, n) float32.
        limbs: 1 keeps `grid_bits(r)` bits of each row of `left` and column of `right`
            (relative to its largest entry); 2 keeps twice as many.
    """

    def __init__(self, left: Tensor, right: Tensor, limbs: int = 1) -> None:
        if limbs not in (1, 2):
            raise ValueError(f"limbs is {limbs}; 1 or 2 are defined")
        self.left = left
        self.right = right
        self.limbs = limbs
        self.bits = grid_bits(left.shape[1])
        self._right_exponents = (
            _largest_exponents(right, 0)
            if right.numel()
            else torch.zeros((1, 0), dtype=torch.int64)
        )

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start:stop of the product, (stop - start, n) float64."""
        block = self.left[start:stop]
        shape = (block.shape[0], self.right.shape[1])
        if 0 in (*shape, block.shape[1]):
            return torch.zeros(shape, dtype=torch.float64)
        left = self._split(block, _largest_exponents(block, 1))
        panels = []
        for first in range(0, shape[1], COLUMN_PANEL):
            last = min(first + COLUMN_PANEL, shape[1])
            exponents = self._right_exponents[:, first:last]
            right = self._split(self.right[:, first:last], exponents)
            panel = left[0] @ right[0]
            if self.limbs == 2:
                panel += left[0] @ right[1] + left[1] @ right[0]
            panels.append(panel.add_(0.0))  # some BLAS kernels give -0 where others give 0
        return panels[0] if len(panels) == 1 else torch.cat(panels, 1)

    def _split(self, x: Tensor, exponents: Tensor) -> list[Tensor]:
        """The limbs: integers times a power of two, as exact to multiply as the integers."""
        scaled = x.to(torch.float64) * power_of_two(self.bits - exponents)
        high = scaled.round()
        limbs = [high * power_of_two(exponents - self.bits)]
        if self.limbs == 2:
            rest = ((scaled - high) * 2.0**self.bits).round_()
            limbs.append(rest * power_of_two(exponents - 2 * self.bits))
        return limbs


def weighted_sum(terms: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Sum of weight * tensor in the order given, each step rounded once to float64.

    Args:
        terms: non-empty; tensors of one shape, any float dtype; read one at a time.

    Returns:
        float64 of that shape. A single term of weight 1 comes back unchanged.

    Raises:
        ValueError: there are no terms.
    """
    total: Tensor | None = None
    for weight, tensor in terms:
        # multiply and add are separate, so that no processor may fuse them into one rounding
        term = tensor.to(torch.float64) * weight
        total = term if total is None else total.add_(term)
    if total is None:
        raise ValueError("weighted_sum needs at least one term")
    return total


def round_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """X in `dtype`, rounded to nearest even exactly once.

    Going from float64 to a half type through float32 rounds twice, which can land one unit off; so
    the float32 step rounds to odd, after which the second rounding is the right one
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 2008).

    Args:
        x: float64, any shape.
        dtype: float64, float32, float16 or bfloat16.

    Returns:
        Same shape in `dtype`.
    """
    if dtype in (torch.float64, torch.float32):
        return x.to(dtype)
    near = x.to(torch.float32)
    back = near.to(torch.float64)
    bits = near.view(torch.int32)
    bits = torch.where(back.abs() > x.abs(), bits - 1, bits)  # towards zero
    odd = torch.where(back != x, bits | 1, bits)
    return odd.view(torch.float32).to(dtype)
