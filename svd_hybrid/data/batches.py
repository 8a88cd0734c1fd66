"""Samples as batches of tensors a model takes, in the order of their source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from svd_hybrid.data.examples import Examples


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples.

    Args:
        inputs: by the name of the model's argument; the first axis is the sample.
        first: number of the first sample.
        mask: (B, L) bool, True where a position is no padding; None where there is none.
        labels: (B,) int64, where the source has them.
    """

    inputs: dict[str, Tensor]
    first: int
    mask: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


Prepare = Callable[[Any], tuple[dict[str, Tensor], Tensor | None]]
"""Samples as stored → the model's inputs, and where they are no padding."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """The data of one task, ready for one model; iterating gives its batches.

    Args:
        examples: the samples chosen.
        prepare: makes tensors of them.
        batch_size: samples per batch, >= 1.
        settings: what decided that, for records.
        notes: what the user should know.
    """

    examples: Examples
    prepare: Prepare
    batch_size: int
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.examples)

    def __iter__(self) -> Iterator[Batch]:
        labels = self.examples.labels
        for first in range(0, len(self), self.batch_size):
            part = slice(first, first + self.batch_size)
            inputs, mask = self.prepare(self.examples.inputs[part])
            yield Batch(inputs, first, mask, None if labels is None else labels[part])

    def described(self) -> dict[str, Any]:
        """Source, digest, counts and settings, for records."""
        return {
            "source": self.examples.source,
            "kind": self.examples.kind,
            "samples": len(self),
            "sha256": self.examples.digest,
            **self.settings,
        }
