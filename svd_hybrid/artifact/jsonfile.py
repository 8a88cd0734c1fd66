"""JSON the strict way: one spelling out, no surprises in."""

from __future__ import annotations

import json
from typing import Any

from svd_hybrid.errors import ArtifactError


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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number JSON knows")
