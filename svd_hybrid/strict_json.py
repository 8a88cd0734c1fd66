"""JSON from strangers: measured before anything is built of it, and taken at its strictest."""

from __future__ import annotations

import json
import re
from typing import Any

from svd_hybrid.limits import MOST_JSON_BYTES, MOST_JSON_DEPTH, MOST_JSON_VALUES

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
_NOT_NESTING = _NOT_STRUCTURE + b","


def parse_strictly(data: bytes) -> Any:
    """The value, refusing duplicate keys, NaN and infinity, and more than the limits.

    Raises:
        ValueError: it is not such JSON, or not UTF-8.
    """
    check_limits(data)
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_limits(data: bytes) -> None:
    """Refuse what would take too much memory, before anything is built of it.

    Raises:
        ValueError: it is longer, has more values or is nested deeper than the limits say.
    """
    if len(data) > MOST_JSON_BYTES:
        raise ValueError(f"it has {len(data)} bytes, at most {MOST_JSON_BYTES} are read")
    if data.count(b'"') > 4 * MOST_JSON_VALUES:
        raise ValueError(f"it holds more than {MOST_JSON_VALUES} values")
    structure = _STRINGS.sub(b"", data)
    if len(structure.translate(None, _NOT_STRUCTURE + b"]}")) > MOST_JSON_VALUES:
        raise ValueError(f"it holds more than {MOST_JSON_VALUES} values")
    depth = 0
    for byte in structure.translate(None, _NOT_NESTING):
        depth += 1 if byte in b"[{" else -1
        if depth > MOST_JSON_DEPTH:
            raise ValueError(f"it is nested deeper than {MOST_JSON_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number JSON knows")
