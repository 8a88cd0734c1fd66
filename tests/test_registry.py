"""Names that miss: the closest known ones, or a list that stays short."""

from __future__ import annotations

import math

import pytest

from svd_hybrid.compress.config import resolve_config
from svd_hybrid.errors import ParameterError, UnknownNameError
from svd_hybrid.methods import METHODS
from svd_hybrid.registry import did_you_mean


def test_original_spellings_find_the_same_item():
    assert METHODS["SVD_Hybrid"] is METHODS["svd-hybrid"]
    assert "svd_hybrid" in METHODS
    assert "ties" not in METHODS


def test_a_close_name_is_suggested():
    with pytest.raises(UnknownNameError, match="did you mean 'svd-hybrid'"):
        METHODS["svd_hybrd"]


def test_a_list_of_many_names_stays_short():
    names = [f"task-{number:03d}" for number in range(100)]
    assert did_you_mean("q", names).endswith("task-011, and 88 more")
    assert did_you_mean("q", names[:2]) == "known: task-000, task-001"


def test_an_infinite_integer_is_a_wrong_value_and_no_bug_of_ours():
    with pytest.raises(ParameterError, match="max_rank is inf, must be an integer"):
        resolve_config({"max_rank": math.inf}, "recipe.yml")
