"""What the factors leave over, rounded so that it keeps its mean: coarse, but unbiased.

A rounded number times a constant estimates what it was without bias, at any step; the coarser, the
more noise. Noise spread over all numbers hardly moves what a model computes, while signal that is
lost does (codec design §16). So the rest is coded at a step that adds a given noise, rows rotated
first where few numbers survive: then which ones do says nothing about the structure of the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from svd_hybrid.codec.integers import stored_scale
from svd_hybrid.compress.layer_inputs import LayerInputs
from svd_hybrid.compress.profiles.auto.coded_rest import CodedRest, plain_rest
from svd_hybrid.compress.profiles.auto.factors import THRESHOLDS, threshold_costs
from svd_hybrid.compress.profiles.auto.trellis_rest import closer_rest, quieter_rest
from svd_hybrid.numerics.hadamard import rotate
from svd_hybrid.numerics.metrics import squared_norm
from svd_hybrid.numerics.rounding import step_for_noise

COARSEST = 6.0
"""Largest step in standard deviations: one number in 400 survives, with 38 times the noise."""
ROTATED_FROM = 2.0
"""Step in standard deviations from which rows are rotated."""
PEAKED = 0.55
"""Mean magnitude over deviation (Gaussian: 0.8) below which rows are sparse: not rotated."""


def unbiased_rest(
    rest: Tensor,
    noise: float,
    inputs: LayerInputs | None = None,
    *,
    may_rotate: bool,
    trellis: bool = False,
) -> CodedRest | None:
    """The rest at the step that adds a noise, scaled to keep its mean; None when nothing survives.

    Args:
        rest: (m, n) float.
        noise: variance per number.
        inputs: of the layer, where they are known: fine steps then mind them.
        may_rotate: whether rows may be rotated at all.
        trellis: whether it is tried where inputs are not known.
    """
    variance = squared_norm(rest) / rest.numel()
    if variance == 0.0:
        return None
    deviation = math.sqrt(variance)
    # as it is stored: else fine steps would lose more by their scale than by rounding
    step = stored_scale(step_for_noise(variance, noise, COARSEST))
    if inputs is not None:
        return _minded_rest(rest, step, inputs)
    peaked = float(rest.abs().mean()) < PEAKED * deviation
    rotated = may_rotate and step >= ROTATED_FROM * deviation and not peaked
    turned = rotate(rest) if rotated else rest
    numbers = (turned / step).round_()
    product = float(torch.vdot(numbers.flatten(), turned.flatten()))
    if product <= 0.0:
        return None
    gain = variance * rest.numel() / product
    plain = plain_rest(numbers, stored_scale(gain), rotated=rotated)
    return quieter_rest(plain, turned) if trellis else plain


def _minded_rest(rest: Tensor, step: float, inputs: LayerInputs) -> CodedRest | None:
    """The rest on a step, rounded and scaled as the layer's outputs feel it."""
    numbers, gain = inputs.rounded(rest / step)
    if gain == 0.0:
        return None
    return plain_rest(numbers, stored_scale(gain * step))


def closest_rest(rest: Tensor, step: float, *, trellis: bool = False) -> CodedRest | None:
    """The rest with little squared error for its bits; None when nothing survives.

    Args:
        rest: (m, n) float.
        step: multiples of it are stored.
        trellis: whether it is tried.
    """
    costs = threshold_costs(squared_norm(rest), rest.numel(), step)
    threshold = THRESHOLDS[int(costs.argmin())]
    numbers = torch.sign(rest) * (rest.abs() / step + (1.0 - threshold)).floor_()
    square = float(numbers.square().sum(dtype=torch.float64))
    plain = None
    if square > 0.0:
        gain = float((numbers * rest).sum(dtype=torch.float64)) / square
        plain = plain_rest(numbers, stored_scale(gain))
    return closer_rest(plain, rest, step) if trellis else plain
