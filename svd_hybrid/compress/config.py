"""The resolved configuration of a run: one dataclass drives flags, files, docs and validation.

Precedence: command line, then file, then these defaults. Unknown keys are errors.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from svd_hybrid.compress.profiles.params import PROFILE_PARAMS, TARGETS, HybridParams
from svd_hybrid.compress.values import check_choices, coerce, coerce_gradient
from svd_hybrid.errors import ParameterError, UnknownNameError, UsageError
from svd_hybrid.methods import METHODS
from svd_hybrid.registry import did_you_mean

DEFAULT_PROFILE = "auto"
MOST_WORKERS = 256
OPTIONAL_PATHS = (
    "base_model_path",
    "checkpoint_dir",
    "mask_dir",
    "performance_file",
    "statistics_dir",
    "from_artifact",
    "artifact_dir",
    "output_dir",
)
"""Keys a file may also hold, because the original configurations did; not part of the artifact."""


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True)
class Override:
    """Parameters for the tensors whose names fit a pattern.

    Args:
        tensors: globs, or regular expressions after `re:`.
        values: parameters of method or profile, and `weight`, `density`, `keep_base`; a number or
            `{"gradient": [...]}` over depth.
        tasks: the tasks that `weight` and `density` are for; empty for all.
    """

    tensors: tuple[str, ...]
    values: Mapping[str, Any]
    tasks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a configuration file has it."""
        record = {"tensors": list(self.tensors)} | dict(self.values)
        return record | ({"tasks": list(self.tasks)} if self.tasks else {})


