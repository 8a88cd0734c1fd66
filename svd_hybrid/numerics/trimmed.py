"""A trimmed stack of deltas, read block by block, without a trimmed copy in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.numerics.blocks import CHUNK
from svd_hybrid.numerics.trim import KEEP_ALL, Cut, kept


class Trimmed(Protocol):
    """A stack of deltas (N, D) whose dropped scalars read as 0."""

    whole: list[bool]
    """Per task, whether the rule found nothing to trim."""

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns start:stop, (N, stop - start): the caller's to overwrite until the next call."""


class ByMask:
    """Trimmed by masks.

    Args:
        deltas: (N, D).
        keep: (N, D) bool.
        whole: per task, whether the rule found nothing to trim.
    """

    def __init__(self, deltas: Tensor, keep: Tensor, whole: list[bool]) -> None:
        self.deltas = deltas
        self.keep = keep
        self.whole = whole

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns start:stop."""
        return torch.where(self.keep[:, start:stop], self.deltas[:, start:stop], 0.0)


class ByCut:
    """Trimmed by one cut per task around 0, float32; one read of the deltas, no masks.

    Args:
        deltas: (N, D) float32.
        cuts: one per task, centre 0, none that keeps the last.
    """

    def __init__(self, deltas: Tensor, cuts: Sequence[Cut]) -> None:
        self.deltas = deltas
        self.whole = [cut == KEEP_ALL for cut in cuts]
        self.shrinks = [_largest_dropped(cut) for cut in cuts]
        self.dropped = [_dropped_ties(delta, cut) for delta, cut in zip(deltas, cuts, strict=True)]
        self.memory = torch.empty(len(deltas) * min(CHUNK, deltas.shape[1]))

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns start:stop."""
        tasks, width = len(self.deltas), stop - start
        block = self.memory[: tasks * width].view(tasks, width)
        for task, (shrink, dropped) in enumerate(zip(self.shrinks, self.dropped, strict=True)):
            row = block[task]
            torch.ops.aten.hardshrink.out(self.deltas[task, start:stop], shrink, out=row)
            if dropped.size:
                first, last = np.searchsorted(dropped, [start, stop])
                row[torch.from_numpy(dropped[first:last] - start)] = 0.0
        return block


def _largest_dropped(cut: Cut) -> float:
    """The largest float32 magnitude below the cut; -1 where nothing is."""
    if not cut.ties or math.isinf(cut.level):
        return cut.level
    return float(np.nextafter(np.float32(cut.level), np.float32(-1))) if cut.level else -1.0


def _dropped_ties(values: Tensor, cut: Cut) -> Any:
    """Flat indices at the level that are dropped, ascending; int64."""
    if not cut.splits_ties or not cut.level:
        return np.empty(0, np.int64)
    numbers = values.numpy()
    return np.flatnonzero((numbers == cut.level) | (numbers == -cut.level))[cut.ties :]


def trimmed_by(deltas: Tensor, cuts: Sequence[Cut]) -> Trimmed:
    """The stack (N, D) under one cut per task."""
    if deltas.dtype == torch.float32 and not any(cut.centre or cut.keeps_last for cut in cuts):
        return ByCut(deltas, cuts)
    rows = [kept(delta, cut) for delta, cut in zip(deltas, cuts, strict=True)]
    return ByMask(deltas, torch.stack(rows), [cut == KEEP_ALL for cut in cuts])
