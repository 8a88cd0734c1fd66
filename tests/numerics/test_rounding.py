"""Tables of plain rounding against closed forms and against numbers drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from svd_hybrid.numerics.rounding import rounding_bits, rounding_distortion, step_for_noise

DRAWN = 2**20


def drawn() -> np.ndarray:
    return np.random.default_rng(7).standard_normal(DRAWN)


def of(function, variance: float) -> float:
    return float(function(np.array([variance]))[0])


@pytest.mark.parametrize("sigma", [0.25, 0.4, 0.7, 1.0, 2.5, 6.0, 40.0])
def test_bits_and_distortion_are_those_of_numbers_drawn(sigma):
    x = drawn() * sigma
    k = np.rint(x)
    shares = np.unique(k, return_counts=True)[1] / DRAWN
    entropy = -float((shares * np.log2(shares)).sum())
    assert of(rounding_bits, sigma**2) == pytest.approx(entropy, rel=0.01, abs=2e-3)
    assert of(rounding_distortion, sigma**2) == pytest.approx(
        float(np.mean((x - k) ** 2)), rel=0.01
    )


@pytest.mark.parametrize("sigma", [3.0, 50.0, 1e3, 1e6])
def test_fine_steps_have_the_high_resolution_formulas(sigma):
    want = 0.5 * math.log2(2 * math.pi * math.e * (sigma**2 + 1 / 12))
    assert of(rounding_bits, sigma**2) == pytest.approx(want, abs=1e-3)
    assert of(rounding_distortion, sigma**2) == pytest.approx(1 / 12, rel=1e-3)


@pytest.mark.parametrize("variance", [0.0, 1e-9, 1e-5])
def test_where_nothing_survives_bits_are_none_and_the_error_is_all(variance):
    assert of(rounding_bits, variance) == 0.0
    assert of(rounding_distortion, variance) == variance


def test_bits_rise_and_relative_distortion_falls_with_the_variance():
    variances = 2.0 ** np.linspace(-11, 30, 800)
    bits, share = rounding_bits(variances), rounding_distortion(variances) / variances
    assert bool((np.diff(bits) >= 0).all())
    assert bool((np.diff(share) <= 1e-3).all())
    assert bool((share <= 1 + 1e-3).all())  # between two entries of the table


def test_arrays_of_any_shape_are_looked_up():
    variances = np.array([[0.0, 1.0], [4.0, 2.0**40]])
    for function in (rounding_bits, rounding_distortion):
        found = function(variances)
        assert found.shape == (2, 2)
        assert found.ravel().tolist() == [of(function, v) for v in variances.ravel()]


@pytest.mark.parametrize("relative", [0.003, 0.05, 0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("sigma", [1e-6, 0.02, 30.0])
def test_the_step_for_a_noise_adds_that_noise_without_bias(relative, sigma):
    x = drawn() * sigma
    step = step_for_noise(sigma**2, relative * sigma**2, 6.0)
    k = np.rint(x / step)
    gain = float(x @ x) / float(k @ x)
    rebuilt = gain * k
    assert float(rebuilt @ x) == pytest.approx(float(x @ x))
    assert float(np.mean((rebuilt - x) ** 2)) == pytest.approx(relative * sigma**2, rel=0.03)


def test_no_step_is_coarser_than_allowed_and_fine_ones_are_uniform_noise():
    assert step_for_noise(4.0, 1e6, 6.0) == 12.0
    assert step_for_noise(4.0, 1e-7, 6.0) == pytest.approx(math.sqrt(12e-7))
    assert step_for_noise(4.0, 1e-12, 6.0) == pytest.approx(math.sqrt(12e-12))


def test_steps_rise_with_the_noise():
    steps = [step_for_noise(1.0, float(noise), 6.0) for noise in 2.0 ** np.linspace(-30, 8, 500)]
    assert bool((np.diff(steps) >= -1e-12).all())
