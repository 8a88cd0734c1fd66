"""Second moments and Gram matrices of a layer's inputs, batch by batch.

Every token (row) is a sample, so batches of different size count by their rows. The published
collectors differ, and their ways can be asked for: counting sequences instead of rows scales all
moments of a layer alike, which cancels wherever they are used as long as sequences are equally
long; the variance ignores the inputs' mean and is not what weighted methods need.
Source: methods.md §13, §16; IST-DASLab/sparsegpt and ArkNightmaster/AwRank-Merging, layer_stats.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

LARGEST_PART = 2**22
"""Scalars that are widened to float64 at a time, 32 MiB."""


class InputMoments:
    """Running mean of x_j**2, or of x x^T, over the inputs x of one layer.

    Args:
        kind: `moment` keeps one number per input, `gram` the whole matrix.
        count: what a sample is: a `row`, or a `sequence`, the first axis of a batch with three
            (a batch of plain rows is one sequence).
    """

    def __init__(
        self, kind: Literal["moment", "gram"], count: Literal["row", "sequence"] = "row"
    ) -> None:
        self.kind = kind
        self.count = count
        self.samples = 0
        self.total: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Count a batch (..., n) of inputs; accumulated in float64."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        sequences = len(inputs) if inputs.ndim > 2 else 1
        self.include(summed(rows, self.kind), len(rows) if self.count == "row" else sequences)

    def include(self, total: Tensor, samples: int) -> None:
        """Count a batch whose sum is known."""
        self.total = total.clone() if self.total is None else self.total.add_(total)
        self.samples += samples

    @property
    def mean(self) -> Tensor:
        """(n,) or (n, n), float32.

        Raises:
            ValueError: no batch was added.
        """
        if self.total is None or not self.samples:
            raise ValueError("no inputs were counted")
        return (self.total / self.samples).to(torch.float32)


def summed(rows: Tensor, kind: Literal["moment", "gram"]) -> Tensor:
    """Sum over rows (N, n) of x_j**2, (n,), or of x x^T, (n, n); float64.

    Widened a part of the rows at a time, so that little more memory is needed than for the result.
    """
    n = rows.shape[1]
    found = torch.zeros((n,) if kind == "moment" else (n, n), dtype=torch.float64)
    for part in torch.split(rows, max(1, LARGEST_PART // max(1, n))):
        wide = part.double()
        if kind == "moment":
            found += wide.square().sum(0)
        else:
            found.addmm_(wide.T, wide)  # no second matrix of that size
    return found


def mean_variance(batches: Iterable[Tensor]) -> Tensor:
    """The statistic of the published Scale-SVD collector: not a second moment.

    Args:
        batches: each (L, ..., n) with L >= 2.

    Returns:
        (n,) float32: mean over batches of the unbiased variance along the first axis, averaged
        over the others.
    """
    found = [batch.double().var(0).reshape(-1, batch.shape[-1]).mean(0) for batch in batches]
    return torch.stack(found).mean(0).to(torch.float32)
