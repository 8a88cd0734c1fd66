"""Samples in a .npz file: images with labels, or rows of token ids, one set or one per task."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from svd_hybrid.data.examples import Examples, no_classes
from svd_hybrid.data.labels import numbered
from svd_hybrid.errors import DataError, shorten

Array = np.ndarray[Any, Any]


def npz_file(path: Path, task: str) -> Examples:
    """`<task>_images` with `<task>_labels`, `<task>` (token ids), or the same without a task.

    Raises:
        DataError: no npz file, no such array, or one that is no image or token array.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = list(stored.files)
            chosen = _names(task, names, str(path))
            arrays = {role: stored[name] for role, name in chosen.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"no npz file: {error}", where=str(path)) from error
    where = f"{path}: {chosen['inputs']}"
    inputs = arrays["inputs"]
    if not len(inputs):
        raise DataError("data has no samples", where=where)
    labels, classes = None, no_classes()
    if "labels" in arrays:
        if len(arrays["labels"]) != len(inputs):
            raise DataError(
                f"{len(arrays['labels'])} labels for {len(inputs)} samples", where=where
            )
        labels, classes = numbered(arrays["labels"].tolist(), where)
    if chosen["inputs"].endswith("images"):
        return Examples("images", _images(inputs, where), where, labels, classes)
    if inputs.ndim != 2 or not np.issubdtype(inputs.dtype, np.integer):
        raise DataError(
            f"token ids are {inputs.dtype} {list(inputs.shape)}",
            where=where,
            fix="store whole numbers, one row per sample",
        )
    return Examples("tokens", inputs.astype(np.int64), where, labels, classes)


def _names(task: str, names: list[str], where: str) -> dict[str, str]:
    """Which array holds inputs and labels."""
    for prefix in (f"{task}_", ""):
        if f"{prefix}images" in names:
            found = {"inputs": f"{prefix}images", "labels": f"{prefix}labels"}
            return {role: name for role, name in found.items() if name in names}
        if f"{prefix}input_ids" in names:
            found = {"inputs": f"{prefix}input_ids", "labels": f"{prefix}labels"}
            return {role: name for role, name in found.items() if name in names}
    if task in names:
        return {"inputs": task}
    raise DataError(
        f"no data of task {task!r}; the arrays are {shorten(names, 8)}",
        where=where,
        fix=f"name them {task}_images and {task}_labels, {task} (token ids), images or input_ids",
    )


def _images(inputs: Array, where: str) -> Array:
    if inputs.dtype != np.uint8 or inputs.ndim not in (3, 4):
        raise DataError(
            f"images are {inputs.dtype} {list(inputs.shape)}",
            where=where,
            fix="store uint8 arrays (N, H, W) or (N, H, W, C)",
        )
    return inputs
