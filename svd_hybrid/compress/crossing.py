"""Where something that rises or falls with a position meets a goal, by as few trials as will do."""

from __future__ import annotations

import math
from collections.abc import Callable

TRIALS = 12
CLOSE = 0.003
"""Relative distance from the goal at which a search stops."""
FAR = 4.0
"""Distance from the goal, in log2, that counts at most: errors of few numbers jump."""
LONGEST = 3.0
"""Longest step where the goal is not between two trials."""
SLOPES = (0.25, 4.0)
"""Slopes that two trials may be believed to show."""
NARROW = 1e-4
"""Positions as near as this are not told apart."""


class Crossing:
    """A bracketed secant search on logarithms; what was tried once is remembered.

    Args:
        value: position → what is compared with a goal, ≥ 0; costly.
        rising: whether it rises with the position.
        guess: where to begin.
        slope: of log2 of the value, its sign left out, as long as nothing better is known.
        limits: lowest and highest position.
    """

    def __init__(
        self,
        value: Callable[[float], float],
        *,
        rising: bool,
        guess: float,
        slope: float,
        limits: tuple[float, float],
    ) -> None:
        self._value = value
        self._sign = 1.0 if rising else -1.0
        self._slope = slope
        self._limits = limits
        self._guess = round(min(max(guess, limits[0] + 1), limits[1] - 1), 6)
        self.tried: dict[float, float] = {}

    def value(self, position: float) -> float:
        """What the position gives."""
        if position not in self.tried:
            self.tried[position] = self._value(position)
        return self.tried[position]

    def find(self, goal: float, trusted: float = 0.0) -> float:
        """The position where the value meets a goal, or the nearest on the side that is allowed.

        Args:
            goal: above 0.
            trusted: a position no farther from one that was tried is taken without a trial.
        """

        def excess(position: float) -> float:  # rises with the position
            return self._sign * math.log2(max(self.value(position), 1e-12) / goal)

        if not self.tried:
            self.value(self._guess)
        for _ in range(TRIALS):
            known = sorted(self.tried)
            low = max((p for p in known if excess(p) <= 0), default=None)
            high = min(
                (p for p in known if excess(p) > 0 and (low is None or p > low)), default=None
            )
            nearest = min(known, key=lambda p: abs(excess(p)))
            if abs(excess(nearest)) < CLOSE or self._is_beyond(nearest, excess(nearest)):
                return nearest
            if low is not None and high is not None:
                if high - low < NARROW:
                    return low
                under, over = max(excess(low), -FAR), min(excess(high), FAR)
                share = min(max(-under / (over - under), 0.02), 0.98)
                position = low + share * (high - low)
            else:
                end = known[0] if low is None else known[-1]
                step = -excess(end) / self._slope_at(end, excess)
                position = end + min(max(step, -LONGEST), LONGEST)
            position = round(min(max(position, self._limits[0]), self._limits[1]), 6)
            if min(abs(position - other) for other in known) <= trusted:
                return position
            self.value(position)
        return nearest if low is None else low

    def _is_beyond(self, position: float, excess: float) -> bool:
        """Whether no position meets the goal."""
        return position == self._limits[1 if excess <= 0 else 0]

    def _slope_at(self, position: float, excess: Callable[[float], float]) -> float:
        """Of the excess around a position that was tried."""
        others = [p for p in self.tried if p != position]
        if not others:
            return self._slope
        other = min(others, key=lambda p: abs(p - position))
        found = (excess(other) - excess(position)) / (other - position)
        return min(max(found, SLOPES[0]), SLOPES[1])
