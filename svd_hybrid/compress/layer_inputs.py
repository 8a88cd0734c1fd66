"""Rounding that minds what a layer does with its weights.

With H the mean of x xᵀ over a layer's inputs x, errors E in its weights change its outputs by
tr(E H Eᵀ) on average. Rounded column by column, later columns make up for the errors of earlier
ones. A reader needs nothing of it. Source: arXiv 2210.17323 (GPTQ); codec design §10.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from svd_hybrid.compress.statistics import FamilyStatistics, MeasuredFamily, Missing
from svd_hybrid.errors import shorten
from svd_hybrid.numerics.metrics import squared_norm
from svd_hybrid.numerics.obs import prepared, prune

DAMPING = 0.25
"""Share of the mean diagonal added to H, times the squared step over the variance of what is
rounded. Much, against the usual 0.01: what is made up for makes later columns larger, which costs
the more bits the coarser the step; measured in docs/codec.md."""
SMALLEST = 1e-300
BLOCK = 64
"""Columns rounded before those beyond hear of it; changes nothing but time."""


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Inputs of one layer for one task.

    Args:
        gram: (n, n) float, on any scale; positive semidefinite.
        turned: whether the weights are stored as inputs x outputs.
    """

    gram: Tensor
    turned: bool

    def rounded(self, x: Tensor) -> tuple[Tensor, float]:
        """Whole numbers near those of a matrix, and the factor that keeps their mean.

        Args:
            x: (m, n) float, in units of the step.

        Returns:
            The numbers (m, n) and <x, x> / <numbers, x> as the outputs feel it; 0 where that is
            not positive.
        """
        columns = x.T if self.turned else x
        share = DAMPING * columns.numel() / max(squared_norm(columns), SMALLEST)
        gram = self.gram.to(torch.float64)
        hessian = prepared(gram, share)
        kept = torch.zeros(columns.shape, dtype=torch.bool)
        numbers = prune(columns, hessian, kept, BLOCK, rounding=torch.round, zero_dead=False)
        felt = columns.to(torch.float64) @ gram
        felt += share * float(gram.diagonal().mean()) * columns
        product = float((felt * numbers).sum())
        gain = float((felt * columns).sum()) / product if product > 0.0 else 0.0
        return (numbers.T.contiguous() if self.turned else numbers), gain


class FamilyInputs:
    """Inputs of every layer and task, for a profile that minds them.

    Args:
        statistics: the user's; None when none were given.
    """

    def __init__(self, statistics: FamilyStatistics | None = None) -> None:
        self._statistics = statistics
        self._plain: set[str] = set()

    @classmethod
    def open(cls, folder: Path, family: MeasuredFamily, missing: Missing) -> FamilyInputs:
        """From a folder of statistics.

        Raises:
            StorageError, FamilyError: as `FamilyStatistics.open`.
        """
        return cls(FamilyStatistics.open(folder, family, "gram", missing))

    def of(self, name: str) -> list[LayerInputs] | None:
        """Of one tensor, per task; None where there are no Gram matrices.

        Raises:
            FamilyError: as `FamilyStatistics.of`.
        """
        if self._statistics is None:
            return None
        grams = self._statistics.of(name)
        if grams is None or any(gram.ndim != 2 for gram in grams):
            if len(self._statistics.infos[name].shape) > 1:
                self._plain.add(name)
            return None
        turned = self._statistics.inputs_first(name)
        return [LayerInputs(gram, turned) for gram in grams]

    @property
    def notes(self) -> list[str]:
        """What the user should know, once the tensors have been read."""
        if self._statistics is None:
            return []
        found = list(self._statistics.about_files)
        if self._plain:
            named = shorten(sorted(self._plain))
            found.append(f"no Gram matrices, so rounded without regard to inputs: {named}")
        return found
