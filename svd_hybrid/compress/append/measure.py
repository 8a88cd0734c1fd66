"""The diagnostics of a grown artifact: those of the old tasks as they were, and the new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from svd_hybrid.artifact.diagnostics import error_facts
from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.compress.append.tensor import GrowingTensor
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.numerics.metrics import ErrorSums


def recall(diagnostics: Diagnostics, recorded: Mapping[str, Any], new: Sequence[str]) -> None:
    """Take over what an artifact's diagnostics say of its own tasks.

    Args:
        diagnostics: of the grown artifact, nothing in it yet.
        recorded: of the artifact, `per_parameter` included; empty when it has none.
        new: tasks whose errors are measured now, replaced ones included.
    """
    known = recorded.get("per_parameter", {})
    counts = (math.prod(f["original_shape"]) for f in known.values() if "alias_of" not in f)
    scalars = sum(counts)
    for index, task in enumerate(diagnostics.tasks):
        errors = recorded.get("tasks", {}).get(task)
        if task in new:
            continue
        if errors:
            diagnostics.totals[index] = recalled_sums(errors, scalars)
            diagnostics.recalled[task] = errors
        else:
            diagnostics.unmeasured.add(task)
    merge = recorded.get("merge")
    if merge:
        diagnostics.merge_bytes = merge["bytes"]
        if merge["relative_error"] is not None:
            diagnostics.merge_total = ErrorSums(
                original_sq=1.0, error_sq=merge["relative_error"] ** 2
            )


def recalled_sums(errors: Mapping[str, Any], count: int) -> ErrorSums:
    """The sums that give such errors, as far as their digits go."""
    original_sq = errors["original_norm"] ** 2
    return ErrorSums(
        count=count,
        original_sq=original_sq,
        rebuilt_sq=errors["reconstructed_norm"] ** 2,
        error_sq=errors["absolute_error"] ** 2,
        error_abs=errors["mean_absolute_error"] * count,
        error_max=errors["max_absolute_error"],
        inner=(1.0 - (errors["shrink"] or 0.0)) * original_sq,
    )


def tensor_facts(
    known: Mapping[str, Any] | None,
    info: TensorInfo,
    grown: GrowingTensor,
    before: Mapping[str, EncodedPart],
    errors: Mapping[str, ErrorSums | None],
    tasks: Sequence[str],
) -> dict[str, Any]:
    """`per_parameter` of one tensor.

    Args:
        known: that of the artifact; None when it has none.
        info: dtype and shape.
        grown: its content, new tasks included.
        before: its parts before.
        errors: of every new task; None when not measured.
        tasks: all of them, in order.
    """
    facts = dict(known or {}) | {"param_name": grown.name, "original_shape": list(info.shape)}
    facts.pop("alias_of", None)
    rank = max((stored.rank for stored in grown.ranks), default=0)
    directions = max((stored.directions for stored in grown.ranks), default=0)
    fresh: dict[str, Any] = {
        "masked_size": info.count,
        "unmasked_size": 0,
        "k": rank,
        "energy_retained": 1.0,
        "basis": {"k": rank, "D": info.count, "directions": directions, "energy_retained": 1.0},
    }
    facts = fresh | facts if "k" not in facts else facts
    for basis in ("basis", "noise_basis"):
        if basis in facts:
            facts[basis] = facts[basis] | {"N": len(tasks)}
    own = set(facts.get("bytes", before)) | (set(grown.parts) - set(before))
    facts["bytes"] = {name: grown.parts[name].nbytes for name in sorted(own & set(grown.parts))}
    stored = sum(facts["bytes"].values())
    ratio = len(tasks) * info.nbytes / stored if stored else None
    facts["compression_ratios"] = dict.fromkeys(tasks, ratio)
    measured = facts.get("reconstruction_errors", {}) | {
        task: error and error.as_json() for task, error in errors.items()
    }
    if any(measured.values()):
        facts |= error_facts({task: measured[task] for task in tasks if measured.get(task)})
    whole = facts.get("relative_error_with_unstored")
    if whole is not None:
        whole = whole | {task: error and error.relative_error for task, error in errors.items()}
        facts["relative_error_with_unstored"] = {task: whole.get(task) for task in tasks}
    return facts
