"""Labels as whole numbers, whatever they were in the source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.errors import DataError


def numbered(labels: Sequence[Any], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """(N,) int64 and the class names; whole numbers stay, names are numbered in sorted order.

    Raises:
        DataError: something else.

    >>> numbered(["b", "a", "b"], "x")
    (tensor([1, 0, 1]), ('a', 'b'))
    """
    if all(isinstance(label, str) for label in labels):
        classes = tuple(sorted(set(labels)))
        place = {name: number for number, name in enumerate(classes)}
        return torch.tensor([place[label] for label in labels]), classes
    try:
        whole = [int(label) for label in labels]
    except (TypeError, ValueError) as error:
        raise DataError(f"labels are neither numbers nor names: {error}", where=where) from error
    if any(number != label for number, label in zip(whole, labels, strict=True)):
        raise DataError("labels are not whole numbers", where=where)
    return torch.tensor(whole, dtype=torch.int64), ()
