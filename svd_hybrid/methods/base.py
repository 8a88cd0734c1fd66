"""What a merge method is: a row of facts plus pure functions over one tensor's deltas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Region:
    """A part of one tensor that is stored on its own basis.

    Args:
        inside: True for the scalars the mask selects, False for the others.
        gain: factor of this region in a linear merge; a single task is rebuilt with 1.
    """

    inside: bool
    gain: float


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A merge that is a weighted sum of stored task deltas.

    Args:
        name: id in manifests, kebab-case.
        version: +1 when equal inputs give other numbers.
        summary: what it does, one sentence.
        source: paper and equation this file implements.
        params: frozen dataclass: names, types, defaults, checks in __post_init__.
        regions: how a masked tensor is cut: (combined mask, params) → regions to store. An empty
            list stores nothing.
        per_task_reload: whether single fine-tunes can be rebuilt from its artifact.
        needs_statistics: whether it needs layer statistics of the models.
    """

    name: str
    version: int
    summary: str
    source: str
    params: type[Any]
    regions: Callable[[Tensor, Any], list[Region]]
    per_task_reload: bool = True
    needs_statistics: bool = False

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """Name, type, default and help of every parameter, for people and `--json`."""
        return [
            {
                "name": field.name,
                "type": str(field.type).removeprefix("Literal"),
                "default": field.default,
                "help": field.metadata.get("help", ""),
            }
            for field in fields(self.params)
        ]
