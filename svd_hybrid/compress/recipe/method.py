"""The method of a mergekit recipe and the parameters of the whole recipe, in our words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from svd_hybrid.compress.recipe.record import Record
from svd_hybrid.compress.recipe.settings import Case, chained, overrides_of
from svd_hybrid.errors import UsageError

READS = {
    "linear": ("weight", "normalize"),
    "task_arithmetic": ("weight", "normalize", "lambda"),
    "ties": ("weight", "normalize", "lambda", "density", "rescale"),
    "dare_linear": ("weight", "normalize", "lambda", "density", "rescale"),
    "dare_ties": ("weight", "normalize", "lambda", "density", "rescale"),
}
"""The parameters that change the numbers of a method."""
NORMALISES = ("linear", "ties")
"""The methods that divide by the sum of the weights unless told otherwise."""
TIES = {"trim_scope": "tensor", "zero_sign": "plus", "weight_rule": "mergekit"}


def method_values(
    record: Record, weights: Mapping[str, tuple[Case, ...]], where: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Method and parameters in our words, and the overrides of the latter.

    Args:
        record: the recipe.
        weights: of every task, for what depends on their sum.
        where: its file, for errors.

    Raises:
        UsageError: a value that our method cannot follow.
    """
    method = record.method
    normalize = _shared(record, "normalize", method in NORMALISES)
    factor = _shared(record, "lambda", 1.0)
    rescale = _shared(record, "rescale", method.startswith("dare"))
    if method == "linear":
        if not _flag("normalize", normalize, where):
            _check_sum(weights, where)
        return {"method": "weight-averaging"}, []
    values = {"scaling": factor[-1].first}
    rules = overrides_of("scaling", factor)
    if method == "task_arithmetic":
        average = _flag("normalize", normalize, where)
        return values | {"method": "weight-averaging" if average else "task-arithmetic"}, rules

    def say(key: str, cases: tuple[Case, ...], yes: str, no: str) -> None:
        words = [replace(case, value=yes if case.value else no) for case in cases]
        values[key] = words[-1].value
        rules.extend(overrides_of(key, words))

    if method == "dare_linear":
        say("merge", normalize, "average", "sum")
    else:
        values |= TIES
        say("merge_func", normalize, "mean", "sum")
    if method != "ties":
        say("rescale", rescale, "l1_match", "none")
    elif any(case.value for case in rescale):
        raise UsageError(
            "svdh does not rescale after the trim of ties", where=where, fix="drop key 'rescale'"
        )
    return values | {"method": method.replace("_", "-")}, rules


def _shared(record: Record, key: str, default: Any) -> tuple[Case, ...]:
    return chained(record.shared.get(key, ()), (Case("", default),))


def _flag(key: str, cases: tuple[Case, ...], where: str) -> bool:
    """The one value of a flag that our method has for the whole model."""
    values = {case.value for case in cases}
    if len(values) > 1:
        raise UsageError(
            f"{key} differs between tensors, which svdh can follow only for ties and dare",
            where=where,
            fix="give one value",
        )
    return bool(cases[-1].value)


def _check_sum(weights: Mapping[str, tuple[Case, ...]], where: str) -> None:
    """Weights that are not divided by their sum scale the base too, unless they sum to 1."""
    plain = all(len(cases) == 1 and len(cases[0].values) == 1 for cases in weights.values())
    total = math.fsum(cases[-1].first for cases in weights.values())
    if not plain or abs(total - 1) > 1e-6:
        raise UsageError(
            "normalize is false, and the weights do not sum to 1: that scales the base",
            where=where,
            fix="let them sum to 1 in every tensor, or drop key 'normalize'",
        )
