"""Parts of a task's data: all of it, or a validation and a test part that share nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from svd_hybrid.errors import ParameterError


@dataclass(frozen=True, slots=True)
class Part:
    """Which rows of every task count.

    Args:
        name: `all`, `validation` or `test`.
        share: of the rows that are the validation part, (0, 1).
        seed: of the draw.
    """

    name: Literal["all", "validation", "test"] = "all"
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ParameterError(f"validation share is {self.share}, must be between 0 and 1")

    def rows(self, task: str, count: int) -> list[int]:
        """Indices of the rows of this part, ascending; drawn from task and seed alone.

        Args:
            task: its name.
            count: rows there are.

        Raises:
            ParameterError: the part would be empty.
        """
        if self.name == "all":
            return list(range(count))
        import torch

        from svd_hybrid.numerics.seeds import generator

        order = torch.randperm(count, generator=generator(self.seed, "split", task)).tolist()
        first = round(count * self.share)
        rows = order[:first] if self.name == "validation" else order[first:]
        if not rows:
            raise ParameterError(
                f"the {self.name} part of task {task!r} is empty",
                where=f"{count} rows, validation share {self.share:g}",
                fix="use more data, or another share",
            )
        return sorted(rows)

    def as_json(self) -> Mapping[str, Any]:
        """What it selects; nothing that does not matter."""
        if self.name == "all":
            return {"name": "all"}
        return {"name": self.name, "share": self.share, "seed": self.seed}


ALL = Part()
