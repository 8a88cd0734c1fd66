"""The step that meets a relative error: where each tensor is to keep to it, one of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from svd_hybrid.compress.crossing import Crossing
from svd_hybrid.compress.profiles.base import Tried
from svd_hybrid.compress.profiles.params import DEFAULT_ERROR, SIGNAL_ERROR, AutoParams
from svd_hybrid.numerics.metrics import squared_norm

FINEST, COARSEST = -16.0, 8.0
"""Steps that are looked at, in log2 of the step over the deviation of the deltas."""
GUESS = {"quality": 3.9, "error": 4.7}
"""Step over deviation and error where trained families met their targets (docs/codec.md)."""
AIM = 0.997
"""Of the target."""


def error_guess(error: float, objective: str) -> float:
    """Where a relative error is met, about, in log2 of the step over the deviation."""
    return math.log2(GUESS[objective] * error)


def own_step(stack: Tensor, params: AutoParams, try_at: Callable[[float], Tried]) -> float:
    """The coarsest step, about, at which the relative error of a stack keeps to its target.

    Args:
        stack: (N, m, n) float, not all zero.
        params: with a target error, or none for the default of the objective.
        try_at: step → what it gives.
    """
    default = DEFAULT_ERROR if params.objective == "quality" else SIGNAL_ERROR
    target = params.target_error or default
    deviation = math.sqrt(squared_norm(stack) / stack.numel()) * params.error_weight**0.5

    def error(position: float) -> float:
        return try_at(deviation * 2.0**position).error(worst_task=False)

    crossing = Crossing(
        error,
        rising=True,
        guess=error_guess(target, params.objective),
        slope=1.0,
        limits=(FINEST, COARSEST),
    )
    return float(f"{deviation * 2.0 ** crossing.find(AIM * target):.7g}")
