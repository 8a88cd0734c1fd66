"""The search for a crossing: few trials, goals kept to, ends and jumps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from svd_hybrid.compress.crossing import Crossing

LIMITS = (-16.0, 8.0)


class Counted:
    """A function that knows how often it was asked."""

    def __init__(self, function: Callable[[float], float]) -> None:
        self.function = function
        self.asked: list[float] = []

    def __call__(self, position: float) -> float:
        self.asked.append(position)
        return self.function(position)


def crossing(value: Callable[[float], float], *, rising: bool = True, guess: float = 0.0):
    return Crossing(value, rising=rising, guess=guess, slope=1.0, limits=LIMITS)


@pytest.mark.parametrize("goal", [1e-3, 0.3, 2.0])
@pytest.mark.parametrize("guess", [-20.0, -3.0, 5.0])
def test_a_smooth_function_is_met(goal, guess):
    value = Counted(lambda x: 2.0 ** (0.9 * x) / (1 + 2.0 ** (0.2 * x)))
    found = crossing(value, guess=guess).find(goal)
    assert math.isclose(value.function(found), goal, rel_tol=0.003)
    assert len(value.asked) == len(set(value.asked)) <= 10


def test_what_falls_is_met_as_well():
    value = Counted(lambda x: 1e6 * 2.0 ** (-0.4 * x))
    found = crossing(value, rising=False, guess=2.0).find(1234567.0)
    assert math.isclose(value.function(found), 1234567.0, rel_tol=0.003)


def test_a_position_near_a_trial_is_trusted():
    value = Counted(lambda x: 2.0**x)
    found = crossing(value, guess=0.1).find(1.0, trusted=0.25)
    assert value.asked == [0.1]
    assert math.isclose(2.0**found, 1.0, rel_tol=1e-5)


def test_a_goal_beyond_the_limits_gives_the_limit():
    assert crossing(lambda x: 1.0 + 0.01 * x).find(100.0) == LIMITS[1]
    assert crossing(lambda x: 1.0 + 0.01 * x).find(1e-6) == LIMITS[0]


@pytest.mark.parametrize("edge", [-2.345678, 1.0, 3.3])
def test_at_a_jump_the_side_that_is_allowed_is_taken(edge):
    found = crossing(lambda x: 0.01 if x <= edge else 0.9).find(0.3)
    assert found <= edge


def test_a_constant_ends_the_search():
    value = Counted(lambda x: 0.0)
    assert crossing(value).find(0.3) == LIMITS[1]
    assert len(value.asked) < 12


def test_a_second_goal_uses_the_first_trials():
    value = Counted(lambda x: 2.0**x)
    search = crossing(value, guess=1.0)
    search.find(1.0)
    before = len(value.asked)
    search.find(1.01, trusted=0.1)
    assert len(value.asked) == before
