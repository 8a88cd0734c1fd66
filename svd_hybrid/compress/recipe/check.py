"""Whether the checkpoints of a mergekit recipe are such that svdh gives mergekit's result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from svd_hybrid.compress.recipe.read import Recipe
from svd_hybrid.errors import UsageError, shorten
from svd_hybrid.io.adapter.reader import open_task
from svd_hybrid.io.reader import open_checkpoint

HALF = ("F16", "BF16")


def check_checkpoints(recipe: Recipe, base: Path, tasks: Mapping[str, Path]) -> list[str]:
    """What to know about the arithmetic of the recipe on these checkpoints.

    Args:
        recipe: whose dtype is asked for.
        base: checkpoint of the base; only headers are read.
        tasks: checkpoint by task.

    Raises:
        UsageError: no such path; or a dtype that mergekit would first round the checkpoints to.
        FamilyError, StorageError: a checkpoint cannot be read.
    """
    paths = [base, *tasks.values()]
    for path in paths:
        if not path.exists():
            raise UsageError(
                "a model of the recipe is no local path",
                where=str(path),
                fix="download it, or pass --base-model-path PATH or --task NAME=PATH",
            )
    opened = open_checkpoint(base)
    readers = [opened, *(open_task(path, opened) for path in dict.fromkeys(tasks.values()))]
    found: dict[str, set[str]] = {}
    for reader in readers:
        for name, info in reader.infos.items():
            if info.is_float:
                found.setdefault(name, set()).add(info.dtype)
    mixed = sorted(name for name, dtypes in found.items() if len(dtypes) > 1)
    if mixed and not recipe.dtype:
        raise UsageError(
            f"the models have different dtypes, as in tensor {mixed[0]!r}",
            where=str(base),
            fix="add dtype: float32 to the recipe",
        )
    used = set[str]().union(*found.values())
    rounded = sorted(used - {recipe.dtype}) if recipe.dtype in HALF else []
    if rounded or (recipe.dtype == "F64" and used != {"F64"}):
        raise UsageError(
            f"key 'dtype' asks for {recipe.dtype}, the checkpoints hold {', '.join(sorted(used))}",
            where=str(base),
            fix="write dtype: float32, and the dtype of the result as out_dtype",
        )
    notes = []
    if used & set(HALF) and recipe.dtype != "F32":
        halves = " and ".join(sorted(used & set(HALF)))
        notes.append(
            f"mergekit rounds to {halves} at every step, svdh sums in float32 and rounds once"
        )
    least = _least_density(recipe)
    if used & set(HALF) and least < 1:
        notes.append(
            "of equal magnitudes at the cut, which half precision has many of, mergekit keeps "
            "arbitrary ones, svdh the first"
        )
    counts = {name: info.count for name, info in readers[0].infos.items() if info.is_float}
    emptied = [name for name in sorted(counts) if counts[name] and not int(counts[name] * least)]
    if emptied:
        notes.append(
            f"of tensors this small mergekit keeps one scalar, svdh none: {shorten(emptied)}"
        )
    return notes


def _least_density(recipe: Recipe) -> float:
    """The lowest density of a trim by magnitude; 1 where nothing is trimmed so."""
    if recipe.values["method"] != "ties":
        return 1.0
    densities = [recipe.values["density"]]
    for rule in recipe.values["overrides"]:
        value = rule.get("density", 1.0)
        densities += value["gradient"] if isinstance(value, Mapping) else [value]
    return float(min(densities))
