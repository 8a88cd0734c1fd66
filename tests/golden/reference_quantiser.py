"""The reference's quantiser as its cases describe it, in float32, and where float32 leaves it open.

Golden tests use it for two things: to show that a stored number which ours must not equal is what
the reference's formula gives (so that the stated bug, and nothing else, is the difference), and to
know what the formula gives once the bug is repaired.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.codec.affine import LARGEST_ZERO
from tests.golden.compare import EPSILON_F32, Stage

VERSIONS = {"873d2d2": "head", "6515d8e": "meanfix", "c4aa383": "seed"}
"""By the first seven digits of the reference's commit."""
SMALLEST_RANGE = 1e-8
"""The versions that clamp store a smaller range as 0."""
BOUNDARY = 1e-5
"""Distance from a half code, in codes, at which float32 and float64 may always differ."""
INHERITED = 6 * EPSILON_F32
"""Error of a float32 residual, over the largest magnitude of the tensor: scale, step and
difference of the reference round to float32, and so does our step."""


def version(facts: dict[str, Any]) -> str:
    """head, meanfix or seed."""
    named = VERSIONS[facts["reference"]["commit"][:7]]
    assert facts.get("version", named) == named
    return named


def clamps(facts: dict[str, Any]) -> bool:
    """Whether this version clamps the zero point to the codes and loses small ranges."""
    return version(facts) != "head"


def formula(x: Tensor, bits: int, clamped: bool, scale: float | None = None) -> Stage:
    """One stage of the reference on flat float32 `x`.

    Args:
        scale: take this one (the stored) instead of computing it.
    """
    levels = 2**bits - 1
    low, high = x.min(), x.max()
    if clamped and high - low < SMALLEST_RANGE:
        return Stage(torch.zeros(x.shape, dtype=torch.uint8), 1.0, 0.0)
    factor = levels / (high - low) if scale is None else torch.tensor(scale)
    zero = -(factor * low).round()
    zero = zero.clamp(0, levels) if clamped else zero
    codes = (factor * x + zero).round().clamp(0, levels)
    return Stage(codes.nan_to_num().to(torch.uint8), float(factor), float(zero))


def fails(stage: Stage) -> bool:
    """Whether a stage decodes to NaN: its values are all one, which leaves no range to divide."""
    return not math.isfinite(stage.scale) or not math.isfinite(stage.zero) or stage.scale == 0


def decoded(stage: Stage) -> Tensor:
    """Values of a stage in the reference's float32 arithmetic."""
    return (stage.codes.float() - stage.zero) / torch.tensor(stage.scale)


def residuals(x: Tensor, stages: list[Stage]) -> list[Tensor]:
    """What each stage quantises (first `x` itself), and last what all of them leave."""
    left = [x.flatten().float()]
    for stage in stages:
        left.append(left[-1] - decoded(stage))
    return left


def repaired(x: Tensor, bits: int, stages: int) -> list[Stage]:
    """The stages with the zero point not clamped and small ranges kept."""
    found: list[Stage] = []
    left = x.flatten().float()
    for _ in range(stages):
        found.append(formula(left, bits, clamped=False))
        left = left - decoded(found[-1])
    return found


def undecided(stage: Stage, left: Tensor, bits: int, inherited: float) -> Tensor:
    """How far apart, in codes, float32 and float64 arithmetic may put each scalar before rounding.

    Zero where a step that is a power of two makes the float32 arithmetic exact, so that a value
    half way between two codes must be rounded as the reference rounds it.

    Args:
        stage: the reference's.
        left: (n,) float32 values that it quantises.
        inherited: absolute error of `left`, from the stages before.
    """
    position = stage.scale * left.double()
    rounding = EPSILON_F32 * (4 * position.abs() + 2**bits - 1)
    slack = (rounding + inherited * stage.scale).clamp(min=BOUNDARY)
    if inherited or math.frexp(stage.scale)[0] != 0.5:
        return slack
    exact = (stage.scale * left + stage.zero).double() == position + stage.zero
    exact &= position.abs() < LARGEST_ZERO  # further from 0 our step is coarser
    return torch.where(exact, 0.0, slack)


def assert_same_stage(
    ours: Stage, theirs: Stage, left: Tensor, bits: int, inherited: float
) -> Tensor:
    """Scale, zero and codes agree as far as float32 decides them; returns where codes differ.

    What is compared is code - zero, the multiple of the step that a scalar becomes. Ours must be
    the nearest multiple to scale * x, hence the reference's unless x lies on a boundary.
    """
    levels, slack = 2**bits - 1, undecided(theirs, left, bits, inherited)
    reach = levels / theirs.scale
    assert abs(ours.scale / theirs.scale - 1) <= 1e-6 + 2 * inherited / reach
    position = theirs.scale * left.double()
    assert abs(ours.zero + float(position.min())) <= 0.5 + float(slack.max())
    multiples = ours.codes.double() - ours.zero
    distance = multiples - position.clamp(-ours.zero, levels - ours.zero)
    assert bool((distance.abs() <= 0.5 + slack).all())
    differs = multiples != theirs.codes.double() - theirs.zero
    assert not bool((differs & (slack == 0)).any())
    return differs
