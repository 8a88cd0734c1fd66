"""`delta-come`: each task's singular directions, the strongest with 8 bits, then 3, the rest 2.

A direction is two rows, its left and its right singular vector, each times the square root of the
singular value, quantised group by group. Directions are kept as long as their codes stay within
`code_bpp` bits per scalar, which is how the paper counts; steps and zeros come on top. The
published setting is 2 directions with 8 bits, 32 with 3 and the rest with 2, to 1 bit per scalar,
in groups of 128. Unlike the paper, which corrects each column for the rounding of the others on
calibration data (GPTQ) and keeps singular values apart, codes are the nearest. Vectors, matrices
with a side below 8 or few scalars, and those whose factors would need more, keep 16 bits.
Source: arXiv 2406.08903; thunlp/Delta-CoMe, run.sh.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from svd_hybrid.codec import HalfCodec
from svd_hybrid.codec.bitpack import packed_bytes
from svd_hybrid.compress.profiles.base import (
    EncodedStack,
    Profile,
    masked_stack,
)
from svd_hybrid.compress.profiles.numbers import RegionParts, affine_codec, is_dense, store_each
from svd_hybrid.compress.profiles.params import DeltaComeParams
from svd_hybrid.delta.expr import LowRank
from svd_hybrid.numerics.linalg import canonical_signs
from svd_hybrid.numerics.spectral import leading, noise_level

SMALLEST_SIDE = 8
HALF_BITS = 16


def encode(
    stack: Tensor, mask: Tensor | None, params: DeltaComeParams, prefix: str = ""
) -> EncodedStack | None:
    """Store one region of one tensor: parts `coeff_left_8` … `coeff_right_2`, or `coeff`."""
    _, m, n = stack.shape
    counts = ranks_by_bits(m, n, params)
    cost = sum(count * direction_bytes(m, n, bits, params) for bits, count in counts.items())
    dense = is_dense(stack, params.dense_below) or min(m, n) < SMALLEST_SIDE
    if dense or not cost or cost * 8 > HALF_BITS * m * n:
        return store_each(HalfCodec(), stack, mask, prefix)
    if not bool(selected(stack, mask).any()):
        return None
    region = RegionParts(prefix, flat=False)
    energy = _add_factors(region, masked_stack(stack, mask), counts, params)
    scalars = m * n if mask is None else int(mask.sum())
    return region.stored(scalars, directions=sum(counts.values()), energy=energy)


def selected(stack: Tensor, mask: Tensor | None) -> Tensor:
    """The scalars that count, (N, …)."""
    return stack if mask is None else stack[:, mask]


def direction_bytes(m: int, n: int, bits: int, params: DeltaComeParams) -> int:
    """Bytes of one direction of an m x n matrix, its groups' float16 steps and zeros included."""
    zero = 2 if bits == 8 else 1  # 0 … 255 does not fit a signed byte
    return sum(
        packed_bytes(side, bits) + -(-side // (params.group_size or side)) * (2 + zero)
        for side in (m, n)
    )


def ranks_by_bits(m: int, n: int, params: DeltaComeParams) -> dict[int, int]:
    """How many directions are kept with 8, 3 and 2 bits, strongest first."""
    left = min(m, n)
    budget = params.code_bpp * m * n
    if params.rank_share is not None:
        left = max(1, round(params.rank_share * left))
        budget = left * 8 * (m + n)
    counts = {}
    for bits, most in ((8, params.directions_8bit), (3, params.directions_3bit), (2, left)):
        counts[bits] = min(most, left, int(budget / (bits * (m + n))))
        left -= counts[bits]
        budget -= counts[bits] * bits * (m + n)
    return counts


def _add_factors(
    region: RegionParts, stack: Tensor, counts: dict[int, int], params: DeltaComeParams
) -> float:
    """Store every task's factors, a pair of parts per precision; returns their energy's share."""
    pairs = list(_factors(stack, sum(counts.values())))
    held = sum(float(left.double().square().sum(1).square().sum()) for left, _ in pairs)
    total = sum(float(delta.double().square().sum()) for delta in stack)
    first = 0
    for bits, count in counts.items():
        codec = affine_codec(bits, params.group_size)
        rows = slice(first, first + count)
        first += count
        if count:
            left = region.keep(f"coeff_left_{bits}", codec, (pair[0][rows] for pair in pairs))
            right = region.keep(f"coeff_right_{bits}", codec, (pair[1][rows] for pair in pairs))
            region.terms.append(LowRank(left, right))
    return min(1.0, held / total)


def _factors(stack: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Per task left (count, m) and right (count, n), strongest first; rows of zeros at the end."""
    for delta in stack:
        found = leading(delta, count, noise_level(delta))
        root = found.s.sqrt()
        u = canonical_signs(found.u)
        flipped = (u * found.u).sum(0).sign()
        pair = (u * root, found.v * flipped * root)
        missing = count - len(found.s)
        left, right = (torch.nn.functional.pad(x.T, (0, 0, 0, missing)) for x in pair)
        yield left, right


DELTA_COME = Profile(
    name="delta-come",
    summary="Each task's leading singular directions with 8, 3 and 2 bits.",
    encode=encode,
)
