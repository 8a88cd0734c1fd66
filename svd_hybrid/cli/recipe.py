"""A mergekit recipe given as the configuration of `svdh compress`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svd_hybrid.console import note


def from_recipe(
    document: Mapping[str, Any], where: str, values: dict[str, Any], replaced: Mapping[str, Path]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The configuration that a recipe stands for, and the command line with the recipe's paths.

    Notes go to stderr.

    Args:
        document: the recipe.
        where: its file, for errors.
        values: the command line's, by parameter name.
        replaced: checkpoints given there, by task.

    Raises:
        UsageError: a recipe svdh cannot honour, or a task that it does not have.
        FamilyError, StorageError: a checkpoint cannot be read.
    """
    from svd_hybrid.compress.recipe.check import check_checkpoints
    from svd_hybrid.compress.recipe.read import read_recipe
    from svd_hybrid.io.lookup import match_name

    recipe = read_recipe(document, where)
    tasks = dict(recipe.tasks)
    for task, path in replaced.items():
        tasks[match_name(task, tasks, "task", where)] = path
    base = values.get("base") or recipe.base
    for line in (*recipe.notes, *check_checkpoints(recipe, base, tasks)):
        note(line)
    record = dict(recipe.values)
    if values.get("from_artifact"):
        del record["store_tasks"]  # what the artifact holds is kept
    paths = tuple(f"{task}={path}" for task, path in tasks.items())
    return record, values | {"base": base, "tasks": (), "task_paths": paths}