@dataclass(frozen=True, slots=True)
class CompressConfig:
    """Everything that decides what an artifact holds, and nothing else: no path, no device.

    Method and profile parameters appear under their own names; their ranges are checked by the
    dataclasses of the method and the profile.
    """

    method: str = _option("svd-hybrid", "merge method")
    profile: str = _option(
        DEFAULT_PROFILE, "how the deltas are stored: " + ", ".join(PROFILE_PARAMS)
    )
    model: str = _option("", "label of the model, for people; e.g. ViT-B-32")
    weighting: Literal["uniform", "performance", "cluster"] = _option(
        "uniform", "how the tasks are weighted in the merge"
    )
    temperature: float = _option(5.0, "softmax temperature of performance weights, > 0")
    cluster_k: int = _option(2, "clusters for cluster weighting, 1..number of tasks")
    cluster_across: Literal["uniform", "performance"] = _option(
        "uniform", "how clusters are weighted against each other"
    )
    missing_mask: Literal["error", "ones", "ignore"] = _option(
        "error", "a task without a mask: refuse, count as all ones, or leave out of the vote"
    )
    on_missing: Literal["error", "skip", "zero"] = _option(
        "error", "a task lacks a base tensor: refuse, keep the base value, or count as unchanged"
    )
    on_extra: Literal["error", "ignore"] = _option(
        "error", "a task has a tensor the base lacks: refuse or leave it out"
    )
    on_shape_mismatch: Literal["error", "skip", "crop"] = _option(
        "error", "shapes differ: refuse, keep the base value, or use the leading rows and columns"
    )
    nonfinite: Literal["error", "zero"] = _option(
        "error", "NaN or infinity in a task: refuse, or count as unchanged"
    )
    weights: tuple[float, ...] = _option(
        (), "factor per task, in task order; in a file also task: factor"
    )
    normalize_weights: bool = _option(True, "averages: divide the weights by their sum")
    keep_base: tuple[str, ...] = _option(
        (), "patterns of tensors that the merge leaves as they are in the base"
    )
    store_tasks: Literal["auto", "on", "off"] = _option(
        "auto", "keep every fine-tune; auto: when the merge is a weighting of them"
    )
    merged_dtype: Literal["fp32", "fp16", "coded"] = _option(
        "fp32",
        "precision of a merge that is stored as such; coded: in few bits, as profile auto codes a "
        "task (methods that give tasks back keep their numbers in fp16)",
    )
    merged_error: float = _option(
        0.1, "relative noise that coding adds to each tensor of a merge, (0, 2]"
    )
    missing_statistics: Literal["error", "ones"] = _option(
        "error", "a matrix without layer statistics: refuse, or weigh its inputs alike"
    )
    out_dtype: Literal["base", "F32", "F16", "BF16"] = _option("base", "dtype of the rebuilt merge")
    eval_reconstruction: bool = _option(
        True, "decode every tensor while compressing; record error and digest of every task"
    )
    merge_name: str = _option("merged", "name of the merge in the artifact")
    overrides: tuple[Override, ...] = ()
    profile_implied: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choices(self)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ParameterError(f"temperature is {self.temperature}, must be > 0")
        if not 0 < self.merged_error <= 2:
            raise ParameterError(f"merged_error is {self.merged_error}, outside (0, 2]")
        if self.cluster_k < 1:
            raise ParameterError(f"cluster_k is {self.cluster_k}, must be 1 or more")

    @property
    def method_params(self) -> Any:
        """The method's parameter dataclass, filled."""
        return _fill(self.parameters, _method_params(self.method))

    @property
    def profile_params(self) -> Any:
        """The profile's parameter dataclass, filled."""
        return _fill(self.parameters, _profile_params(self.profile))

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration, defaults included, as config.json holds it."""
        special = ("parameters", "overrides", "profile_implied")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in special}
        own |= params_to_json(self.method_params) | params_to_json(self.profile_params)
        own = {key: list(v) if isinstance(v, tuple) else v for key, v in own.items()}
        return own | {"overrides": [rule.to_json() for rule in self.overrides]}


def params_to_json(params: Any) -> dict[str, Any]:
    """The fields of a parameter dataclass as JSON."""
    values = {f.name: getattr(params, f.name) for f in fields(params)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def known_keys(method: str, profile: str) -> dict[str, Any]:
    """Every key of the configuration with its type hint."""
    keys: dict[str, Any] = typing.get_type_hints(CompressConfig)
    del keys["parameters"], keys["overrides"], keys["profile_implied"]
    for params in (_method_params(method), _profile_params(profile)):
        keys |= typing.get_type_hints(params)
    return keys


def resolve_config(values: Mapping[str, Any], where: str) -> CompressConfig:
    """The configuration with `values` over the defaults.

    Args:
        values: by key; strings are parsed by the key's type (so `--set` values may be given raw).
        where: file or "command line", for errors.

    Raises:
        UsageError: an unknown key, with the closest known one.
        ParameterError: a value of the wrong type or outside its range.
    """
    defaults = CompressConfig()
    method = str(values.get("method", defaults.method))
    profile = str(values.get("profile") or implied_profile(values, where))
    keys = known_keys(method, profile)
    suggested = keys if values.get("profile") else {*keys, *_names(HybridParams)}
    own = {f.name for f in fields(CompressConfig)}
    top: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for key, value in values.items():
        if key == "overrides":
            top[key] = _overrides(value, keys, own, where)
        elif key not in keys:
            raise _unknown_key(key, suggested, method, where)
        else:
            (top if key in own else parameters)[key] = coerce(key, value, keys[key], where)
    top |= {"method": METHODS[method].name, "profile": known_profile(profile)}
    implied = profile != defaults.profile and not values.get("profile")
    config = CompressConfig(**top, parameters=parameters, profile_implied=implied)
    _ = config.method_params, config.profile_params  # their own checks
    return config


def implied_profile(values: Mapping[str, Any], where: str) -> str:
    """The profile of a configuration that names none: hybrid for parameters of its, else auto.

    Raises:
        UsageError: parameters of hybrid, and a target, which only auto has.
    """
    rules = values.get("overrides")
    rules = rules if isinstance(rules, list | tuple) else ()
    named = [key for rule in rules if isinstance(rule, Mapping) for key in rule]
    documented = sorted(_names(HybridParams) & {*values, *named})
    if not documented:
        return DEFAULT_PROFILE
    targets = sorted({*TARGETS} & {*values})
    if targets:
        raise UsageError(
            f"{targets[0]} goes with profile auto, {documented[0]} with hybrid when none is named",
            where=where,
            fix="drop one of the two, or pass --profile auto if it has that parameter",
        )
    return "hybrid"


def _unknown_key(key: str, keys: Iterable[str], method: str, where: str) -> UsageError:
    owners = [m.name for m in METHODS.values() if key in typing.get_type_hints(m.params)]
    if owners:
        return UsageError(
            f"method {METHODS[method].name} has no parameter {key!r}",
            where=where,
            fix="it belongs to " + ", ".join(owners),
        )
    profiles = [name for name, params in PROFILE_PARAMS.items() if key in _names(params)]
    if profiles:
        return UsageError(
            f"this profile has no parameter {key!r}",
            where=where,
            fix="it belongs to profile " + ", ".join(profiles),
        )
    return UsageError(f"unknown key {key!r}", where=where, fix=did_you_mean(key, keys))


def _names(params: type[Any]) -> set[str]:
    return {field.name for field in fields(params)}


def _overrides(
    rules: Any, keys: Mapping[str, Any], own: set[str], where: str
) -> tuple[Override, ...]:
    """The `overrides:` list of a file, checked.

    Raises:
        UsageError: not a list of mappings, or an unknown key.
        ParameterError: a value of the wrong type.
    """
    if not isinstance(rules, list | tuple) or not all(isinstance(rule, Mapping) for rule in rules):
        raise UsageError(
            "overrides is not a list of mappings",
            where=where,
            fix='write - {tensors: "*.mlp.*", density: 0.1}',
        )
    hints = {key: hint for key, hint in keys.items() if key not in own}
    hints |= {"weight": float, "keep_base": bool}
    return tuple(_override(rule, hints, where) for rule in rules)


def _override(rule: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> Override:
    lists: dict[str, tuple[str, ...]] = {}
    for key in ("tensors", "tasks"):
        listed = rule.get(key, [])
        entries = [listed] if isinstance(listed, str) else listed
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise UsageError(f"key {key!r} of an override is no list of names", where=where)
        lists[key] = tuple(entries)
    if not lists["tensors"]:
        raise UsageError("an override names no tensors", where=where, fix='add tensors: "PATTERN"')
    values = {key: value for key, value in rule.items() if key not in lists}
    for key in values:
        if key not in hints:
            raise UsageError(
                f"unknown key {key!r} in an override", where=where, fix=did_you_mean(key, hints)
            )
        if lists["tasks"] and key not in ("weight", "density"):
            raise UsageError(
                f"key {key!r} of an override cannot be set for single tasks",
                where=where,
                fix="only weight and density can",
            )
    checked = {k: coerce_gradient(k, v, hints[k], where) for k, v in values.items()}
    return Override(lists["tensors"], checked, lists["tasks"])


def _fill(parameters: Mapping[str, Any], kind: type[Any]) -> Any:
    return kind(**{f.name: parameters[f.name] for f in fields(kind) if f.name in parameters})


def _method_params(method: str) -> type[Any]:
    return METHODS[method].params


def _profile_params(profile: str) -> type[Any]:
    return PROFILE_PARAMS[known_profile(profile)]


def known_profile(name: str) -> str:
    """The profile's id.

    Raises:
        UnknownNameError: there is no such profile.
    """
    if name not in PROFILE_PARAMS:
        raise UnknownNameError(f"unknown profile {name!r}", fix=did_you_mean(name, PROFILE_PARAMS))
    return name
