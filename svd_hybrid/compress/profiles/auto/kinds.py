"""How much an error in a tensor counts, by what the tensor is."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from svd_hybrid.delta.evaluate import matrix_shape

IMAGE_CHANNELS = 4
STEM = 16.0
TABLE = 4.0
VECTOR = 8.0
SMALLEST_SIDE = 8
"""Matrices with a shorter side are coded as vectors are."""
THIN_ROOM = 2
"""Numbers of a thin matrix for one of its factors'."""
ZERO = 1e-5
"""Share of the largest singular value below which one is rounding (float32, sums of products)."""
TABLES = re.compile(
    r"(^|[._])(embed\w*|wte|wpe|tok_embeddings|position\w*|\w*_embeddings?|lm_head|head|classifier"
    r"|cls|class_token|output_projection)([._]|$)"
)


def error_weight(name: str, shape: tuple[int, ...]) -> float:
    """What a squared error counts for, relative to one in an ordinary matrix.

    Whatever enters a first layer passes through all others, and tables and heads are read by row.
    Measured in docs/codec.md; `error_weight` in an override sets another.

    >>> error_weight("visual.conv1.weight", (768, 3, 32, 32)), error_weight("h.0.attn.w", (64, 64))
    (16.0, 1.0)
    """
    if len(shape) == 4 and shape[1] <= IMAGE_CHANNELS:
        return STEM
    if is_small(shape):
        return VECTOR
    return TABLE if TABLES.search(name) else 1.0


def is_small(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is too small for factors: a vector, or a matrix with a short side."""
    return min(matrix_shape(shape)) < SMALLEST_SIDE


def is_thin(x: Tensor) -> bool:
    """Whether a matrix (m, n) is a product of factors with far fewer numbers, as a LoRA's.

    A corner of it, of a sixteenth of its numbers, tells most that are not.
    """
    m, n = x.shape
    side = min(m, n) // 4
    if side < 2 or _rank(x[:side, :side]) > side // 2:
        return False
    return _rank(x) * (m + n) * THIN_ROOM <= m * n


def _rank(x: Tensor) -> int:
    values = torch.linalg.svdvals(x)
    return int((values > ZERO * values[0]).sum())
