"""`module:function` evaluators: what they may return, and one error for each mistake."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from svd_hybrid.errors import UsageError
from svd_hybrid.evaluation.base import EvaluationError, Metric, checked
from svd_hybrid.evaluation.callable import load_callable
from svd_hybrid.evaluation.split import Part
from tests.evaluation import scorers

HERE = "tests.evaluation.scorers"
STATE = {"block.weight": torch.ones(2, 2)}


def score(name: str, task: str = "ant") -> dict[str, float]:
    evaluator = load_callable(f"{HERE}:{name}", ["ant"])
    return checked(evaluator.open(STATE)(task), evaluator, task)


def test_numbers_mappings_and_tensors_are_scores():
    assert score("norm") == {"score": 2.0}
    assert score("error") == {"error": 1.0}
    assert score("closeness") == {"closeness": pytest.approx(99.7)}


def test_metrics_say_which_way_is_better():
    evaluator = load_callable(f"{HERE}:error", ["ant"])
    assert evaluator.metrics == (Metric("error", False),)
    assert evaluator.metrics[0].better(1.0, 2.0)
    assert evaluator.metrics[0].normalised(4.0, 2.0) == 0.5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nan", "gave score = nan"),
        ("wrong_keys", "'los'.*declares 'accuracy', 'loss'"),
        ("one_number", "one number, it declares 2"),
        ("text", "gave score = 'good'"),
        ("broken", "evaluator failed: KeyError: 'no.such.tensor'"),
    ],
)
def test_scores_that_are_none(name, text):
    with pytest.raises(EvaluationError, match=text):
        score(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (f"{HERE}:nothing", "no function 'nothing'"),
        (f"{HERE}:no_function", "no function 'no_function'"),
        (f"{HERE}:wrong_direction", "declares metrics"),
        ("no_such_module_here:f", "module 'no_such_module_here' cannot be imported"),
        (":f", "not MODULE:FUNCTION"),
    ],
)
def test_functions_that_are_none(name, text):
    with pytest.raises(UsageError, match=text):
        load_callable(name, [])


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "half_written_scorers.py").write_text("def score(state, task:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot be imported: SyntaxError"):
        load_callable("half_written_scorers:score", [])


def test_a_function_is_told_the_part_if_it_asks():
    scorers.CALLS.clear()
    evaluator = load_callable(f"{HERE}:closeness", ["ant"]).restricted(Part("test"))
    evaluator.open(STATE)("ant")
    assert scorers.CALLS == [("ant", "test")]
    with pytest.raises(UsageError, match="no parts"):
        load_callable(f"{HERE}:norm", ["ant"]).restricted(Part("validation"))


def test_identity_is_what_the_function_says_with_its_source_and_part():
    evaluator = load_callable(f"{HERE}:closeness", ["ant"])
    known = evaluator.identity("ant")
    assert known is not None
    assert known["own"] == {"data": "v1"}
    assert known["source"]
    assert evaluator.restricted(Part("test")).identity("ant") != known
    assert load_callable(f"{HERE}:norm", ["ant"]).identity("ant") is None


def test_a_numpy_scalar_is_a_number_and_an_array_is_none():
    evaluator = load_callable(f"{HERE}:norm", ["ant"])

    def score_of(value: object) -> dict[str, float]:
        made = replace(evaluator, function=lambda state, task: value)
        return checked(made.open(STATE)("ant"), made, "ant")

    assert score_of(np.float32(0.5)) == {"score": 0.5}
    with pytest.raises(EvaluationError, match="no finite number"):
        score_of(np.ones(3))
