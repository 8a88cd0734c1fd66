"""A rotation of rows that is exact on integers: signs, then Walsh-Hadamard matrices in blocks.

It spreads what one number carries over a block of columns, so that rounding errors look like white
noise whatever the structure of the row. Its entries are +-1 over the root of the block's size: a
row of integers is rotated in exact sums, whatever their order.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

from svd_hybrid.numerics.largest import largest_magnitude

LARGEST_BLOCK = 256
SEED = b"svdh-rotation"
SIGNS_PER_DIGEST = 256
EXACT_F32 = 2.0**24
BLOCK_ROWS = 64
"""Rows turned at a time, so that they stay in the cache."""


def block_sizes(columns: int) -> list[int]:
    """Powers of two that add up to the columns: the largest block as often as it fits, then less.

    >>> block_sizes(600), block_sizes(5)
    ([256, 256, 64, 16, 8], [4, 1])
    """
    sizes = [LARGEST_BLOCK] * (columns // LARGEST_BLOCK)
    rest = columns % LARGEST_BLOCK
    return sizes + [1 << bit for bit in range(rest.bit_length() - 1, -1, -1) if rest >> bit & 1]


@lru_cache(maxsize=64)
def column_signs(columns: int) -> Tensor:
    """(columns,) float64 of +-1, the same for every matrix of that width.

    Bit j of the digests of SHA-256 over SEED and a 64-bit counter, lowest bits first; 1 is minus.
    """
    digests = b"".join(
        hashlib.sha256(SEED + block.to_bytes(8, "little")).digest()
        for block in range(-(-columns // SIGNS_PER_DIGEST))
    )
    octets = torch.frombuffer(bytearray(digests), dtype=torch.uint8)
    bits = (octets.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return 1.0 - 2.0 * bits.flatten()[:columns].to(torch.float64)


def sums_in_blocks(x: Tensor) -> Tensor:
    """Every row times the unscaled block-diagonal Hadamard matrix.

    Args:
        x: (m, n) float; integers stay exact while they fit its significand.

    Returns:
        (m, n), same dtype.
    """
    pieces, start = [], 0
    sizes = block_sizes(x.shape[1])
    for size in dict.fromkeys(sizes):
        width = size * sizes.count(size)
        piece = x[:, start : start + width].reshape(-1, size)
        half = size.bit_length() // 2  # size = 2**(bit_length - 1) = 2**half * 2**other
        other = size.bit_length() - 1 - half
        grid = piece.reshape(-1, 1 << other, 1 << half)
        spread = _hadamard(other).to(x.dtype) @ (grid @ _hadamard(half).to(x.dtype))
        pieces.append(spread.reshape(x.shape[0], width))
        start += width
    return torch.cat(pieces, dim=1)


def block_scales(columns: int) -> Tensor:
    """(columns,) float64: one over the root of the size of each column's block."""
    sizes = torch.tensor(block_sizes(columns))
    return (1.0 / sizes.to(torch.float64).sqrt()).repeat_interleave(sizes)


def rotate(x: Tensor) -> Tensor:
    """The rotated rows: signs first, then blocks.

    Args:
        x: (m, n) float.

    Returns:
        (m, n), same dtype, rows of the same norm.
    """
    n = x.shape[1]
    return sums_in_blocks(x * column_signs(n).to(x.dtype)) * block_scales(n).to(x.dtype)


def rotate_back(numbers: Tensor, scale: float) -> Tensor:
    """The rows whose rotation is `scale` times integers; exact but for two roundings.

    Args:
        numbers: (m, n) int32.
        scale: of one unit.

    Returns:
        (m, n) float32: RN32(sum * RN64(scale * block scale)), the sums exact.
    """
    n = numbers.shape[1]
    exact_f32 = largest_magnitude(numbers) * LARGEST_BLOCK < EXACT_F32
    scales = block_scales(n) * scale * column_signs(n)
    out = torch.empty(numbers.shape, dtype=torch.float32)
    for first in range(0, len(numbers), BLOCK_ROWS):
        rows = numbers[first : first + BLOCK_ROWS]
        sums = sums_in_blocks(rows.to(torch.float32 if exact_f32 else torch.float64))
        out[first : first + BLOCK_ROWS] = sums * scales
    return out


@lru_cache(maxsize=16)
def _hadamard(order: int) -> Tensor:
    """Sylvester's matrix of size 2**order, float64."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(order):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
