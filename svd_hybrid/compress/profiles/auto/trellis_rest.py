"""The rest along the trellis, where that takes fewer bytes than plain rounding: profile `max`.

Each rest is tried both ways. They never have exactly the same noise, so bytes are compared after
the difference is paid for at what noise costs in bits, as Gaussian numbers would.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from svd_hybrid.codec.integers import stored_scale
from svd_hybrid.codec.trellis import Searched, TrellisCodec, searched
from svd_hybrid.compress.profiles.auto.coded_rest import CodedRest
from svd_hybrid.compress.profiles.auto.factors import PRICE
from svd_hybrid.numerics.metrics import squared_norm

NOISE_AT = (
    (0.25, 0.00415),
    (0.5, 0.0169),
    (0.8, 0.0449),
    (1.0, 0.0747),
    (1.4, 0.163),
    (1.8, 0.273),
    (2.0, 0.418),
    (2.2, 0.554),
    (2.4, 0.757),
    (2.5, 0.930),
)
"""Step in standard deviations and noise of the unbiased decoder, over the variance: measured on
Gaussian numbers. Outside, the trellis gains little or finds nothing."""
STEP_OF_ERROR = 1.05
"""Of the step of plain rounding: at it a bit saves as much squared error."""


def quieter_rest(plain: CodedRest, turned: Tensor, noise: float) -> CodedRest:
    """A rest, or the same along the trellis where that is smaller at equal noise.

    Args:
        plain: rounded to the nearest.
        turned: (m, n) float: the rest that was rounded, rotated where rows are.
        noise: wanted variance per number.
    """
    energy = squared_norm(turned)
    variance = energy / turned.numel()
    wanted = noise / variance
    if not NOISE_AT[0][1] <= wanted <= NOISE_AT[-1][1]:
        return plain
    steps, noises = np.log(np.array(NOISE_AT)).T
    half = math.exp(float(np.interp(math.log(wanted), noises, steps))) * variance**0.5 / 2
    found = searched(turned / half)
    halves = found.halves.to(turned.dtype)
    product = float((halves * turned).sum(dtype=halves.dtype))
    if product <= 0.0:
        return plain
    codec = TrellisCodec("rotated" if plain.rotated else "scaled")
    other = _coded(codec, found, energy / product)
    noisy = relative_noise(other, turned)
    ratio = math.log(noisy / relative_noise(plain, turned))
    dearer = turned.numel() * ratio / (2 * math.log(2) * (1 + noisy))
    return other if other.prepared.bits + dearer < plain.prepared.bits else plain


def closer_rest(plain: CodedRest | None, rest: Tensor, step: float) -> CodedRest | None:
    """A rest, or the same along the trellis where squared error and priced bits are less.

    Args:
        plain: on multiples of the step, None where nothing survived.
        rest: (m, n) float.
        step: of all numbers of the family.
    """
    found = searched(rest / (step * STEP_OF_ERROR / 2))
    halves = found.halves.to(rest.dtype)
    square = squared_norm(halves)
    if square == 0.0:
        return plain
    gain = float((halves * rest).sum(dtype=halves.dtype)) / square
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


def relative_noise(coded: CodedRest, turned: Tensor) -> float:
    """What the coded rest adds across itself, over its variance."""
    numbers = coded.numbers.to(turned.dtype)
    product = float((numbers * turned).sum(dtype=numbers.dtype))
    return max(squared_norm(numbers) * squared_norm(turned) / product**2 - 1.0, 1e-9)
