"""The merges of a manifest: weights over stored tasks, or expressions of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class LinearMerge:
    """A merge that is a weighted sum of the stored tasks, times `scaling`.

    Args:
        method: id and version of the rule that chose the weights; provenance only.
        weights: one finite number per task, in task order.
        scaling: factor on the merged delta (not on buffers).
        parameters: of the method; provenance only.
        dtype: of the float tensors of the result, when not the base's.
    """

    method: str
    method_version: int
    weights: tuple[float, ...]
    scaling: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest record."""
        return {"kind": "linear", "weights": list(self.weights)} | _merge_facts(self)


@dataclass(frozen=True, slots=True)
class StoredMerge:
    """A merge with expressions of its own in every tensor it changes.

    Args:
        method, method_version, parameters: provenance only.
        scaling: factor on the merged delta (not on buffers).
        tasks: whether single tasks come back from it, through the `task` expressions.
        task_gains: factor on each task's delta, in task order; empty for none.
        dtype: of the float tensors of the result, when not the base's.
    """

    method: str
    method_version: int
    scaling: float
    tasks: bool = False
    task_gains: tuple[float, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest record."""
        record: dict[str, Any] = {"kind": "stored", "tasks": self.tasks} | _merge_facts(self)
        if self.task_gains:
            record["task_gains"] = list(self.task_gains)
        return record


Merge: TypeAlias = LinearMerge | StoredMerge


def _merge_facts(merge: Merge) -> dict[str, Any]:
    """What both kinds of merge record."""
    facts: dict[str, Any] = {
        "method": merge.method,
        "method_version": merge.method_version,
        "scaling": merge.scaling,
    }
    if merge.parameters:
        facts["parameters"] = dict(merge.parameters)
    return facts if merge.dtype is None else facts | {"dtype": merge.dtype}


def merge_from_json(record: Mapping[str, Any]) -> Merge:
    """The merge of validated JSON."""
    facts = {key: value for key, value in record.items() if key != "kind"}
    for key in ("weights", "task_gains"):
        if key in facts:
            facts[key] = tuple(facts[key])
    return LinearMerge(**facts) if record["kind"] == "linear" else StoredMerge(**facts)
