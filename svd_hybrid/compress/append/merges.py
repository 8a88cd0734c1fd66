"""What becomes of an artifact's merges when tasks are added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from svd_hybrid.artifact.merges import LinearMerge, Merge, StoredMerge
from svd_hybrid.errors import shorten
from svd_hybrid.methods import METHODS


def grown_merges(
    merges: Mapping[str, Merge], new: list[str], replaced: list[str]
) -> tuple[dict[str, Merge], list[str]]:
    """The merges over the old and the new tasks, and what the user should know of them.

    A linear merge that counts all its tasks alike goes on doing so: an average gives each its
    share, a sum gives the new ones the weight of the others. Any other has weight 0 for them.
    Stored merges keep their result, and give no single tasks back: they have none of the new ones.

    Args:
        merges: by name.
        new: tasks that are added at the end.
        replaced: tasks that are others now.
    """
    grown: dict[str, Merge] = {}
    notes = []
    for name, merge in merges.items():
        if isinstance(merge, StoredMerge):
            if merge.tasks:
                notes.append(f"merge {name!r} gives no single tasks back any more")
            grown[name] = replace(merge, tasks=False, task_gains=())
            notes.append(f"merge {name!r} stays as it is, without {shorten([*new, *replaced])}")
            continue
        weights = grown_weights(merge, len(new))
        grown[name] = replace(merge, weights=weights)
        if new and weights[-1]:
            notes.append(f"merge {name!r} counts all tasks alike, now with {shorten(new)}")
        elif new:
            notes.append(f"merge {name!r} has weight 0 for {shorten(new)}")
        if replaced:
            notes.append(f"merge {name!r} now weighs the new {shorten(replaced)}")
    return grown, notes


def grown_weights(merge: LinearMerge, more: int) -> tuple[float, ...]:
    """The weights of a linear merge with those of further tasks.

    >>> grown_weights(LinearMerge("weight-averaging", 1, (0.5, 0.5), 1.0), 2)
    (0.25, 0.25, 0.25, 0.25)
    >>> grown_weights(LinearMerge("task-arithmetic", 1, (1.0, 1.0), 0.4), 1)
    (1.0, 1.0, 1.0)
    >>> grown_weights(LinearMerge("svd-hybrid", 1, (0.75, 0.25), 1.0), 1)
    (0.75, 0.25, 0.0)
    """
    weights = tuple(float(weight) for weight in merge.weights)
    if not more or len(set(weights)) > 1:
        return weights + (0.0,) * more
    averages = merge.method not in METHODS or METHODS[merge.method].weights == "average"
    if averages and math.isclose(math.fsum(weights), 1.0, rel_tol=1e-9):
        count = len(weights) + more
        return (1.0 / count,) * count
    return weights + weights[:1] * more


def grown_document_weights(
    merge: Merge, recorded: Mapping[str, Any], tasks: tuple[str, ...], new: list[str]
) -> tuple[float, ...]:
    """What weights.json says: the weights of a linear merge, else what it said and 0.

    Args:
        merge: the default one, grown.
        recorded: weights.json of the artifact; empty without one.
        tasks: names before.
        new: names that are added.
    """
    if isinstance(merge, LinearMerge):
        return merge.weights
    before = tuple(float(recorded.get(task, 1.0)) for task in tasks)
    return before + (0.0,) * len(new)
