"""The resolved configuration of a run: one dataclass drives flags, files, docs and validation.

Precedence: command line, then file, then these defaults. Unknown keys are errors.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.errors import ParameterError, StorageError, UnknownNameError, UsageError
from svd_hybrid.methods import METHODS
from svd_hybrid.registry import did_you_mean

OPTIONAL_PATHS = (
    "base_model_path",
    "checkpoint_dir",
    "mask_dir",
    "performance_file",
    "artifact_dir",
    "output_dir",
)
"""Keys a file may also hold, because the original configurations did; not part of the artifact."""


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True)
class CompressConfig:
    """Everything that decides what an artifact holds, and nothing else: no path, no device.

    Method and profile parameters appear under their own names; their ranges are checked by the
    dataclasses of the method and the profile.
    """

    method: str = _option("svd-hybrid", "merge method")
    profile: str = _option("hybrid", "how the deltas are stored")
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
    eval_reconstruction: bool = _option(
        True, "decode every tensor while compressing and record the error of every task"
    )
    merge_name: str = _option("merged", "name of the merge in the artifact")
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choices(self)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ParameterError(f"temperature is {self.temperature}, must be > 0")
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
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "parameters"}
        for params in (self.method_params, self.profile_params):
            own |= {f.name: getattr(params, f.name) for f in fields(params)}
        return own


def known_keys(method: str, profile: str) -> dict[str, Any]:
    """Every key of the configuration with its type hint."""
    keys: dict[str, Any] = typing.get_type_hints(CompressConfig)
    del keys["parameters"]
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
    profile = str(values.get("profile", defaults.profile))
    keys = known_keys(method, profile)
    own = {f.name for f in fields(CompressConfig)}
    top: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for key, value in values.items():
        if key not in keys:
            raise UsageError(f"unknown key {key!r}", where=where, fix=did_you_mean(key, keys))
        (top if key in own else parameters)[key] = coerce(key, value, keys[key], where)
    top |= {"method": METHODS[method].name, "profile": known_profile(profile)}
    config = CompressConfig(**top, parameters=parameters)
    _ = config.method_params, config.profile_params  # their own checks
    return config


def coerce(key: str, value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` asks for; numbers and booleans may come as text.

    Raises:
        ParameterError: it cannot be.
    """

    def wrong(expected: str) -> ParameterError:
        return ParameterError(f"{key} is {value!r}, must be {expected}", where=where)

    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise wrong("one of " + ", ".join(choices))
        return value
    if hint is bool:
        text = str(value).lower()
        if text not in ("true", "false"):
            raise wrong("true or false")
        return text == "true"
    if hint in (int, float):
        if isinstance(value, bool):
            raise wrong("a number")
        try:
            number = hint(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise wrong("an integer" if hint is int else "a number") from error
        if hint is int and isinstance(value, float) and value != number:
            raise wrong("an integer")
        return number
    if not isinstance(value, str):
        raise wrong("text")
    return value


def check_choices(config: Any) -> None:
    """Refuse a Literal field with another value.

    Raises:
        ParameterError: with the legal values.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            coerce(name, getattr(config, name), hint, "configuration")


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


def read_config_file(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML or JSON configuration, in our spelling.

    The original spellings work too: `svd_*` keys, and a `method:` section with `name` and its keys.

    Raises:
        StorageError: the file cannot be read.
        UsageError: it is not a mapping, or gives one key twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"configuration cannot be read: {error.strerror}", where=str(path)
        ) from error
    try:
        text = data.decode()
        if path.suffix == ".json":
            record = json.loads(text, object_pairs_hook=_unique)
        else:
            record = _load_yaml(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"configuration cannot be parsed: {' '.join(str(error).split())[:240]}", where=str(path)
        ) from error
    if not isinstance(record, dict):
        raise UsageError("configuration is not a mapping of keys to values", where=str(path))
    return normalise_keys(record, str(path))


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key appears twice in one mapping")
    return record


def _load_yaml(text: str) -> Any:
    """YAML without tags or duplicate keys (the original example had `method:` twice)."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        return _unique(loader.construct_pairs(node, deep=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique_mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 (Loader is a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def normalise_keys(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Original spellings → ours: flatten `method:`, drop `svd_`.

    Raises:
        UsageError: two spellings of one key.
    """
    flat: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        ours = {"weighting_temperature": "temperature"}.get(
            key.removeprefix("svd_"), key.removeprefix("svd_")
        )
        if ours in flat:
            raise UsageError(f"key {ours!r} is given twice", where=where, fix="keep one of them")
        flat[ours] = value

    for key, value in record.items():
        if key == "method" and isinstance(value, Mapping):
            for inner, inner_value in value.items():
                put("method" if inner == "name" else str(inner), inner_value)
        else:
            put(str(key), value)
    return flat
