"""Configuration values: from text, JSON or YAML to the type a dataclass field asks for."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from svd_hybrid.errors import ParameterError


def coerce(key: str, value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` asks for; numbers and booleans may come as text.

    Lists may come as text too, separated by commas; `none` is the value of an optional one.

    Raises:
        ParameterError: it cannot be.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or str(value).lower() in ("none", "null", ""):
            return None
        return coerce(key, value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        entries = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(entries, list | tuple):
            raise _wrong(key, value, "a list", where)
        return tuple(coerce(key, entry, arguments[0], where) for entry in entries if entry != "")
    if origin is Literal:
        if value not in arguments:
            raise _wrong(key, value, "one of " + ", ".join(map(str, arguments)), where)
        return value
    if hint is bool:
        text = str(value).lower()
        if text not in ("true", "false"):
            raise _wrong(key, value, "true or false", where)
        return text == "true"
    if hint in (int, float):
        return _number(key, value, hint, where)
    if not isinstance(value, str):
        raise _wrong(key, value, "text", where)
    return value


def _number(key: str, value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, bool):
        raise _wrong(key, value, "a number", where)
    try:
        number = hint(value)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = "an integer" if hint is int else "a number"
        raise _wrong(key, value, wanted, where) from error
    if hint is int and isinstance(value, float) and value != number:
        raise _wrong(key, value, "an integer", where)
    return number


def coerce_gradient(key: str, value: Any, hint: Any, where: str) -> Any:
    """`value`, or the values of `{"gradient": [first layer, …, last layer]}`, checked one by one.

    Raises:
        ParameterError: as `coerce`; or a gradient of something that is no number, or is empty.
    """
    if not isinstance(value, Mapping):
        return coerce(key, value, hint, where)
    points = value.get("gradient")
    if set(value) != {"gradient"} or not isinstance(points, list) or not points:
        raise _wrong(key, dict(value), "a value, or {gradient: [numbers]}", where)
    if float not in (hint, *typing.get_args(hint)):
        raise ParameterError(f"{key} cannot have a gradient: it is no fraction", where=where)
    return {"gradient": [coerce(key, point, float, where) for point in points]}


def _wrong(key: str, value: Any, expected: str, where: str) -> ParameterError:
    return ParameterError(f"{key} is {value!r}, must be {expected}", where=where)


def check_choices(config: Any) -> None:
    """Refuse a Literal field with another value.

    Raises:
        ParameterError: with the legal values.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            coerce(name, getattr(config, name), hint, "configuration")
