"""The rest along the trellis, where that takes fewer bytes than plain rounding: profile `max`.

Each rest is tried both ways. They never have exactly the same noise, so bytes are compared after
the difference is paid for at what noise costs in bits, as Gaussian numbers would.

What a search that prices bits keeps of a row depends on the row's scale. An unbiased rest must keep
the same share of all, so rows are scaled before by how their shares will differ.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.codec.integers import stored_scale
from svd_hybrid.codec.trellis import Searched, TrellisCodec, searched
from svd_hybrid.compress.profiles.auto.coded_rest import CodedRest
from svd_hybrid.compress.profiles.auto.factors import PRICE
from svd_hybrid.numerics.metrics import squared_norm

NOISE_AT = (
    (0.25, 0.00414),
    (0.5, 0.0170),
    (0.8, 0.0445),
    (1.0, 0.0735),
    (1.4, 0.158),
    (1.8, 0.283),
    (2.0, 0.402),
    (2.4, 0.728),
)
"""Step in standard deviations and noise of the unbiased decoder over the variance: measured on
Gaussian rows whose scale varies by 0.3 (natural logarithm). Outside, the trellis is not tried."""
KEPT = (
    (0.707, 0.170),
    (0.841, 0.649),
    (1.0, 0.721),
    (1.19, 0.851),
    (1.41, 0.861),
    (1.68, 0.925),
    (2.0, 0.931),
    (2.38, 0.964),
    (2.83, 0.967),
    (3.36, 0.981),
    (4.0, 0.982),
    (4.76, 0.990),
    (6.73, 0.995),
    (9.51, 0.998),
    (16.0, 1.0),
)
"""Deviation of a row in half steps, and <row, found> over <row, row>: measured on Gaussian rows;
the last one, measured 0.998, counts as 1, for beyond it rows are left as they are."""
MOST_CHANGE = 0.7
"""Natural logarithm by which a row is enlarged or made smaller, at most."""
TINY = 1e-30
SAMPLE = 1 << 14
"""Numbers, about, on which the step is tried."""
TRIALS = 4
SLOPE = 0.45
"""Of the step over the noise, both as logarithms: less where noise is high."""
CLOSE = 0.02
"""Natural logarithm by which the noise of the sample may miss."""
FAR = 0.1
"""The same of the whole rest, beyond which the two are not compared."""
LOUD = 1e3
STEP_OF_ERROR = 1.05
"""Of the step of plain rounding: at it a bit saves as much squared error."""


def quieter_rest(plain: CodedRest, turned: Tensor) -> CodedRest:
    """A rest, or the same along the trellis where that is smaller at equal noise.

    Args:
        plain: rounded to the nearest.
        turned: (m, n) float: the rest that was rounded, rotated where rows are.
    """
    wanted = relative_noise(plain.numbers, turned)
    if not NOISE_AT[0][1] <= wanted <= NOISE_AT[-1][1]:
        return plain
    found = _at_noise(turned, wanted)
    product = _product(found.halves, turned)
    if product <= 0.0:
        return plain
    scale = squared_norm(turned) / product
    other = _coded(TrellisCodec("rotated" if plain.rotated else "scaled"), found, scale)
    noisy = relative_noise(other.numbers, turned)
    if abs(math.log(noisy / wanted)) > FAR:
        return plain
    dearer = turned.numel() * math.log(noisy / wanted) / (2 * math.log(2) * (1 + noisy))
    return other if other.prepared.bits + dearer < plain.prepared.bits else plain


def _at_noise(turned: Tensor, wanted: float) -> Searched:
    """The rest at a step at which some of its rows have a noise over their variance, about."""
    steps, noises = np.log(np.array(NOISE_AT)).T
    aim = math.log(wanted)
    stride = -(-turned.numel() // SAMPLE)
    some = turned[::stride]
    deviation = math.sqrt(squared_norm(turned) / turned.numel())
    step, slope = float(np.interp(aim, noises, steps)), SLOPE
    tried: tuple[float, float] | None = None
    for _ in range(TRIALS):
        found = balanced(some * (2 / (math.exp(step) * deviation)), 2 / math.exp(step))
        off = math.log(relative_noise(found.halves, some)) - aim
        if abs(off) < CLOSE:
            if stride == 1:
                return found
            break
        if tried is not None and tried[1] != off:
            slope = min(max((tried[0] - step) / (tried[1] - off), SLOPE / 4), SLOPE)
        tried = step, off
        step -= slope * off
    return balanced(turned * (2 / (math.exp(step) * deviation)), 2 / math.exp(step))


def balanced(halves: Tensor, deviation: float) -> Searched:
    """The way through the trellis for rows that it is to keep the same share of.

    Args:
        halves: (m, n) float, in half steps.
        deviation: of all rows, whose share it shall be.
    """
    squares = halves.to(torch.float64).square().mean(1)
    own = squares.clamp_min(TINY).log().numpy() / 2
    deviations, kept = np.log(np.array(KEPT)).T
    share = np.interp(math.log(deviation), deviations, kept)
    wanted = np.interp(own + share, deviations + kept, deviations) - own
    wanted = np.where(own < deviations[-1], wanted.clip(-MOST_CHANGE, MOST_CHANGE), 0.0)
    return searched(halves * torch.from_numpy(np.exp(wanted)).to(halves.dtype)[:, None])


def closer_rest(plain: CodedRest | None, rest: Tensor, step: float) -> CodedRest | None:
    """A rest, or the same along the trellis where squared error and priced bits are less.

    Args:
        plain: on multiples of the step, None where nothing survived.
        rest: (m, n) float.
        step: of all numbers of the family.
    """
    found = searched(rest / (step * STEP_OF_ERROR / 2))
    square = squared_norm(found.halves.to(rest.dtype))
    if square == 0.0:
        return plain
    gain = _product(found.halves, rest) / square
    if gain <= 0.0:
        return plain
    other = _coded(TrellisCodec(), found, gain)
    costs = [squared_norm(rest)]
    costs += [
        squared_norm(rest - coded.decoded()) + coded.prepared.bits * PRICE * step**2
        for coded in (plain, other)
        if coded is not None
    ]
    return other if costs[-1] < min(costs[:-1]) else plain


def _coded(codec: TrellisCodec, found: Searched, scale: float) -> CodedRest:
    return CodedRest(found.halves, stored_scale(scale), codec, found.prepared)


def relative_noise(numbers: Tensor, turned: Tensor) -> float:
    """Noise of the unbiased decoder over the variance: (m, n) int32 for (m, n) float."""
    product = _product(numbers, turned)
    if product <= 0.0:
        return LOUD
    energies = squared_norm(numbers.to(turned.dtype)) * squared_norm(turned)
    return max(energies / product**2 - 1.0, 1e-9)


def _product(numbers: Tensor, turned: Tensor) -> float:
    return float(torch.vdot(numbers.to(turned.dtype).flatten(), turned.flatten()))
