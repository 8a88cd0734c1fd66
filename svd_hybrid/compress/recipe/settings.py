"""One setting of a mergekit recipe: a value, a gradient over depth, or values by filter.

mergekit takes the first entry whose filter is part of the tensor's name, and falls back from the
model's settings to the recipe's. Our overrides are read in order and the last that fits wins, so
they come out in reverse. Where mergekit interpolates a gradient, tensors outside the layers get its
first value; so they have an override of their own, whatever depth we give them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svd_hybrid.compress.values import coerce
from svd_hybrid.errors import UsageError
from svd_hybrid.registry import did_you_mean

OUTSIDE_LAYERS = r"^(?!(?:.*\.)?\d+\.)"
GLOB_SIGNS = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Case:
    """A value, and the tensors it is for.

    Args:
        part: of the tensors' names; empty for every tensor.
        value: a number or flag; numbers in a tuple are a gradient from first to last layer.
    """

    part: str
    value: Any

    @property
    def first(self) -> Any:
        """The value at the first layer."""
        return self.value[0] if isinstance(self.value, tuple) else self.value

    @property
    def values(self) -> tuple[Any, ...]:
        """The value, or the points of the gradient."""
        return self.value if isinstance(self.value, tuple) else (self.value,)


def read_cases(key: str, setting: Any, kind: type, where: str) -> tuple[Case, ...]:
    """The cases of a setting, first fitting one first.

    Args:
        key: its name.
        setting: as the recipe has it.
        kind: float or bool.
        where: for errors.

    Raises:
        UsageError: it is none of the three forms.
        ParameterError: a value of the wrong type.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list) or not all(isinstance(entry, Mapping) for entry in setting):
        return (Case("", _value(key, setting, kind, where)),)
    if not setting:
        raise UsageError(f"{key} is an empty list", where=where, fix="give it a value, or drop it")
    return chained(*((_case(key, entry, kind, where),) for entry in setting))


def _case(key: str, entry: Mapping[str, Any], kind: type, where: str) -> Case:
    for name in entry:
        if name not in ("filter", "value"):
            fix = did_you_mean(str(name), ("filter", "value"))
            raise UsageError(f"unknown key {name!r} in an entry of {key}", where=where, fix=fix)
    part = entry.get("filter")
    if "value" not in entry or not (part is None or isinstance(part, str)):
        raise UsageError(
            f"an entry of {key} is not a filter and a value",
            where=where,
            fix="write - {filter: mlp, value: 0.5}",
        )
    return Case("" if part in (None, "*") else str(part), _value(key, entry["value"], kind, where))


def _value(key: str, value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, list):
        return _scalar(key, value, kind, where)
    if kind is bool:
        raise UsageError(
            f"{key} is a list of flags over depth, which svdh cannot follow",
            where=where,
            fix="give true or false, or entries of filter and value",
        )
    if not value:
        raise UsageError(f"{key} is an empty list", where=where, fix="give it a value, or drop it")
    return tuple(_scalar(key, point, kind, where) for point in value)


def _scalar(key: str, value: Any, kind: type, where: str) -> Any:
    number = coerce(key, value, kind, where)
    if not math.isfinite(number):
        raise UsageError(f"{key} is {value}", where=where, fix="give a finite number")
    return number


def chained(*settings: Sequence[Case]) -> tuple[Case, ...]:
    """The cases of settings of falling precedence, up to the first that is for every tensor.

    >>> chained([Case("mlp", 1.0)], [Case("", 0.5)], [Case("", 2.0)])
    (Case(part='mlp', value=1.0), Case(part='', value=0.5))
    """
    cases: list[Case] = []
    for case in (case for setting in settings for case in setting):
        cases.append(case)
        if not case.part:
            break
    return tuple(cases)


def overrides_of(
    key: str, cases: Sequence[Case], tasks: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The cases as override rules of our configuration, most specific last.

    A plain value for every tensor is left to the configuration itself.

    Args:
        key: in our spelling.
        cases: first fitting one first.
        tasks: the rules are for; empty for all.

    >>> overrides_of("scaling", [Case("mlp", 0.5), Case("", 1.0)])
    [{'tensors': ['*mlp*'], 'scaling': 0.5}]
    """
    rules: list[dict[str, Any]] = []
    for case in reversed(cases):
        scope = {"tasks": list(tasks)} if tasks else {}
        if isinstance(case.value, tuple):
            points = {"gradient": list(case.value)}
            outside = f"re:{OUTSIDE_LAYERS}" + (f".*{re.escape(case.part)}" if case.part else "")
            rules.append({"tensors": [_pattern(case.part)], **scope, key: points})
            rules.append({"tensors": [outside], **scope, key: case.first})
        elif case.part:
            rules.append({"tensors": [_pattern(case.part)], **scope, key: case.value})
    return rules


def _pattern(part: str) -> str:
    if not part:
        return "*"
    return f"re:{re.escape(part)}" if GLOB_SIGNS.search(part) else f"*{part}*"
