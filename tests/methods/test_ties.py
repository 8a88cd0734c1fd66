"""TIES: worked examples, variants against a plain reading of the references, and invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.magnitude import MAGNITUDE
from svd_hybrid.methods.ties import TIES, TiesParams
from svd_hybrid.numerics import blocks
from tests.methods.streams import FAMILY_A, merged, one_vector, random_stacks, stream_of

WEIGHTED = (0.5, 1.25, -0.75)


def ties(deltas: Tensor, **values: object) -> list[float]:
    return merged(TIES, stream_of({"x": deltas}), **values)["x"].tolist()


@pytest.mark.parametrize(
    ("merge_func", "expected"),
    [
        ("mean", [2.5, 2, -2, 3.5, 1.5, 1]),
        ("sum", [5, 4, -6, 7, 3, 1]),
        ("max", [4, 3, -3, 5, 2, 1]),
    ],
)
def test_worked_example_with_a_threshold(merge_func, expected):
    got = ties(FAMILY_A, density=0.5, trim_rule="threshold", merge_func=merge_func)
    assert got == expected


def test_worked_example_of_an_exact_trim():
    stacks = {"x": FAMILY_A}
    for task, expected in enumerate(
        [[4, 0, -3, 0, 2, 0], [-2, 3, 0, 5, 0, 0], [0, -4, -2, 2, 0, 0]]
    ):
        weights = tuple(float(task == other) for other in range(3))
        stream = stream_of(stacks, weights=weights)
        assert merged(MAGNITUDE, stream, density=0.5)["x"].tolist() == expected


def reference(deltas: Tensor, majority: float, rule: str, weights: tuple[float, ...]) -> Tensor:
    """Election and disjoint mean as each reference writes them, on untrimmed (N, D) float64."""
    w = torch.tensor(weights, dtype=torch.float64)[:, None]
    elected = deltas * w if rule == "mergekit" else deltas
    signs = elected.sum(0).sign()
    signs[signs == 0] = majority
    agree = (elected.sign() == signs) & (elected != 0)
    total = (deltas * w * agree).sum(0)
    if rule == "peft":
        return total / agree.sum(0).clamp(min=1)
    divisor = (w * agree).sum(0)
    if rule == "mergekit":
        return total / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return torch.where(divisor > 1e-8, total / torch.where(divisor == 0, 1.0, divisor), 0.0)


@pytest.mark.parametrize("rule", ["peft", "mergekit", "seed004"])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTED])
def test_task_weights_as_each_reference_reads_them(rule, weights):
    stacks = random_stacks(1)
    stream = stream_of(stacks, weights=weights)
    got = one_vector(
        {
            name: values[None]
            for name, values in merged(
                TIES, stream, density=1.0, weight_rule=rule, zero_sign="plus"
            ).items()
        }
    )
    expected = reference(one_vector(stacks).double(), 1.0, rule, weights)
    torch.testing.assert_close(got[0], expected, rtol=1e-6, atol=1e-7)


DRAW = torch.tensor([[1.0, 3.0, -3.0], [-1.0, 2.0, -2.0]])


@pytest.mark.parametrize(
    ("zero_sign", "merge_func", "first"),
    [
        ("majority", "mean", -1.0),  # the authors: a zero selects negative entries
        ("majority", "max", 0.0),  # … but is multiplied by the zero sign
        ("majority-or-none", "mean", 0.0),
        ("plus", "mean", 1.0),
    ],
)
def test_a_draw_of_draws(zero_sign, merge_func, first):
    got = ties(DRAW, density=1.0, zero_sign=zero_sign, merge_func=merge_func)
    expected = {"mean": [2.5, -2.5], "max": [3.0, -3.0]}[merge_func]
    assert got == [first, *expected]


def test_a_draw_takes_the_majority_of_the_whole_model():
    stacks = {"a": DRAW[:, :1], "b": -torch.ones(2, 3)}
    assert merged(TIES, stream_of(stacks), density=1.0)["a"].tolist() == [-1.0]
    assert merged(TIES, stream_of(stacks), density=1.0, trim_scope="tensor")["a"].tolist() == [-1.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"election": "count"}, [1.0]),
        ({"election": "mass"}, [-3.0]),
        ({"election": "none"}, [-1 / 3]),
        ({"merge_func": "plain-mean"}, [-1 / 3]),
        ({"merge_func": "plain-sum"}, [-1.0]),
        ({"merge_func": "median"}, [-1.0]),
        ({"election": "none", "merge_func": "median"}, [1.0]),
        ({"merge_func": "largest"}, [-3.0]),
        ({"election": "none", "merge_func": "max"}, [-3.0]),
    ],
)
def test_elections_and_merges(values, expected):
    deltas = torch.tensor([[1.0], [1.0], [-3.0]])
    assert ties(deltas, density=1.0, **values) == pytest.approx(expected)


def test_norm_elections_weigh_by_the_share_of_each_task():
    deltas = torch.tensor([[1.0, 0.0], [-2.0, 20.0]])  # shares of the first: 1 and 0.0099
    for election in ("norm-mass", "norm-fraction"):
        assert ties(deltas, density=1.0, election=election) == [1.0, 20.0]


scopes = st.sampled_from(["global", "tensor", "row"])


@settings(max_examples=30)
@given(st.integers(0, 50), st.floats(0.05, 1.0), scopes, st.booleans())
def test_order_of_tasks_and_equal_tasks(seed, density, scope, coarse):
    stacks = random_stacks(seed, coarse=coarse)
    values = {"density": density, "trim_scope": scope}
    got = merged(TIES, stream_of(stacks), **values)
    turned = merged(TIES, stream_of({k: x[[2, 0, 1]] for k, x in stacks.items()}), **values)
    for name in stacks:
        torch.testing.assert_close(got[name], turned[name], rtol=1e-6, atol=1e-6)
    single = {name: x[:1] for name, x in stacks.items()}
    thrice = {name: x[:1].repeat(3, *[1] * (x.ndim - 1)) for name, x in stacks.items()}
    alone = merged(TIES, stream_of(single), **values)
    for name, delta in merged(TIES, stream_of(thrice), **values).items():
        torch.testing.assert_close(delta, alone[name], rtol=1e-6, atol=0)


def test_one_task_untrimmed_is_that_task_and_zeros_stay_zeros():
    stacks = random_stacks(3, tasks=1)
    for name, delta in merged(TIES, stream_of(stacks), density=1.0).items():
        assert torch.equal(delta, stacks[name][0].double())
    zeros = {name: torch.zeros_like(x) for name, x in random_stacks(3).items()}
    for scope in ("global", "tensor", "row"):
        for delta in merged(TIES, stream_of(zeros), trim_scope=scope).values():
            assert not delta.any()


@settings(max_examples=30)
@given(st.integers(0, 50), st.floats(0.05, 0.95), st.booleans(), st.integers(0, 66))
def test_a_global_trim_does_not_see_tensor_borders(seed, density, coarse, at):
    stacks = random_stacks(seed, coarse=coarse)
    whole = one_vector(stacks)
    values = {"density": density}
    got = merged(TIES, stream_of(stacks), **values)
    one = merged(TIES, stream_of({"x": whole}), **values)["x"]
    two = merged(TIES, stream_of({"x0": whole[:, :at], "x1": whole[:, at:]}), **values)
    assert torch.equal(torch.cat([got[name].reshape(-1) for name in sorted(got)]), one)
    assert torch.equal(torch.cat([two["x0"], two["x1"]]), one)


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_exact_counts_with_many_equal_magnitudes(scope):
    stacks = {name: x[:1].sign() for name, x in random_stacks(5).items()}
    got = merged(TIES, stream_of(stacks), density=0.4, trim_scope=scope)
    for name, delta in got.items():
        rows = delta.shape[0] if scope == "row" and delta.ndim > 1 else 1
        if scope != "global":
            assert int(delta.count_nonzero()) == rows * int(delta.numel() // rows * 0.4), name
    if scope == "global":
        kept = torch.cat([got[name].reshape(-1) for name in sorted(got)])
        assert kept.nonzero()[:, 0].tolist() == list(range(int(kept.numel() * 0.4)))


def test_block_size_changes_nothing(monkeypatch):
    stacks = random_stacks(7, tasks=9)
    stream = stream_of(stacks)
    before = merged(TIES, stream, density=0.3)
    monkeypatch.setattr(blocks, "CHUNK", 3)
    monkeypatch.setattr("svd_hybrid.numerics.magnitudes.CHUNK", 3)
    after = merged(TIES, stream, density=0.3)
    assert all(torch.equal(before[name], after[name]) for name in stacks)


def test_tasks_may_have_densities_of_their_own():
    stacks = {"x": torch.arange(1.0, 11.0).repeat(2, 1)}
    for task, count in ((0, 1), (1, 5)):
        weights = tuple(float(task == other) for other in range(2))
        stream = stream_of(stacks, weights=weights, densities=(0.1, 0.5))
        delta = merged(TIES, stream, weight_rule="mergekit")["x"]
        assert int(delta.count_nonzero()) == count


def test_scaling_depends_on_the_merge_unless_set():
    assert TiesParams().scaling == 1.0
    assert TiesParams(merge_func="sum").scaling == 0.3
    assert TiesParams(merge_func="sum", scaling=0.7).scaling == 0.7


@pytest.mark.parametrize(
    "values",
    [
        {"density": 0.0}, {"density": 1.5}, {"norm_share": 0.0}, {"std_factor": -1.0},
        {"election": "vote"}, {"zero_sign": "minus"}, {"merge_func": "mode"}, {"trim_rule": "top"},
        {"trim_scope": "layer"}, {"weight_rule": "mine"}, {"scaling": math.nan},
    ],
)  # fmt: skip
def test_parameters_outside_their_range_are_refused(values):
    with pytest.raises(ParameterError, match=next(iter(values))):
        TiesParams(**values)
