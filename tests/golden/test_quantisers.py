"""The residual quantiser against every stored rtvq_* and tvq_* case."""

from __future__ import annotations

import pytest
import torch

from tests.golden.compare import (
    BOUNDARY,
    EPSILON_F32,
    Case,
    Stage,
    assert_same_stage,
    boundary_distance,
    golden_case,
    quantise,
    relative_error,
    worst_error,
)

pytestmark = pytest.mark.golden

CONSTANT = "a constant has scale inf and comes back NaN (head), or as 0 (seed); ours is exact"
NO_RESIDUAL = "an earlier stage is exact, so the residual is 0 and its scale inf; ours adds 0"
CLAMPED = "seed clamps the zero point, which saturates values on one side of 0; ours does not"
ON_BOUNDARY = "scale * x is half way between two codes, where float32 and float64 may differ"
NOISE = "the residual is the float32 rounding of an exact earlier stage; its codes mean nothing"

CONSTANTS = dict.fromkeys(("single", "constant", "zeros"), CONSTANT)
ONE_SIDED = dict.fromkeys(("positive", "negative"), CLAMPED)

RTVQ: dict[str, dict[str, str]] = {
    "rtvq_head_b2_s3": {**CONSTANTS, "two_values": NO_RESIDUAL, "halfway": ON_BOUNDARY},
    "rtvq_head_b4_s2": {**CONSTANTS, "two_values": NOISE},
    "rtvq_head_b8_s1": CONSTANTS,
    "rtvq_seed_b4_s2": {**CONSTANTS, **ONE_SIDED, "two_values": CLAMPED},
}
"""Per case: the tensors whose stored numbers ours must not equal, and why."""

TVQ: dict[str, dict[str, str]] = {"tvq_head": CONSTANTS, "tvq_seed": {**CONSTANTS, **ONE_SIDED}}

HANDLED = {*RTVQ, *TVQ}
KINDS = ("scale", "zero_point")
TENSORS = (
    *("constant", "halfway", "matrix", "negative", "normal", "outlier"),
    *("positive", "single", "tiny", "two_values", "zeros"),
)


def stored_stages(case: Case, tensor: str, stages: int) -> list[Stage]:
    codes = case.load("codes")
    keys = [f"{tensor}/stage{index}" for index in range(stages)]
    return [
        Stage(codes[f"{key}/quantized"].flatten(), *(float(codes[f"{key}/{k}"]) for k in KINDS))
        for key in keys
    ]


def cells(table: dict[str, dict[str, str]], *reasons: str) -> list[tuple[str, str]]:
    """(case, tensor) of a table whose difference is one of `reasons`; none: those without one."""
    wanted = reasons or (None,)
    return [
        (case, tensor)
        for case, different in table.items()
        for tensor in TENSORS
        if different.get(tensor) in wanted
    ]


@pytest.mark.parametrize(("name", "tensor"), cells(RTVQ))
def test_codes_scales_and_values_are_those_of_the_reference(golden, name, tensor):
    case = golden_case(golden, name)
    bits, stages = case.facts["params"].values()
    x = case.load("inputs")[tensor]
    ours, decoded = quantise(x, bits, stages)
    for index, theirs in enumerate(stored_stages(case, tensor, stages)):
        assert_same_stage(ours[index], theirs, float(x.abs().max()), bits, index)
    want = case.load("dequantized")[tensor]
    assert relative_error(decoded, want) <= case.tolerance("dequantized")


@pytest.mark.parametrize(("name", "tensor"), cells(RTVQ, CONSTANT, NO_RESIDUAL))
def test_constants_and_empty_residuals_come_back_exactly_where_the_reference_fails(
    golden, name, tensor
):
    case = golden_case(golden, name)
    bits, stages = case.facts["params"].values()
    x, theirs = case.load("inputs")[tensor], case.load("dequantized")[tensor]
    ours, decoded = quantise(x, bits, stages)
    assert torch.equal(decoded, x)
    assert ours[-1].scale == float("inf") or tensor != "zeros"  # a step of 0: nothing to add
    wrong = not torch.isfinite(theirs).all() or not torch.equal(theirs, x)
    assert wrong or tensor == "zeros"  # seed is right about zeros, by returning 0 for all constants
    if "head" in name:
        assert tensor in case.nonfinite("dequantized")


