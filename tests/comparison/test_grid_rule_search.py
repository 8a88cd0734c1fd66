"""Grids, the rules that choose, early stopping, and the search of weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.comparison.grid import combinations, parse_axis
from svd_hybrid.comparison.rule import RULES, Best, EarlyStop
from svd_hybrid.comparison.search import SearchSettings, search_weights
from svd_hybrid.errors import ParameterError, UnknownNameError, UsageError
from svd_hybrid.evaluation.base import Metric
from svd_hybrid.evaluation.result import References
from svd_hybrid.evaluation.scoring import TaskScore

HIGHER, LOWER = Metric("accuracy", True), Metric("perplexity", False)


def test_ranges_hold_both_ends_and_no_rounding():
    values = parse_axis("scaling=0.1:3.0:0.1").values
    assert (len(values), values[0], values[2], values[-1]) == (30, "0.1", "0.3", "3")
    assert parse_axis("max-rank=16,32,16").values == ("16", "32")
    assert parse_axis("ties.density=0.1") == parse_axis("TIES.density = 0.1")


@pytest.mark.parametrize(
    "text", ["density", "=1", "density=", "a=1,,2", "a=1:2", "a=2:1:1", "a=1:2:0", "a=1:nan:1"]
)
def test_axes_that_are_none(text):
    with pytest.raises(UsageError, match="grid"):
        parse_axis(text)


def test_scalings_are_tried_on_one_merge():
    axes = [parse_axis("scaling=0.5,1"), parse_axis("ties.density=0.1,0.2"), parse_axis("seed=3")]
    found = list(combinations(["ties", "dare-linear", "iso_c"], axes, {"weights": "1,2"}))
    assert [(c.config.method, dict(c.varied), c.scalings) for c in found] == [
        ("ties", {"density": 0.1}, (0.5, 1.0)),
        ("ties", {"density": 0.2}, (0.5, 1.0)),
        ("dare-linear", {"seed": 3}, (0.5, 1.0)),
        ("iso-c", {}, (0.5, 1.0)),
    ]
    assert found[0].config.weights == (1.0, 2.0)
    (alone,) = combinations(["task-arithmetic"], [], {})
    assert alone.scalings == (0.3,)


@pytest.mark.parametrize(
    ("methods", "grids", "fixed", "text"),
    [
        (["ties"], ["densty=0.1"], {}, "no method compared has a parameter 'densty'"),
        (["ties"], ["iso-c.scaling=1"], {}, "method iso-c has no parameter"),
        (["ties"], ["density=2"], {}, "density"),
        (["ties"], ["density=0.1", "ties.density=0.2"], {}, "two grids of one parameter"),
        (["ties", "TIES"], [], {}, "named twice"),
        (["ties"], [], {"tempo": "1"}, "no method compared has a parameter 'tempo'"),
        (["ties"], ["store_tasks=on,off"], {}, "cannot vary"),
    ],
)
def test_grids_that_cannot_be_meant(methods, grids, fixed, text):
    with pytest.raises(UsageError, match=text):
        list(combinations(methods, [parse_axis(grid) for grid in grids], fixed))


def test_an_unknown_method_is_named_with_the_closest():
    with pytest.raises(UnknownNameError, match="did you mean 'ties'"):
        list(combinations(["tise"], [], {}))


def found(metric: Metric, **scores: float) -> dict[str, TaskScore]:
    return {task: TaskScore({metric.name: score}, 10) for task, score in scores.items()}


def test_rules():
    references = References("fine-tuned", {"a": 80.0, "b": 40.0})
    scores = found(HIGHER, a=40.0, b=40.0)
    values = {name: rule.value(scores, references, HIGHER) for name, rule in RULES.items()}
    assert values == {"normalised": 0.75, "worst": 0.5, "mean": 40.0}
    scores = found(LOWER, a=160.0, b=40.0)
    values = {name: rule.value(scores, references, LOWER) for name, rule in RULES.items()}
    assert values == {"normalised": 0.75, "worst": 0.5, "mean": -100.0}
    assert RULES["normalised"].value(found(HIGHER, a=1.0, c=1.0), references, HIGHER) is None
    assert RULES["mean"].value({}, references, HIGHER) is None


def test_the_first_of_equal_candidates_wins_and_zero_does_not():
    best = Best(0.0)
    assert [best.offer(value) for value in (0.0, None, 0.5, 0.5, 0.4)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert (best.index, best.value) == (2, 0.5)


def test_a_grid_stops_after_three_scalings_without_gain():
    values = [1.0, 2.0, 1.9, 2.0, 1.8, 9.0]
    stop = EarlyStop()
    assert [stop.after(value) for value in values[:5]] == [False, False, False, False, True]
    assert not any(EarlyStop(0).after(value) for value in [*values, *[0.0] * 9])
    diverging = EarlyStop(2)
    assert [diverging.after(v) for v in (1.0, None, None)] == [False, False, True]


@given(
    goal=st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=4),
    budget=st.integers(1, 300),
)
def test_the_search_is_repeatable_and_never_worse_than_where_it_began(goal, budget):
    tried: list[tuple[float, ...]] = []

    def value(weights: tuple[float, ...]) -> float:
        tried.append(weights)
        return -sum((w - g) ** 2 for w, g in zip(weights, goal, strict=True))

    result = search_weights(value, len(goal), SearchSettings(budget=budget))
    assert len(set(tried)) == len(tried) == result.tried <= budget
    assert result.value == max(map(value, list(tried)))
    first = list(tried)[: result.tried]
    tried.clear()
    assert search_weights(value, len(goal), SearchSettings(budget=budget)) == result
    assert tried == first


def test_the_search_finds_weights_to_its_smallest_step():
    goal = (0.8, 0.35, 0.0)
    result = search_weights(
        lambda w: -sum(abs(a - b) for a, b in zip(w, goal, strict=True)), 3, SearchSettings(500)
    )
    assert result.complete
    assert max(abs(a - b) for a, b in zip(result.weights, goal, strict=True)) <= 0.05


def test_diverging_weightings_are_passed_over():
    result = search_weights(lambda w: None if w[0] > 0.5 else w[0], 1)
    assert result.weights == (0.5,)
    with pytest.raises(ParameterError, match="every weighting"):
        search_weights(lambda w: None, 1)


@pytest.mark.parametrize("settings", [{"budget": 0}, {"step": 0.0}, {"smallest_step": 0.5}])
def test_search_settings(settings):
    with pytest.raises(ParameterError):
        SearchSettings(**settings)
