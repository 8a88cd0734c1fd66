"""Plain rounding of Gaussian numbers to multiples of a step: bits, distortion, noise.

Tables over the variance in units of step**2, computed once; for encoders, which compare costs by
them before they code. Nothing that is decoded depends on them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special  # type: ignore[import-untyped]

Floats = NDArray[np.float64]

LOWEST, HIGHEST = -12.0, 24.0  # log2 of the variances tabulated
PER_OCTAVE = 12
FINE = 900.0  # variance above which the high-resolution formulas are exact
TINY = 1e-200
NEAREST = 0.5


@cache
def _tables(up_from: float) -> tuple[Floats, Floats, Floats, Floats]:
    """log2 variance, bits, distortion / step**2, and noise of the unbiased decoder / variance."""
    exponents = np.arange(LOWEST, HIGHEST + 1e-9, 1 / PER_OCTAVE)
    bits, distortion, noise = (np.empty_like(exponents) for _ in range(3))
    for index, variance in enumerate(2.0**exponents):
        bits[index], distortion[index], noise[index] = _at(float(variance), up_from)
    return exponents, bits, distortion, noise


def _at(variance: float, up_from: float) -> tuple[float, float, float]:
    """Bits, distortion and relative unbiased noise at one variance (step 1)."""
    sigma = variance**0.5
    if variance > FINE:
        bits = 0.5 * np.log2(2 * np.pi * np.e * variance)
        return float(bits), 1 / 12 + (up_from - 0.5) ** 2, 1 / (12 * variance)
    k = np.arange(1, int(9 * sigma) + 3)
    low, high = (k - 1 + up_from) / sigma, (k + up_from) / sigma
    tails = special.ndtr(-low) - special.ndtr(-high)
    zero = 1 - 2 * special.ndtr(-low[0])
    pieces = np.concatenate([[zero], tails, tails])
    bits = -np.sum(special.xlogy(pieces, pieces)) / np.log(2)
    # E[x k] = 2 sigma sum k (phi(low) - phi(high)), E[k^2] = 2 sum k^2 P(k)
    density = np.exp(-0.5 * low**2) - np.exp(-0.5 * high**2)
    product = 2 * sigma / np.sqrt(2 * np.pi) * np.sum(k * density)
    square = 2 * np.sum(k**2 * tails)
    noise = square * variance / product**2 - 1 if product**2 > TINY else 1 / TINY
    distortion = variance - 2 * product + square
    if up_from != NEAREST:  # whoever moves the threshold also scales what is decoded
        distortion = variance - product**2 / square if square > TINY else variance
    return float(bits), float(distortion), float(max(noise, 1 / (12 * variance)))


def _look_up(column: int, variance: Floats, up_from: float) -> Floats:
    table = _tables(up_from)
    exponents = np.log2(np.maximum(variance, 2.0**LOWEST))
    found: Floats = np.interp(exponents, table[0], table[column])
    return found


def rounding_bits(variance: Floats, up_from: float = NEAREST) -> Floats:
    """Entropy in bits of one rounded number; 0 below the table.

    Args:
        variance: in units of step**2, any shape.
        up_from: fraction of a step from which magnitudes are rounded up.
    """
    above = variance > 2.0**HIGHEST
    bits = _look_up(1, variance, up_from)
    if above.any():
        bits = np.where(above, 0.5 * np.log2(2 * np.pi * np.e * np.maximum(variance, 1.0)), bits)
    return np.where(variance > 2.0**LOWEST, bits, 0.0)


def rounding_distortion(variance: Floats, up_from: float = NEAREST) -> Floats:
    """Mean squared error of one rounded number in units of step**2.

    Args:
        variance: in units of step**2, any shape.
        up_from: as in `rounding_bits`; if not one half, decoded numbers are scaled to fit best.
    """
    return np.where(variance > 2.0**LOWEST, _look_up(2, variance, up_from), variance)


def step_for_noise(variance: float, noise: float, coarsest: float) -> float:
    """The step at which unbiased rounding adds a given noise.

    A rounded number times a constant is an unbiased estimate of what it was; the step decides how
    noisy one.

    Args:
        variance: of the numbers, > 0.
        noise: wanted variance of the noise, > 0.
        coarsest: largest step, in standard deviations.
    """
    exponents, _, _, table = _tables(NEAREST)
    relative = noise / variance
    at = float(np.interp(np.log(relative), np.log(table[::-1]), exponents[::-1]))
    if relative < table[-1]:
        return float((12 * noise) ** 0.5)
    return float(min(variance**0.5 * 2 ** (-at / 2), coarsest * variance**0.5))
