"""JSON the strict way: one spelling out, no surprises in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from svd_hybrid.errors import ArtifactError, StorageError, SvdhError


def canonical_json(value: Any) -> bytes:
    """Sorted keys, UTF-8, no NaN, no spaces, newline at the end: equal values, equal bytes."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode() + b"\n"


def readable_json(value: Any) -> bytes:
    """The same order and rules with indentation, for documents that people open."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def parse_json(data: bytes, where: str) -> Any:
    """The value, refusing duplicate keys, NaN and infinity.

    Raises:
        ArtifactError: it is not such JSON, or not UTF-8.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"not valid JSON: {str(error)[:160]}", where=where) from error


def read_json_object(path: Path, what: str, fault: type[SvdhError]) -> dict[str, Any]:
    """The JSON object in a user's file.

    Args:
        path: the file.
        what: what it is, for errors: `weights file`.
        fault: raised when the file is no such object.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        record = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise StorageError(f"{what} cannot be read: {error.strerror}", where=str(path)) from error
    except ArtifactError as error:
        raise fault(f"{what} is {error.what}", where=str(path)) from error
    if not isinstance(record, dict):
        raise fault(f"{what} holds {type(record).__name__}, not an object", where=str(path))
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number JSON knows")
