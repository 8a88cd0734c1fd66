"""A mergekit recipe as it is written: known keys, models with their settings, no interpretation.

Keys, names and forms are those of arcee-ai/mergekit 0.1.5; every other key is refused, where
mergekit would skip it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svd_hybrid.compress.recipe.settings import Case, read_cases
from svd_hybrid.errors import UsageError
from svd_hybrid.registry import did_you_mean

METHOD_KEY = "merge_method"
KEYS = (METHOD_KEY, "models", "base_model", "parameters", "dtype", "out_dtype")
BEYOND = {
    "slices": "svdh keeps every layer in its place: list whole models",
    "modules": "list whole models",
    "tokenizer_source": "drop the key: reload copies the tokenizer of the base",
    "tokenizer": "drop the key: reload copies the tokenizer of the base",
    "chat_template": "drop the key: reload copies the chat template of the base",
}
PARAMETERS: dict[str, type] = {
    "weight": float,
    "density": float,
    "lambda": float,
    "normalize": bool,
    "rescale": bool,
    "int8_mask": bool,
}
PER_MODEL = ("weight", "density", "int8_mask")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True, slots=True)
class RecipeModel:
    """One input of the merge: its path as written, and its settings by parameter."""

    path: str
    settings: Mapping[str, tuple[Case, ...]]


@dataclass(frozen=True, slots=True)
class Record:
    """What a recipe says.

    Args:
        method: mergekit's name of the method.
        base: path of the base; empty where there is none.
        models: in order, the base included where it is listed.
        shared: settings for the whole recipe, by parameter.
        dtype: what to compute in, as safetensors names it; empty where the recipe is silent.
        out_dtype: what to write, likewise.
    """

    method: str
    base: str
    models: tuple[RecipeModel, ...]
    shared: Mapping[str, tuple[Case, ...]]
    dtype: str
    out_dtype: str


def read_record(record: Mapping[str, Any], methods: tuple[str, ...], where: str) -> Record:
    """The recipe, its keys checked.

    Args:
        record: the YAML document.
        methods: the methods that are accepted.
        where: its file, for errors.

    Raises:
        UsageError: a key or a form that svdh cannot honour.
        ParameterError: a value of the wrong type.
    """
    for key, value in record.items():
        if key not in KEYS and value is not None:
            what = "svdh cannot honour key" if key in BEYOND else "unknown key"
            fix = BEYOND.get(key) or did_you_mean(key, KEYS)
            raise UsageError(f"{what} {key!r} of a mergekit recipe", where=where, fix=fix)
    method = record[METHOD_KEY]
    if method not in methods:
        raise UsageError(
            f"svdh has no merge_method {method!r}",
            where=where,
            fix=did_you_mean(str(method), methods),
        )
    listed = record.get("models")
    if not isinstance(listed, list) or not listed:
        raise UsageError("key 'models' is not a list of models", where=where)
    models = tuple(_model(entry, f"models[{i}]", where) for i, entry in enumerate(listed))
    if len({model.path for model in models}) < len(models):
        raise UsageError("key 'models' lists a model twice", where=where, fix="list it once")
    base = record.get("base_model")
    return Record(
        method,
        "" if base is None else _path(base, "base_model", where),
        models,
        _settings(record.get("parameters"), "parameters", where),
        _dtype("dtype", record.get("dtype"), where),
        _dtype("out_dtype", record.get("out_dtype"), where),
    )


def _settings(given: Any, what: str, where: str) -> dict[str, tuple[Case, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"{what} is not a mapping of parameters to values", where=where)
    for key in given:
        if key not in PARAMETERS:
            fix = did_you_mean(str(key), PARAMETERS)
            raise UsageError(f"unknown parameter {key!r} in {what}", where=where, fix=fix)
    return {
        key: read_cases(key, value, PARAMETERS[key], f"{where}, {what}")
        for key, value in given.items()
    }


def _model(entry: Any, what: str, where: str) -> RecipeModel:
    if not isinstance(entry, Mapping) or "model" not in entry:
        raise UsageError(f"{what} has no key 'model'", where=where, fix="write - model: PATH")
    for key in entry:
        if key not in ("model", "parameters"):
            fix = did_you_mean(str(key), ("model", "parameters"))
            raise UsageError(f"unknown key {key!r} in {what}", where=where, fix=fix)
    settings = _settings(entry.get("parameters"), f"parameters of {what}", where)
    for key in settings:
        if key not in PER_MODEL:
            raise UsageError(
                f"{key} is a parameter of the recipe, not of {what}",
                where=where,
                fix="move it to the 'parameters' at the top level",
            )
    return RecipeModel(_path(entry["model"], what, where), settings)


def _path(text: Any, what: str, where: str) -> str:
    if not isinstance(text, str) or not text:
        raise UsageError(f"{what} is not a path", where=where, fix="name a local folder or file")
    for sign, meaning in (("+", "an adapter"), ("@", "a revision")):
        if sign in text:
            raise UsageError(
                f"{what} names {meaning} after {sign!r}, which svdh cannot apply",
                where=where,
                fix="name a local folder or file that holds the whole model",
            )
    return text


def _dtype(key: str, name: Any, where: str) -> str:
    if name is None:
        return ""
    short = DTYPES.get(str(name).removeprefix("torch."))
    if short is None:
        fix = did_you_mean(str(name), DTYPES)
        raise UsageError(f"{key} is {name!r}, which is no float dtype", where=where, fix=fix)
    return short
