"""Samples of one task as they were stored, in the order of their source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.errors import DataError

Kind = Literal["images", "text", "tokens", "document"]


@dataclass(frozen=True, slots=True)
class Examples:
    """Samples and, where there are any, labels.

    Args:
        kind: `images`: uint8 arrays (H, W) or (H, W, C); `text`: strings; `tokens`: int64 arrays
            (L,); `document`: one string, of which rows of tokens are made.
        inputs: one per sample; may be read from disk when asked for.
        source: where they came from, for people.
        labels: (N,) int64.
        classes: names of the labels, where the source has them.
    """

    kind: Kind
    inputs: Sequence[Any] | np.ndarray[Any, Any]
    source: str
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def selected(self, indices: Sequence[int]) -> Examples:
        """These samples alone, in this order."""
        labels = None if self.labels is None else self.labels[torch.tensor(list(indices))]
        return replace(self, inputs=Chosen(self.inputs, tuple(indices)), labels=labels)

    def part(self, start: int, stop: int | None) -> Examples:
        """Samples start:stop.

        Raises:
            DataError: there are fewer.
        """
        if start == 0 and stop is None:
            return self
        end = len(self) if stop is None else stop
        if end > len(self) or start >= len(self):
            raise DataError(
                f"data has {len(self)} samples, [{start}:{end}] was asked for",
                where=self.source,
                fix="ask for fewer",
            )
        return self.selected(range(start, end))

    def spread(self, count: int | None) -> Examples:
        """`count` samples, evenly spaced over all of them; None for all.

        Raises:
            DataError: there are fewer.
        """
        if count is None or count == len(self):
            return self
        if count > len(self):
            raise DataError(
                f"data has {len(self)} samples, {count} were asked for",
                where=self.source,
                fix=f"pass --samples {len(self)}, or more data",
            )
        return self.selected([index * len(self) // count for index in range(count)])

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the samples and labels."""
        found = hashlib.sha256(self.kind.encode())
        for sample in self.inputs:
            if isinstance(sample, str):
                data = sample.encode()
            else:
                array = np.ascontiguousarray(sample)
                data = f"{array.dtype}{array.shape}".encode() + array.tobytes()
            found.update(len(data).to_bytes(8, "little") + data)
        if self.labels is not None:
            found.update(self.labels.numpy().tobytes())
        return found.hexdigest()


def no_classes() -> tuple[str, ...]:
    """Class names of a source that has none."""
    return ()


class Chosen(Sequence[Any]):
    """Some of the items of a sequence, read when asked for."""

    def __init__(
        self, items: Sequence[Any] | np.ndarray[Any, Any], indices: tuple[int, ...]
    ) -> None:
        self.items = items
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.items[number] for number in self.indices[index]]
        return self.items[self.indices[index]]

    def __iter__(self) -> Iterator[Any]:
        return (self.items[number] for number in self.indices)
