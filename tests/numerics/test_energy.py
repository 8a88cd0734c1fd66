"""How many directions hold a share of the energy."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.errors import ParameterError
from svd_hybrid.numerics.energy import explained_energy, rank_for_energy

SPECTRA = st.lists(st.integers(1, 10**6), min_size=1, max_size=12).map(
    lambda values: sorted(values, reverse=True)
)


@given(spectrum=SPECTRA, percent=st.integers(1, 100), cap=st.integers(1, 14) | st.none())
def test_the_rank_is_the_least_that_holds_the_share_or_the_cap(spectrum, percent, cap):
    total = sum(spectrum)
    shares = [Fraction(sum(spectrum[: k + 1]), total) for k in range(len(spectrum))]
    least = next(k for k, share in enumerate(shares, 1) if float(share) >= percent / 100)
    energies = torch.tensor(spectrum, dtype=torch.float64)
    wanted = least if cap is None else min(least, cap)
    assert rank_for_energy(energies, percent / 100, cap) == wanted


@given(spectrum=SPECTRA, exponent=st.integers(-300, 300))
def test_the_rank_does_not_depend_on_the_size_of_the_numbers(spectrum, exponent):
    """The original called anything below an absolute 1e-10 no energy, and small layers rank 1."""
    energies = torch.tensor(spectrum, dtype=torch.float64)
    scaled = energies * 2.0**exponent
    for threshold in (0.5, 0.9, 1.0):
        assert rank_for_energy(scaled, threshold) == rank_for_energy(energies, threshold)


def test_no_energy_has_rank_zero():
    for energies in (torch.zeros(3), torch.zeros(0)):
        assert rank_for_energy(energies, 0.9) == 0
        assert bool((explained_energy(energies) == 1).all())


def test_trailing_zeros_are_never_kept():
    assert rank_for_energy(torch.tensor([4.0, 1.0, 0.0, 0.0]), 1.0) == 2


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ParameterError, match="energy_threshold"):
        rank_for_energy(torch.ones(2), threshold)


def test_a_cap_below_one_is_refused():
    with pytest.raises(ParameterError, match="max_rank is 0"):
        rank_for_energy(torch.ones(2), 0.5, 0)
