"""mergekit recipes: a YAML record with `merge_method` → base, tasks and our configuration.

What arcee-ai/mergekit 0.1.5 would compute is computed, or the recipe is refused with the key that
is in the way. Unlike mergekit, which rounds after every step to the dtype of the checkpoints, sums
are formed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd_hybrid.compress.recipe.method import READS, method_values
from svd_hybrid.compress.recipe.record import RecipeModel, Record, read_record
from svd_hybrid.compress.recipe.settings import Case, chained, overrides_of
from svd_hybrid.errors import ParameterError, UsageError
from svd_hybrid.io.lookup import FILE_SUFFIXES, fold_name

DARE_NOTE = (
    "mergekit draws the scalars it drops from one random stream, svdh from the names of tensor and "
    "task: as many are dropped, but others"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe in our words.

    Args:
        base: checkpoint of the base.
        tasks: checkpoint by task name, in the order of the recipe.
        values: a configuration record, as a file of ours would have it.
        dtype: what mergekit was asked to compute in; empty for the dtype of the checkpoints.
        notes: what the user should know.
    """

    base: Path
    tasks: Mapping[str, Path]
    values: Mapping[str, Any]
    dtype: str
    notes: tuple[str, ...]


def read_recipe(document: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a mergekit configuration.

    Args:
        document: as the YAML file has it.
        where: the file, for errors.

    Raises:
        UsageError: something that svdh cannot do as mergekit does, with its key.
        ParameterError: a value of the wrong type or outside its range.
    """
    record = read_record(document, tuple(READS), where)
    base, models = _inputs(record, where)
    tasks = dict(zip(_task_names(models), models, strict=True))
    weights = {
        task: chained(model.settings.get("weight", ()), record.shared.get("weight", ()))
        for task, model in tasks.items()
    }
    for model, cases in zip(models, weights.values(), strict=True):
        if not cases or cases[-1].part:
            raise UsageError(
                f"weight of {model.path!r} has no value for every tensor",
                where=where,
                fix="end its list with - value: NUMBER, or set weight under 'parameters'",
            )
    values, rules = method_values(record, weights, where)
    values["weights"] = [cases[-1].first for cases in weights.values()]
    rules += _by_task("weight", weights)
    notes = _notes(record, base, models)
    if "density" in READS[record.method]:
        densities = _densities(record, tasks, where)
        first = next(iter(densities.values()))
        values["density"] = first[-1].first
        rules += _by_task("density", densities)
        points = [value for cases in densities.values() for c in cases for value in c.values]
        if record.method != "ties" and min(points) < 1:
            notes.append(DARE_NOTE)
    values |= {"out_dtype": _written(record, where), "store_tasks": "off", "overrides": rules}
    paths = {task: Path(model.path) for task, model in tasks.items()}
    return Recipe(Path(base), paths, values, record.dtype, tuple(notes))


def _inputs(record: Record, where: str) -> tuple[str, list[RecipeModel]]:
    """The base, and the models whose distance from it counts."""
    paths = [model.path for model in record.models]
    if record.method == "linear":  # where a base is one model more, even if it is not listed
        extra = [RecipeModel(record.base, {})] if record.base not in ("", *paths) else []
        return record.base or paths[0], [*record.models, *extra]
    if not record.base:
        raise UsageError(f"merge_method {record.method} needs key 'base_model'", where=where)
    models = [model for model in record.models if model.path != record.base]
    if not models:
        raise UsageError("key 'models' lists nothing but the base", where=where)
    return record.base, models


def _task_names(models: Sequence[RecipeModel]) -> list[str]:
    """The last part of each path, numbered where two would be taken for one another."""
    names: list[str] = []
    for model in models:
        path = Path(model.path)
        stem = (path.stem if path.suffix in FILE_SUFFIXES else path.name) or "model"
        taken = {fold_name(name) for name in names}
        choices = [stem, *(f"{stem}.{count}" for count in range(2, len(models) + 2))]
        names.append(next(name for name in choices if fold_name(name) not in taken))
    return names


def _notes(record: Record, base: str, models: Sequence[RecipeModel]) -> list[str]:
    given = set(record.shared).union(*(model.settings for model in models)) - {"int8_mask"}
    unread = sorted(given.difference(READS[record.method]))
    notes = [f"{key} changes nothing in merge_method {record.method}" for key in unread]
    if not record.base:
        notes.append(f"linear has no base: the artifact is made for the first model, {base}")
    return notes


def _densities(
    record: Record, tasks: Mapping[str, RecipeModel], where: str
) -> dict[str, tuple[Case, ...]]:
    shared = (*record.shared.get("density", ()), Case("", 1.0))
    densities = {
        task: chained(model.settings.get("density", ()), shared) for task, model in tasks.items()
    }
    lowest = "(0" if record.method == "ties" else "[0"
    for task, cases in densities.items():
        for value in (value for case in cases for value in case.values):
            if not 0 <= value <= 1 or (value == 0 and record.method == "ties"):
                what = f"density of {tasks[task].path!r} is {value:g}, must be in {lowest}, 1]"
                raise ParameterError(what, where=where)
    return densities


def _by_task(key: str, by_task: Mapping[str, tuple[Case, ...]]) -> list[dict[str, Any]]:
    """Overrides of a parameter that differs between tasks; equal ones are said once."""
    groups: dict[tuple[Case, ...], list[str]] = {}
    for task, cases in by_task.items():
        groups.setdefault(cases, []).append(task)
    rules: list[dict[str, Any]] = []
    for cases, tasks in groups.items():
        alone = len(groups) == 1
        last = cases[-1]
        if key == "density" and not alone and len(last.values) == 1:  # the method has one for all
            rules.append({"tensors": ["*"], "tasks": tasks, key: last.value})
        rules += overrides_of(key, cases, () if alone else tasks)
    return rules


def _written(record: Record, where: str) -> str:
    """The dtype of the rebuilt merge."""
    wanted = record.out_dtype or record.dtype
    if wanted != "F64":
        return wanted or "base"
    if record.dtype != "F64":
        raise UsageError("out_dtype float64 needs dtype float64", where=where)
    return "base"
