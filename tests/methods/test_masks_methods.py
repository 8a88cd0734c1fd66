"""TALL masks, consensus, EMR and magnitude masking: worked examples and reloads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.consensus import CONSENSUS, ConsensusParams
from svd_hybrid.methods.emr import EMR, EmrParams
from svd_hybrid.methods.magnitude_masking import MAGNITUDE_MASKING
from svd_hybrid.methods.steps.multitask import GRID
from svd_hybrid.methods.tall_masks import TALL_MASKS, TallMasksParams
from svd_hybrid.methods.ties import TIES
from tests.methods.streams import (
    FAMILY_A,
    merged,
    one_vector,
    random_stacks,
    rebuilt,
    results,
    stream_of,
)

EXAMPLE = stream_of({"x": FAMILY_A})


def bits(masks: torch.Tensor) -> list[str]:
    return ["".join(str(int(bit)) for bit in row.reshape(-1)) for row in masks]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.2, ["111011", "110101", "111110"]),
        (0.4, ["111011", "010101", "111010"]),
        (0.6, ["111011", "010101", "010000"]),
    ],
)
def test_worked_tall_masks(value, expected):
    found = results(TALL_MASKS, EXAMPLE, lambdas=(value,))["x"]
    assert bits(found.parts["mask"]) == expected
    assert found.parts["merged"].tolist() == [[3, 0, -6, 7, 3, 0]]


def test_worked_reloads_and_consensus():
    assert rebuilt(TALL_MASKS, EXAMPLE)["x"].tolist() == [
        [3, 0, -6, 0, 3, 0], [0, 0, 0, 7, 0, 0], [3, 0, -6, 0, 3, 0],
    ]  # fmt: skip
    assert merged(CONSENSUS, EXAMPLE)["x"].tolist() == [3, 0, -6, 0, 3, 0]


def test_one_lambda_per_task():
    found = results(TALL_MASKS, EXAMPLE, lambdas=(0.2, 0.4, 0.6))["x"]
    assert bits(found.parts["mask"]) == ["111011", "010101", "010000"]


def test_the_number_of_lambdas_must_fit():
    with pytest.raises(ParameterError, match="2 lambdas for 3 tasks"):
        results(TALL_MASKS, EXAMPLE, lambdas=(0.2, 0.4))


@settings(max_examples=20)
@given(st.integers(0, 50), st.sampled_from(["sum", "ties"]))
def test_auto_lambdas_rebuild_best(seed, vector):
    stacks = random_stacks(seed)
    stream = stream_of(stacks)
    wanted = one_vector(stacks).double()

    def errors(**values: object) -> torch.Tensor:
        got = one_vector(rebuilt(TALL_MASKS, stream, vector=vector, **values))
        return (got - wanted).square().sum(1)

    best = torch.stack([errors(lambdas=(value,)) for value in GRID]).amin(0)
    torch.testing.assert_close(errors(lambda_choice="auto"), best, rtol=1e-9, atol=0)


def test_consensus_between_none_and_all():
    stacks = random_stacks(4)
    stream = stream_of(stacks)
    everything = merged(CONSENSUS, stream, min_tasks=0)
    nothing = merged(CONSENSUS, stream, min_tasks=4)
    for name, x in stacks.items():
        torch.testing.assert_close(everything[name], x.double().sum(0), rtol=1e-6, atol=1e-6)
        assert not nothing[name].any()


def test_the_ties_vector_is_that_of_the_authors():
    stream = stream_of(random_stacks(5))
    got = merged(TALL_MASKS, stream, vector="ties")
    expected = merged(TIES, stream, density=0.2, trim_rule="threshold", merge_func="sum")
    assert all(torch.equal(got[name], expected[name]) for name in got)


@pytest.mark.parametrize("method", [TALL_MASKS, CONSENSUS], ids=lambda m: m.name)
def test_given_masks_are_used(method):
    masks = torch.zeros(3, 6, dtype=torch.bool)
    masks[:2, 2] = True
    stream = stream_of({"x": FAMILY_A}, masks={"x": masks})
    if method is CONSENSUS:
        assert merged(method, stream)["x"].tolist() == [0, 0, -6, 0, 0, 0]
    else:
        assert torch.equal(results(method, stream)["x"].parts["mask"][:, 0], masks)
        results(method, stream, lambda_choice="auto")  # nothing to choose


@pytest.mark.parametrize("method", [TALL_MASKS, EMR, MAGNITUDE_MASKING], ids=lambda m: m.name)
def test_one_task_is_rebuilt_exactly(method):
    stacks = random_stacks(6, tasks=1)
    values = {"density": 1.0} if method is MAGNITUDE_MASKING else {}
    for name, delta in rebuilt(method, stream_of(stacks), **values).items():
        assert torch.equal(delta, stacks[name].double())


def test_masks_are_of_weights_in_float32():
    base = torch.tensor([1.0, 1.0])
    deltas = torch.tensor([[1e-9, 0.5], [1e-9, 0.25]])  # the first is lost in the weights
    stream = stream_of({"x": deltas}, bases={"x": base})
    assert bits(results(TALL_MASKS, stream)["x"].parts["mask"]) == ["01", "01"]


def test_worked_emr():
    found = results(EMR, EXAMPLE)["x"]
    assert found.parts["merged"].tolist() == [[4, -4, -3, 5, 2, -1]]
    assert bits(found.parts["mask"]) == ["101011", "001100", "111110"]
    gains = EMR.scan(EXAMPLE, EmrParams()).task_gains
    assert gains == pytest.approx((1.1, 1.5, 5 / 9))
    first = rebuilt(EMR, EXAMPLE)["x"][0] * gains[0]
    assert first.tolist() == pytest.approx([4.4, 0, -3.3, 0, 2.2, -1.1])


def test_emr_gains_by_tensor_mean_count_every_tensor_alike():
    stacks = {"a": torch.tensor([[4.0], [2.0]]), "b": torch.tensor([[1.0, 1, 1], [1, 1, 3]])}
    stream = stream_of(stacks)
    # task 1: own (2, 5 / 3); masked unified (4, 5 / 3)
    got = EMR.scan(stream, EmrParams(rescale_norm="tensor_mean")).task_gains
    assert got == pytest.approx((5 / (4 + 5 / 3), (2 + 5 / 3) / (4 + 5 / 3)))
    assert EMR.scan(stream, EmrParams()).task_gains == pytest.approx((7 / 9, 7 / 9))


def test_emr_of_nothing_has_gain_one_and_weights_only_elect():
    assert EMR.scan(stream_of({"x": torch.zeros(2, 3)}), EmrParams()).task_gains == (1.0, 1.0)
    stream = stream_of({"x": torch.tensor([[1.0], [-2.0]])}, weights=(4.0, 1.0))
    found = results(EMR, stream)["x"]
    assert found.parts["merged"].item() == 4.0
    assert bits(found.parts["mask"]) == ["1", "0"]
    assert EMR.scan(stream, EmrParams()).task_gains == (0.25, 1.0)


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_magnitude_masks_have_the_density_even_over_zeros(scope):
    stacks = {name: x * 0 for name, x in random_stacks(7).items()}
    found = results(MAGNITUDE_MASKING, stream_of(stacks), density=0.5, trim_scope=scope)
    selected = sum(int(result.parts["mask"][0].sum()) for result in found.values())
    expected = {"global": 33, "tensor": 17 + 3 + 12, "row": 5 * 3 + 3 + 3 * 4}[scope]
    assert selected == expected


@pytest.mark.parametrize("method", [TALL_MASKS, EMR, CONSENSUS, MAGNITUDE_MASKING])
def test_zero_deltas_give_zeros(method):
    zeros = stream_of({name: torch.zeros_like(x) for name, x in random_stacks(8).items()})
    for delta in merged(method, zeros).values():
        assert not delta.any()


def test_lambdas_and_counts_outside_their_range_are_refused():
    for values in ({"lambdas": (-0.1,)}, {"lambdas": (0.1,), "lambda_choice": "auto"}):
        with pytest.raises(ParameterError, match="lambdas"):
            TallMasksParams(**values)
    with pytest.raises(ParameterError, match="min_tasks"):
        ConsensusParams(min_tasks=-1)


@pytest.mark.parametrize("method", [TALL_MASKS, CONSENSUS, EMR, MAGNITUDE_MASKING, TIES])
def test_a_model_without_tensors_can_be_scanned(method):
    method.scan(stream_of({}), method.params())
