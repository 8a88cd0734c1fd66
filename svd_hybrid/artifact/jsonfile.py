"""JSON the strict way: one spelling out, no surprises in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from svd_hybrid.errors import ArtifactError, StorageError, SvdhError
from svd_hybrid.limits import MOST_JSON_BYTES
from svd_hybrid.strict_json import parse_strictly


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
    """The value, refusing duplicate keys, NaN and infinity, and more than the limits.

    Raises:
        ArtifactError: it is not such JSON, or not UTF-8.
    """
    try:
        return parse_strictly(data)
    except ValueError as error:
        raise ArtifactError(f"not valid JSON: {str(error)[:160]}", where=where) from error


def read_json(path: Path, what: str) -> Any:
    """The value of a file.

    Args:
        path: the file; its size is looked at before it is read.
        what: what it is, for errors: `manifest`.

    Raises:
        StorageError: the file may not be read.
        ArtifactError: it is too large, or no JSON.
    """
    return parse_json(read_limited(path, what), str(path))


def read_limited(path: Path, what: str) -> bytes:
    """The bytes of a JSON file that is not too large.

    Raises:
        StorageError, ArtifactError: as `read_json`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_JSON_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{what} cannot be read: {error.strerror}", where=str(path)) from error
    if len(data) > MOST_JSON_BYTES:
        raise ArtifactError(f"{what} is larger than {MOST_JSON_BYTES} bytes", where=str(path))
    return data


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
        record = read_json(path, what)
    except ArtifactError as error:
        said = error.what if error.what.startswith(what) else f"{what} is {error.what}"
        raise fault(said, where=str(path)) from error
    if not isinstance(record, dict):
        raise fault(f"{what} holds {type(record).__name__}, not an object", where=str(path))
    return record
