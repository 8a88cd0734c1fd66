"""How much an error in a tensor counts, by what the tensor is."""

from __future__ import annotations

import re

from svd_hybrid.delta.evaluate import matrix_shape

IMAGE_CHANNELS = 4
STEM = 16.0
TABLE = 4.0
VECTOR = 8.0
SMALLEST_SIDE = 8
"""Matrices with a shorter side are coded as vectors are."""
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