@pytest.mark.parametrize(("name", "tensor"), cells(RTVQ, CLAMPED))
def test_one_sided_values_keep_their_zero_point_where_seed_clamps_it(golden, name, tensor):
    case = golden_case(golden, name)
    bits, stages = case.facts["params"].values()
    x, theirs = case.load("inputs")[tensor], case.load("dequantized")[tensor]
    _, decoded = quantise(x, bits, stages)
    error = float((decoded - x).abs().max())
    assert error <= worst_error(x, bits, stages)
    assert float((theirs - x).abs().max()) > 10 * error
    right = golden_case(golden, "rtvq_head_b4_s2").load("dequantized")[
        tensor
    ]  # the repaired quantiser
    assert relative_error(decoded, right) <= case.tolerance("dequantized")


@pytest.mark.parametrize(("name", "tensor"), cells(RTVQ, ON_BOUNDARY))
def test_codes_differ_from_the_reference_only_on_a_rounding_boundary(golden, name, tensor):
    case = golden_case(golden, name)
    bits, stages = case.facts["params"].values()
    x = case.load("inputs")[tensor]
    ours, decoded = quantise(x, bits, stages)
    theirs = stored_stages(case, tensor, stages)[0]
    differs = ours[0].codes != theirs.codes
    assert differs.any()
    assert boundary_distance(x, theirs)[differs].max() < BOUNDARY
    assert (ours[0].codes.int() - theirs.codes.int()).abs().max() == 1
    assert float((decoded - x).abs().max()) <= worst_error(x, bits, stages)


@pytest.mark.parametrize(("name", "tensor"), cells(RTVQ, NOISE))
def test_values_agree_though_the_last_stage_holds_only_rounding_noise(golden, name, tensor):
    case = golden_case(golden, name)
    bits, stages = case.facts["params"].values()
    x = case.load("inputs")[tensor]
    ours, decoded = quantise(x, bits, stages)
    first, last = stored_stages(case, tensor, stages)
    assert_same_stage(ours[0], first, float(x.abs().max()), bits, 0)
    residual_range = (2**bits - 1) / last.scale
    assert residual_range <= 4 * EPSILON_F32 * float(x.abs().max())
    assert relative_error(decoded, case.load("dequantized")[tensor]) <= case.tolerance(
        "dequantized"
    )


@pytest.mark.parametrize(("name", "tensor"), cells(TVQ))
def test_one_stage_is_the_asymmetric_quantiser_of_the_reference(golden, name, tensor):
    case = golden_case(golden, name)
    x, stored = case.load("inputs")[tensor], case.load("codes")
    for bits in case.facts["params"]["bits"]:
        key = f"asym{bits}/{tensor}"
        theirs = Stage(
            stored[f"{key}/quantized"].flatten(), *(float(stored[f"{key}/{k}"]) for k in KINDS)
        )
        (ours,), decoded = quantise(x, bits, 1)
        differs = ours.codes != theirs.codes
        if differs.any():
            assert boundary_distance(x, theirs)[differs].max() < BOUNDARY
            continue
        assert_same_stage(ours, theirs, float(x.abs().max()), bits, 0)
        assert relative_error(decoded, stored[f"{key}/dequantized"]) <= 1e-5  # as case.json states


@pytest.mark.parametrize(("name", "tensor"), cells(TVQ, CONSTANT, CLAMPED))
def test_one_stage_is_right_where_the_asymmetric_reference_is_not(golden, name, tensor):
    case = golden_case(golden, name)
    x, stored = case.load("inputs")[tensor], case.load("codes")
    for bits in case.facts["params"]["bits"]:
        _, decoded = quantise(x, bits, 1)
        error = float((decoded - x).abs().max())
        assert error <= (worst_error(x, bits, 1) if tensor in ONE_SIDED else 0.0)
        theirs = stored[f"asym{bits}/{tensor}/dequantized"]
        assert tensor == "zeros" or not (theirs - x).abs().max() <= 10 * error  # NaN or far off


@pytest.mark.parametrize("name", TVQ)
def test_the_symmetric_quantiser_we_leave_out_is_never_better_in_the_worst_case(golden, name):
    """absmax cases hold for a quantiser svdh does not have: affine codes cover less range."""
    case = golden_case(golden, name)
    stored = case.load("codes")
    compared = 0
    for tensor, x in case.load("inputs").items():
        largest = float(x.abs().max())
        for bits in case.facts["params"]["bits"]:
            assert f"absmax{bits}/{tensor}/quantized" in stored
            half_step = largest / (2 ** (bits - 1) - 1) / 2
            _, decoded = quantise(x, bits, 1)
            assert float((decoded - x).abs().max()) <= half_step
            compared += 1
    assert compared * (3 + 4) == len(stored)  # absmax has no zero point; no array is left over
