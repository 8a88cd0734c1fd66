"""Names: which item they find, what a miss suggests, and that no two parameters share one."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from svd_hybrid.cli.compress import compress as compress_command
from svd_hybrid.compress.config import CompressConfig, resolve_config
from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.errors import ParameterError, UnknownNameError
from svd_hybrid.methods import METHODS
from svd_hybrid.registry import did_you_mean


def test_original_spellings_find_the_same_item():
    assert METHODS["SVD_Hybrid"] is METHODS["svd-hybrid"]
    assert "svd_hybrid" in METHODS
    assert "magic" not in METHODS
    assert METHODS["tsvm"] is METHODS["TSV_M"]
    assert METHODS["average"].name == "weight-averaging"
    assert resolve_config({"method": "tsvm"}, "test").method == "tsv-m"


def test_no_parameter_of_a_method_is_hidden_by_another_key():
    """Methods and profiles share one flat configuration, and the command line."""
    own = {field.name for field in fields(CompressConfig)}
    profile = {field.name for params in PROFILE_PARAMS.values() for field in fields(params)}
    assert not own & profile
    flags = [option.name for option in compress_command.params]
    assert len(flags) == len(set(flags))
    for method in METHODS.values():
        names = {field.name for field in fields(method.params)}
        assert "scaling" in names, method.name
        assert not names & (own | profile), method.name
        assert names <= set(flags), method.name


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_every_method_explains_itself(method):
    assert method.summary.endswith(".")
    assert method.source
    assert all(parameter["help"] for parameter in method.parameters)
    assert method.params() == method.params()


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
