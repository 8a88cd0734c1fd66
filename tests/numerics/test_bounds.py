"""Reference lines: bits that a relative error needs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.errors import ParameterError
from svd_hybrid.numerics.bounds import DeltaSpectrum, delta_spectrum, manifold_bits, white_bits

LINES = [white_bits, manifold_bits]
ERRORS = [0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 1e-4]


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_strengths(strengths, rows, columns):
    """One task with these singular values."""
    values = torch.zeros(1, min(rows, columns), dtype=torch.float64)
    values[0, : len(strengths)] = torch.tensor(strengths, dtype=torch.float64)
    return DeltaSpectrum(rows, columns, values)


@pytest.mark.parametrize("error", ERRORS)
def test_white_numbers_need_one_bit_per_halving_of_the_error(error):
    spectrum = delta_spectrum(gaussian(3, 24, 40))
    assert white_bits([spectrum], error) == pytest.approx(math.log2(1 / error))


@pytest.mark.parametrize("error", [0.1, 0.01, 1e-3])
def test_the_singular_vectors_of_white_noise_are_worth_nothing(error):
    """At high rate both lines meet, for a full-rank matrix has as many free numbers as entries."""
    spectrum = delta_spectrum(gaussian(2, 64, 96))
    assert manifold_bits([spectrum], error) == pytest.approx(math.log2(1 / error), abs=0.1)


def test_weak_tensors_get_no_bits():
    """1000 numbers of variance 1 and 1000 of 0.01: reverse water-filling by hand."""
    strong, weak = of_strengths([math.sqrt(1000)], 1, 1000), of_strengths([math.sqrt(10)], 1, 1000)
    error = math.sqrt(260 / 1010)  # 250 in the strong one (1 bit each), all 10 of the weak one
    assert white_bits([strong, weak], error) == pytest.approx(0.5)


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01])
def test_a_rank_one_delta_costs_its_two_vectors(error):
    rows, columns, strength = 300, 200, 7.0
    spectrum = of_strengths([strength], rows, columns)
    theta = (error * strength) ** 2 / (rows + columns - 1)
    wanted = rows / 2 * math.log2(strength**2 / rows / theta)
    wanted += (columns - 1) / 2 * math.log2(strength**2 / columns / theta)
    assert manifold_bits([spectrum], error) == pytest.approx(wanted / (rows * columns), rel=1e-6)
    assert manifold_bits([spectrum], error) < white_bits([spectrum], error) / 20


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01])
def test_both_lines_are_the_same_for_vectors(error):
    spectra = [delta_spectrum(scale * gaussian(1, 1, 50)) for scale in (1.0, 0.9, 0.01)]
    assert manifold_bits(spectra, error) == pytest.approx(white_bits(spectra, error))


@pytest.mark.parametrize("line", LINES)
@given(
    seed=st.integers(0, 1000),
    decay=st.floats(0, 2),
    errors=st.tuples(st.floats(1e-4, 1.1), st.floats(1e-4, 1.1)),
)
def test_less_error_never_needs_fewer_bits(line, seed, decay, errors):
    fading = torch.arange(1, 13, dtype=torch.float64) ** -decay
    spectra = [delta_spectrum(gaussian(2, 12, 20, seed=seed) * fading[:, None])]
    spectra.append(delta_spectrum(gaussian(2, 1, 20, seed=seed)))
    low, high = sorted(errors)
    assert line(spectra, low) >= line(spectra, high) - 1e-9


@pytest.mark.parametrize("line", LINES)
def test_the_size_of_the_numbers_does_not_matter(line):
    stack = gaussian(2, 9, 14)
    for exponent in (-300, -30, 30, 300):
        scaled = delta_spectrum(stack * 2.0**exponent)
        assert line([scaled], 0.3) == pytest.approx(line([delta_spectrum(stack)], 0.3))


@pytest.mark.parametrize("line", LINES)
def test_unchanged_numbers_are_free_and_counted(line):
    changed, unchanged = delta_spectrum(gaussian(2, 8, 8)), delta_spectrum(torch.zeros(2, 8, 8))
    assert line([changed, unchanged], 0.2) == pytest.approx(line([changed], 0.2) / 2)
    assert line([unchanged], 0.0) == line([], 0.5) == 0


@pytest.mark.parametrize("line", LINES)
def test_the_ends_of_the_line(line):
    spectrum = delta_spectrum(gaussian(1, 8, 8))
    assert line([spectrum], 1.0) == line([spectrum], 2.0) == 0
    assert line([spectrum], 0.0) == math.inf


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("error", [-0.1, math.nan])
def test_an_error_that_is_none_is_refused(line, error):
    with pytest.raises(ParameterError, match="relative_error"):
        line([delta_spectrum(gaussian(1, 4, 4))], error)
