"""What applies to each tensor: the parameters of the run, and the overrides that fit its name.

Rules are read in order and later ones win. A numeric value may be a gradient over depth: a list
interpolated from the first to the last layer of the stack that the tensor belongs to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from svd_hybrid.compress.config import CompressConfig, Override
from svd_hybrid.errors import ParameterError
from svd_hybrid.io.lookup import match_name
from svd_hybrid.methods import METHODS
from svd_hybrid.patterns import matches_any

SMALLEST_TOTAL = 1e-8
"""Weights whose sum is closer to zero define no average (methods.md §1)."""
LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")


@dataclass(frozen=True, slots=True)
class TensorSettings:
    """The parameters of one tensor.

    Args:
        method: the method's parameter dataclass.
        profile: the profile's.
        weights: factor per task, in task order.
        densities: density per task where some task has its own; else empty.
        keep_base: the merge leaves the tensor as it is in the base.
    """

    method: Any
    profile: Any
    weights: tuple[float, ...]
    densities: tuple[float, ...] = ()
    keep_base: bool = False

    @property
    def scan_key(self) -> tuple[Any, ...]:
        """Equal for tensors that one scan may treat as one model: all but scaling and weights."""
        params = [(f.name, getattr(self.method, f.name)) for f in fields(self.method)]
        return (tuple(item for item in params if item[0] != "scaling"), self.densities)


class FamilySettings:
    """Settings of every tensor of a family.

    Args:
        config: the resolved configuration.
        tasks: task names in order.
        weights: factor per task where no override sets one.
        names: every tensor of the base; depth is measured among them.

    Raises:
        UnknownNameError: a rule names a task that does not exist.
        ParameterError: a value outside its range.
    """

    def __init__(
        self,
        config: CompressConfig,
        tasks: Sequence[str],
        weights: tuple[float, ...],
        names: Iterable[str],
    ) -> None:
        self.config = config
        self.tasks = list(tasks)
        self.common = TensorSettings(config.method_params, config.profile_params, weights)
        averages = METHODS[config.method].weights == "average"
        self._normalises = averages and config.normalize_weights
        self._given = weights
        if self._normalises:  # what an override stands beside: factors whose mean is 1, or given
            self._given = config.weights or tuple(len(weights) * weight for weight in weights)
        self._depth = depths(names)
        self._found: dict[str, TensorSettings] = {}
        self._rules_tasks = [self._task_indices(rule) for rule in config.overrides]

    def of(self, name: str) -> TensorSettings:
        """The settings of one tensor."""
        if name not in self._found:
            self._found[name] = self._resolve(name)
        return self._found[name]

    def _resolve(self, name: str) -> TensorSettings:
        fitting = [
            (rule, tasks)
            for rule, tasks in zip(self.config.overrides, self._rules_tasks, strict=True)
            if matches_any(rule.tensors, name)
        ]
        kept = matches_any(self.config.keep_base, name)
        if not fitting:
            return replace(self.common, keep_base=kept)
        changes: dict[str, Any] = {}
        weights, densities = list(self._given), dict[int, float]()
        for rule, tasks in fitting:
            values = {key: at_depth(value, self._depth[name]) for key, value in rule.values.items()}
            kept = values.pop("keep_base", kept)
            if "weight" in values:
                weight = values.pop("weight")
                weights = [weight if task in tasks else w for task, w in enumerate(weights)]
            if "density" in values and rule.tasks:
                densities |= dict.fromkeys(tasks, values.pop("density"))
            elif "density" in values:
                densities.clear()
            changes |= values
        method = _changed(self.common.method, changes)
        own = any("weight" in rule.values for rule, _ in fitting)
        every = (
            tuple(densities.get(task, method.density) for task in range(len(self.tasks)))
            if densities
            else ()
        )
        return TensorSettings(
            method,
            _changed(self.common.profile, changes),
            self._normalised(weights, name) if own else self.common.weights,
            every,
            kept,
        )

    def _normalised(self, weights: Sequence[float], name: str) -> tuple[float, ...]:
        """Overridden weights of one tensor; those of an average sum to 1 again."""
        if not self._normalises:
            return tuple(weights)
        total = math.fsum(weights)
        if abs(total) < SMALLEST_TOTAL:
            raise ParameterError(
                f"weights of tensor {name!r} sum to {total:g}, so they define no average",
                where="overrides",
                fix="pass other weights, or --no-normalize-weights",
            )
        return tuple(weight / total for weight in weights)

    @property
    def method_params(self) -> list[Any]:
        """The method's parameters as some rule may make them."""
        names = [*self._depth]
        return [self.of(name).method for name in names] or [self.common.method]

    def _task_indices(self, rule: Override) -> set[int]:
        if not rule.tasks:
            return set(range(len(self.tasks)))
        found = (match_name(task, self.tasks, "task", "overrides") for task in rule.tasks)
        return {self.tasks.index(task) for task in found}


def _changed(params: Any, changes: Mapping[str, Any]) -> Any:
    """The dataclass with those changes that are fields of it."""
    known = {f.name for f in fields(params)}
    own = {key: value for key, value in changes.items() if key in known}
    return replace(params, **own) if own else params


def at_depth(value: Any, depth: float) -> Any:
    """A value, or what its gradient gives at a depth in [0, 1] by linear interpolation.

    >>> at_depth(0.3, 0.5), at_depth({"gradient": [0.0, 1.0, 0.0]}, 0.25)
    (0.3, 0.5)
    """
    if not isinstance(value, Mapping):
        return value
    points = value["gradient"]
    position = depth * (len(points) - 1)
    lower = min(math.floor(position), max(len(points) - 2, 0))
    upper = min(lower + 1, len(points) - 1)
    share = position - lower
    return points[lower] * (1 - share) + points[upper] * share


def depths(names: Iterable[str]) -> dict[str, float]:
    """Depth of every tensor in [0, 1], from the first number in its dotted name.

    Tensors without a layer number lie at the start when they are embeddings, at the end otherwise;
    so does the layer of a stack of one, as in mergekit.

    >>> depths(["embed.weight", "h.0.w", "h.1.w", "h.2.w", "head.weight"])
    {'embed.weight': 0.0, 'h.0.w': 0.0, 'h.1.w': 0.5, 'h.2.w': 1.0, 'head.weight': 1.0}
    """
    found = {name: LAYER_NUMBER.search(name) for name in names}
    last: dict[str, int] = {}
    for name, match in found.items():
        if match:
            stack = name[: match.start(1)]
            last[stack] = max(last.get(stack, 0), int(match[1]))
    depth = {}
    for name, match in found.items():
        if match:
            end = last[name[: match.start(1)]]
            depth[name] = int(match[1]) / end if end else 1.0
        else:
            depth[name] = 0.0 if "embed" in name.lower() else 1.0
    return depth
