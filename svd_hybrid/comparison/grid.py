"""Grids of parameters: `density=0.1,0.2`, `scaling=0.1:3.0:0.1`, `ties.density=0.1,0.2`.

The scaling of a merge is applied to what was computed, so it is no axis of its own: every other
combination is merged once and then tried at each scaling in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from svd_hybrid.compress.config import CompressConfig, known_keys, resolve_config
from svd_hybrid.errors import UsageError
from svd_hybrid.methods import METHODS
from svd_hybrid.registry import did_you_mean

WHERE = "command line"
MOST_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class Axis:
    """Values of one parameter.

    Args:
        key: the parameter.
        values: as text, in the order they are tried.
        method: the only method it is for; empty for all that have it.
    """

    key: str
    values: tuple[str, ...]
    method: str = ""

    def applies_to(self, method: str, profile: str) -> bool:
        """Whether a method has this parameter here."""
        return self.method in ("", method) and self.key in known_keys(method, profile)


@dataclass(frozen=True, slots=True)
class Combination:
    """One merge to compute, and what to try on it.

    Args:
        config: the resolved configuration; its scaling is the first one tried.
        varied: the parameters that grids vary, scaling left out.
        scalings: in the order they are tried; at least one.
    """

    config: CompressConfig
    varied: Mapping[str, Any]
    scalings: tuple[float, ...]


def parse_axis(text: str) -> Axis:
    """An axis of `[METHOD.]KEY=VALUE,VALUE,…` or `[METHOD.]KEY=FIRST:LAST:STEP`.

    Raises:
        UsageError: it is none.

    >>> parse_axis("scaling=0.1:0.3:0.1").values
    ('0.1', '0.2', '0.3')
    """
    name, equals, listed = text.partition("=")
    owner, _, key = name.rpartition(".")
    values = _range(text, listed) if ":" in listed else [v.strip() for v in listed.split(",")]
    if not equals or not key.strip() or not all(values):
        raise UsageError(
            f"grid {text!r} is not KEY=VALUES", fix="write density=0.1,0.2 or scaling=0.1:3.0:0.1"
        )
    method = METHODS[owner.strip()].name if owner else ""
    return Axis(key.strip().replace("-", "_"), tuple(dict.fromkeys(values)), method)


def _range(text: str, listed: str) -> list[str]:
    try:
        first, last, step = (Decimal(part.strip()) for part in listed.split(":"))
    except (ValueError, InvalidOperation) as error:
        raise UsageError(
            f"grid {text!r} is not FIRST:LAST:STEP", fix="write scaling=0.1:3.0:0.1"
        ) from error
    if not all(number.is_finite() for number in (first, last, step)) or step <= 0 or last < first:
        raise UsageError(f"grid {text!r} has no values", fix="use FIRST <= LAST and STEP > 0")
    count = int((last - first) / step) + 1
    if count > MOST_POINTS:
        raise UsageError(f"grid {text!r} has {count} values", fix=f"at most {MOST_POINTS}")
    return [str((first + step * index).normalize() + 0) for index in range(count)]


def combinations(
    methods: Sequence[str], axes: Sequence[Axis], fixed: Mapping[str, Any]
) -> Iterator[Combination]:
    """Every merge to compute, method by method, in the order of the axes.

    Args:
        methods: names or aliases.
        axes: of the grid; several of one key for different methods.
        fixed: configuration of all methods; a key of a method's own counts where it has it.

    Raises:
        UsageError: a key that none of the methods has, or a value that is not legal.
    """
    names = [METHODS[method].name for method in methods]
    if len(set(names)) != len(names):
        raise UsageError("a method is named twice", fix="name every method once")
    profile = resolve_config({k: v for k, v in fixed.items() if k == "profile"}, WHERE).profile
    _refuse_unknown(names, axes, fixed, profile)
    for name in names:
        own = [axis for axis in axes if axis.applies_to(name, profile)]
        keys = [axis.key for axis in own]
        if len(set(keys)) != len(keys):
            raise UsageError(f"method {name} has two grids of one parameter", fix="drop one")
        known = known_keys(name, profile)
        common = {key: value for key, value in fixed.items() if key in known}
        varying = [axis for axis in own if axis.key != "scaling"]
        scalings = next((axis.values for axis in own if axis.key == "scaling"), ())
        for values in itertools.product(*(axis.values for axis in varying)):
            varied = dict(zip((axis.key for axis in varying), values, strict=True))
            yield _combination(name, common, varied, scalings)


def _combination(
    method: str, common: Mapping[str, Any], varied: Mapping[str, str], scalings: Sequence[str]
) -> Combination:
    values = {"method": method, **common, **varied}
    configs = [resolve_config({**values, "scaling": scaling}, WHERE) for scaling in scalings]
    configs = configs or [resolve_config(values, WHERE)]
    read = {key: _value(configs[0], key) for key in varied}
    return Combination(
        configs[0], read, tuple(float(config.method_params.scaling) for config in configs)
    )


def _value(config: CompressConfig, key: str) -> Any:
    """A parameter as the configuration understood it."""
    for holder in (config.method_params, config.profile_params, config):
        if hasattr(holder, key):
            value = getattr(holder, key)
            return list(value) if isinstance(value, tuple) else value
    raise AssertionError(key)


def _refuse_unknown(
    names: Sequence[str], axes: Sequence[Axis], fixed: Mapping[str, Any], profile: str
) -> None:
    known = {name: known_keys(name, profile) for name in names}
    every = sorted({key for keys in known.values() for key in keys})
    for axis in axes:
        if not any(axis.applies_to(name, profile) for name in names):
            owner = f"method {axis.method}" if axis.method else "no method compared"
            raise UsageError(
                f"{owner} has no parameter {axis.key!r} here"
                if axis.method
                else f"{owner} has a parameter {axis.key!r}",
                where=f"--grid {axis.key}",
                fix=did_you_mean(axis.key, every),
            )
        if axis.key in ("method", "profile", "store_tasks", "merge_name"):
            raise UsageError(f"{axis.key} cannot vary in a grid", where=f"--grid {axis.key}")
    for key in fixed:
        if key not in every:
            raise UsageError(
                f"no method compared has a parameter {key!r}",
                where=f"--set {key}",
                fix=did_you_mean(key, every),
            )
