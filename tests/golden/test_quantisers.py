"""The residual quantiser against every stored case of `rtvq` and `tvq`.

The folder decides which cases, tensors, bits and stages there are. What must agree follows from
the data: the reference's numbers, where its formula is right; its formula without the bug, where
the zero point was clamped or a small range lost; the input itself, where the reference divides by
a range of 0. Codes agree except where float32 arithmetic does not decide them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.golden.compare import (
    Case,
    Stage,
    golden_case,
    quantise,
    relative_error,
    stored_cases,
    worst_error,
)
from tests.golden.conftest import GOLDEN
from tests.golden.reference_quantiser import (
    INHERITED,
    assert_same_stage,
    clamps,
    decoded,
    fails,
    formula,
    repaired,
    residuals,
    undecided,
)

pytestmark = pytest.mark.golden

METHODS = ("rtvq", "tvq")
FILES = {"inputs", "codes", "dequantized"}
"""Files of these cases that the tests below read."""
KINDS = ("quantized", "scale", "zero_point")


@dataclass(frozen=True)
class Sample:
    """A stored tensor, what the reference made of it, and how.

    Args:
        prefixes: of its stages in `codes`.
        want: the reference's decoded values.
        tolerance: on them.
    """

    x: Tensor
    bits: int
    clamped: bool
    prefixes: tuple[str, ...]
    codes: dict[str, Tensor]
    want: Tensor
    tolerance: float

    @property
    def stages(self) -> list[Stage]:
        def number(prefix: str, kind: str) -> float:
            return float(self.codes[f"{prefix}/{kind}"])

        return [
            Stage(
                self.codes[f"{prefix}/quantized"].flatten(),
                number(prefix, "scale"),
                number(prefix, "zero_point"),
            )
            for prefix in self.prefixes
        ]

    @property
    def ours(self) -> tuple[list[Stage], Tensor]:
        return quantise(self.x, self.bits, len(self.prefixes))

    @property
    def bound(self) -> float:
        return worst_error(self.x, self.bits, len(self.prefixes))


def sample(case: Case, tensor: str, bits: int) -> Sample:
    codes, x, clamped = case.load("codes"), case.load("inputs")[tensor], clamps(case.facts)
    if case.facts["method"] == "tvq":
        prefix, tolerance = f"asym{bits}/{tensor}", 1e-5  # as case.json states in words
        want = codes[f"{prefix}/dequantized"]
        return Sample(x, bits, clamped, (prefix,), codes, want, tolerance)
    stages = range(case.facts["params"]["num_stages"])
    prefixes = tuple(f"{tensor}/stage{index}" for index in stages)
    want, tolerance = case.load("dequantized")[tensor], case.tolerance("dequantized")
    return Sample(x, bits, clamped, prefixes, codes, want, tolerance)


def bits_of(case: Case) -> list[int]:
    given = case.facts["params"]
    return given["bits"] if case.facts["method"] == "tvq" else [given["num_bits"]]


def quantiser_cases(*methods: str) -> list[str]:
    return [case.name for case in stored_cases(GOLDEN) if case.facts["method"] in methods]


def cells() -> list[tuple[str, str, int]]:
    """(case, tensor, bits) of everything stored."""
    found = []
    for name in quantiser_cases(*METHODS):
        case = golden_case(GOLDEN, name)
        with safe_open(case.folder / "inputs.safetensors", "pt") as inputs:
            tensors = sorted(inputs.keys())
        found += [(name, tensor, bits) for tensor in tensors for bits in bits_of(case)]
    return found


def samples(case: Case) -> dict[str, Sample]:
    """By tensor and bits."""
    return {
        f"{tensor}, {bits} bits": sample(case, tensor, bits)
        for tensor in case.load("inputs")
        for bits in bits_of(case)
    }


def lost(stage: Stage) -> bool:
    """Whether a version that clamps stored a small range, or none, as nothing."""
    return (stage.scale, stage.zero) == (1.0, 0.0) and not stage.codes.any()


def is_wrong(found: Sample) -> bool:
    """Whether the clamp or the smallest range of the older versions changed some stage."""
    if not found.clamped:
        return False
    stored = found.stages
    return any(
        lost(stage)
        or formula(left, found.bits, clamped=False, scale=stage.scale).zero != stage.zero
        for stage, left in zip(stored, residuals(found.x, stored), strict=False)
    )


def trusted_stages(found: Sample) -> list[Stage]:
    """What ours is compared with: the stored stages, or repaired ones where those are wrong."""
    if is_wrong(found):
        return repaired(found.x, found.bits, len(found.prefixes))
    return found.stages


@pytest.mark.parametrize(("name", "tensor", "bits"), cells())
def test_stored_stages_are_what_the_stated_formula_gives(golden, name, tensor, bits):
    """So an excuse below rests on the stated bug: nothing else sets the reference apart."""
    found = sample(golden_case(golden, name), tensor, bits)
    stored = found.stages
    lefts = residuals(found.x, stored)
    for index, (left, stage) in enumerate(zip(lefts, stored, strict=False)):
        scale = formula(left, bits, found.clamped).scale
        if not math.isfinite(scale):
            assert all(fails(later) for later in stored[index:])
            assert not found.want.isfinite().any()
            return
        assert stage.scale == pytest.approx(scale, rel=1e-6)
        want = formula(left, bits, found.clamped, scale=stage.scale)
        assert stage.zero == want.zero
        assert torch.equal(stage.codes, want.codes)
        if f"{found.prefixes[index]}/residual_norm" in found.codes:
            norm = float(found.codes[f"{found.prefixes[index]}/residual_norm"])
            assert norm == pytest.approx(float(left.double().norm()), rel=1e-5)
    total = sum(decoded(stage) for stage in stored)
    assert relative_error(total, found.want.flatten()) <= 1e-6


@pytest.mark.parametrize(("name", "tensor", "bits"), cells())
def test_codes_scales_and_values_are_those_of_the_reference(golden, name, tensor, bits):
    """Up to the first stage where float32 leaves a code open; from there on the bound must hold."""
    found = sample(golden_case(golden, name), tensor, bits)
    ours, values = found.ours
    assert float((values - found.x).abs().max()) <= found.bound
    trusted = trusted_stages(found)
    inherited, agree = 0.0, torch.ones(found.x.numel(), dtype=torch.bool)
    lefts = residuals(found.x, trusted)
    for mine, theirs, left in zip(ours, trusted, lefts, strict=False):
        if fails(theirs):
            return  # see the next test
        if bool(undecided(theirs, left, bits, inherited).max() >= 0.5):
            break  # a stage of rounding noise: its codes mean nothing, the values must agree
        agree &= ~assert_same_stage(mine, theirs, left, bits, inherited)
        if not agree.all() and mine is not ours[-1]:
            return  # later stages quantise other residuals
        inherited = INHERITED * float(found.x.abs().max())
    if not any(fails(stage) for stage in trusted):
        repair = sum(decoded(stage) for stage in trusted)
        want = repair if is_wrong(found) else found.want.flatten()
        assert relative_error(values.flatten()[agree], want[agree]) <= found.tolerance


@pytest.mark.parametrize("name", quantiser_cases(*METHODS))
def test_values_come_back_exactly_where_the_reference_divides_by_a_range_of_0(golden, name):
    """Constants, and tensors that an earlier stage represents exactly."""
    case = golden_case(golden, name)
    failing = []
    for label, found in samples(case).items():
        trusted = trusted_stages(found)
        first = next((i for i, stage in enumerate(trusted) if fails(stage)), None)
        constant = bool(found.x.min() == found.x.max())
        assert constant == (first == 0), label
        if first is None:
            continue
        left = residuals(found.x, trusted)[first]
        assert left.min() == left.max(), label
        ours, values = found.ours
        if constant or not left.any():
            assert torch.equal(values, found.x), label
        assert ours[-1].scale == float("inf") or found.x.any(), label  # zeros: a step of 0
        wrong = not torch.isfinite(found.want).all() or not torch.equal(found.want, found.x)
        assert wrong or (found.clamped and not left.any()), label  # those give 0 for any constant
        if not found.clamped:
            failing.append(label.split(", ")[0])
    if case.facts["method"] == "rtvq":
        assert sorted(case.nonfinite("dequantized")) == sorted(failing)
        assert sorted(case.facts["tensors_that_come_back_nonfinite"]) == sorted(failing)


@pytest.mark.parametrize("name", quantiser_cases(*METHODS))
def test_a_clamped_zero_point_costs_the_reference_what_it_cuts_off(golden, name):
    """The distance of one-sided values to 0; ours keeps the bound (see above)."""
    case = golden_case(golden, name)
    for label, found in samples(case).items():
        lefts = residuals(found.x, found.stages)
        for stage, left, after in zip(found.stages, lefts, lefts[1:], strict=False):
            if fails(stage) or lost(stage):
                break
            free = formula(left, found.bits, clamped=False, scale=stage.scale).zero
            cut = abs(free - stage.zero)
            assert found.clamped or cut == 0, label
            if cut:
                worst = float(after.abs().max()) * stage.scale
                assert worst >= (cut - 0.5) * (1 - 1e-6), label


@pytest.mark.parametrize("name", quantiser_cases("rtvq"))
def test_every_stored_array_of_the_residual_quantiser_is_used(golden, name):
    case = golden_case(golden, name)
    used = {
        f"{prefix}/{kind}"
        for found in samples(case).values()
        for prefix in found.prefixes
        for kind in (*KINDS, "residual_norm")
    }
    assert set(case.load("codes")) == used
    assert set(case.load("dequantized")) == set(case.load("inputs"))


@pytest.mark.parametrize("name", quantiser_cases("tvq"))
def test_the_symmetric_quantiser_we_leave_out_is_never_better_in_the_worst_case(golden, name):
    """absmax cases hold for a quantiser svdh does not have: affine codes cover less range."""
    case = golden_case(golden, name)
    stored = case.load("codes")
    compared = 0
    for tensor, x in case.load("inputs").items():
        largest = float(x.abs().max())
        for bits in bits_of(case):
            assert f"absmax{bits}/{tensor}/quantized" in stored
            half_step = largest / (2 ** (bits - 1) - 1) / 2
            _, values = quantise(x, bits, 1)
            assert float((values - x).abs().max()) <= half_step
            compared += 1
    assert compared * (3 + 4) == len(stored)  # absmax has no zero point; no array is left over
