"""Configuration files: YAML or JSON in our spelling or the original one → keys and values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svd_hybrid.errors import StorageError, UsageError
from svd_hybrid.limits import MOST_CONFIG_BYTES, MOST_DIGITS


def read_config_file(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML or JSON configuration, in our spelling.

    The original spellings work too: `svd_*` keys, and a `method:` section with `name` and its keys.

    Raises:
        StorageError: the file cannot be read.
        UsageError: it is not a mapping, or gives one key twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_CONFIG_BYTES + 1)
    except OSError as error:
        raise StorageError(
            f"configuration cannot be read: {error.strerror}", where=str(path)
        ) from error
    if len(data) > MOST_CONFIG_BYTES:
        raise UsageError(f"configuration is larger than {MOST_CONFIG_BYTES} bytes", where=str(path))
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

    def short_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:
            raise ValueError(f"an integer has more than {MOST_DIGITS} digits")
        return loader.construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", short_integer)
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
