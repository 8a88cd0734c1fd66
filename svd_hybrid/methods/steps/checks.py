"""What parameter classes check about themselves, with errors that say what to write instead."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from svd_hybrid.errors import ParameterError


def check_choices(params: Any) -> None:
    """Every field with a Literal type has one of its values, and every number is finite.

    Raises:
        ParameterError: naming the field and the values it may have.
    """
    types = get_type_hints(type(params))
    for entry in fields(params):
        value = getattr(params, entry.name)
        choices = get_args(types[entry.name])
        if get_origin(types[entry.name]) is Literal and value not in choices:
            raise ParameterError(
                f"{entry.name} is {value!r}", fix=f"use {' or '.join(map(str, choices))}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f"{entry.name} is {value}, must be finite")


def require(holds: bool, name: str, value: object, legal: str) -> None:
    """Raise a ParameterError about `name` unless the check holds."""
    if not holds:
        raise ParameterError(f"{name} is {value}, outside {legal}")
