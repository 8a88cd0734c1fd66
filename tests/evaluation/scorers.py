"""Evaluators as users write them: functions of a state dict and a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

CALLS: list[tuple[str, str]] = []
"""(task, part) of every call; tests clear it."""


def _declared(**facts: Any) -> Callable[[Any], Any]:
    def put(function: Any) -> Any:
        for name, value in facts.items():
            setattr(function, name, value)
        return function

    return put


@_declared(metrics={"closeness": "higher"}, identity={"data": "v1"})
def closeness(state: Mapping[str, Any], task: str, part: str = "all") -> dict[str, float]:
    """100 less the distance of one tensor to a target that task and part decide."""
    CALLS.append((task, part))
    goal = 1.0 + 0.1 * len(task) + (0.05 if part == "test" else 0.0)
    distance = (state["block.weight"].double() - goal).abs().mean()
    return {"closeness": 100.0 - float(distance)}


@_declared(metrics={"error": "lower"})
def error(state: Mapping[str, Any], task: str, part: str = "all") -> torch.Tensor:
    """The mean square of one tensor, as a tensor."""
    return state["block.weight"].double().square().mean()


@_declared(metrics={"gain": "higher"})
def gain(state: Mapping[str, Any], task: str, part: str = "all") -> float:
    """Never above zero."""
    return -float(state["block.weight"].double().square().mean())


def norm(state: Mapping[str, Any], task: str) -> float:
    """No parts, no metrics, no identity."""
    return float(state["block.weight"].double().norm())


@_declared(tasks=("ant",))
def only_ant(state: Mapping[str, Any], task: str) -> float:
    return 1.0


def nan(state: Mapping[str, Any], task: str) -> float:
    return math.nan


@_declared(metrics={"accuracy": "higher", "loss": "lower"})
def wrong_keys(state: Mapping[str, Any], task: str) -> dict[str, float]:
    return {"accuracy": 1.0, "los": 2.0}


@_declared(metrics={"accuracy": "higher", "loss": "lower"})
def one_number(state: Mapping[str, Any], task: str) -> float:
    return 1.0


@_declared(metrics={"accuracy": "up"})
def wrong_direction(state: Mapping[str, Any], task: str) -> float:
    return 1.0


def text(state: Mapping[str, Any], task: str) -> str:
    return "good"


def broken(state: Mapping[str, Any], task: str) -> float:
    return float(state["no.such.tensor"].sum())


no_function = 3
