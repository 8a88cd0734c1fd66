"""Bases from Gram matrices against a plain singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.numerics.linalg import (
    canonical_signs,
    gram_of_rows,
    least_squares_on,
    principal_directions,
)

SIZES = st.integers(1, 12)
SEEDS = st.integers(0, 9999)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(m=SIZES, n=SIZES, count=st.integers(1, 4), seed=SEEDS)
def test_the_gram_of_several_matrices_is_that_of_them_side_by_side(m, n, count, seed):
    parts = [normal(m, n, seed=seed + number) for number in range(count)]
    together = torch.cat(parts, dim=1)
    assert torch.allclose(gram_of_rows(parts), together @ together.T, atol=1e-12)


def test_the_gram_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        gram_of_rows([])


@given(m=SIZES, n=SIZES, seed=SEEDS)
def test_directions_and_energies_are_those_of_the_svd(m, n, seed):
    x = normal(m, n, seed=seed)
    energies, vectors = principal_directions(gram_of_rows([x]), max(m, n))
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    r = len(energies)
    assert torch.allclose(energies, s[:r].square(), rtol=1e-9, atol=1e-12 * float(s[0]) ** 2)
    assert float(s[r:].sum()) <= 1e-5 * float(s[0])  # what was left out is numerical noise
    assert torch.allclose(vectors.T @ vectors, torch.eye(r, dtype=torch.float64), atol=1e-10)
    projected = vectors @ vectors.T @ x
    assert float((projected - u @ u.T @ x).norm()) <= 1e-5 * float(x.norm())


@given(m=st.integers(2, 10), rank=st.integers(1, 3), seed=SEEDS)
def test_null_directions_of_a_low_rank_matrix_are_left_out(m, rank, seed):
    rank = min(rank, m)
    x = (normal(m, rank, seed=seed) @ normal(rank, 20, seed=seed + 1)).float()
    energies, vectors = principal_directions(gram_of_rows([x]), 20)
    assert len(energies) <= rank
    assert float((vectors @ vectors.T @ x.double() - x.double()).norm()) <= 1e-5 * float(x.norm())


@given(exponent=st.integers(-200, 200), seed=SEEDS)
def test_directions_do_not_depend_on_the_size_of_the_numbers(exponent, seed):
    gram = gram_of_rows([normal(6, 9, seed=seed)])
    energies, vectors = principal_directions(gram, 9)
    scaled_energies, scaled_vectors = principal_directions(gram * 4.0**exponent, 9)
    assert torch.allclose(scaled_energies, energies * 4.0**exponent, rtol=1e-12)
    assert torch.allclose(scaled_vectors, vectors, atol=1e-9)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_a_zero_matrix_has_no_directions(size):
    energies, vectors = principal_directions(torch.zeros((size, size), dtype=torch.float64), 7)
    assert energies.shape == (0,)
    assert vectors.shape == (size, 0)


@given(m=SIZES, r=SIZES, seed=SEEDS)
def test_canonical_signs_forget_the_signs_they_were_given(m, r, seed):
    columns = normal(m, r, seed=seed)
    flips = torch.where(normal(r, seed=seed + 1) < 0, -1.0, 1.0)
    canonical = canonical_signs(columns)
    assert torch.equal(canonical_signs(columns * flips), canonical)
    assert torch.equal(canonical.abs(), columns.abs())
    strongest = canonical.gather(0, canonical.abs().argmax(0, keepdim=True))
    assert bool((strongest > 0).all())


def test_of_equal_magnitudes_the_first_row_decides_the_sign():
    columns = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert canonical_signs(columns).tolist() == [[1.0, 0.0], [-1.0, 0.0]]


@given(m=st.integers(2, 12), r=st.integers(1, 6), seed=SEEDS)
def test_least_squares_projects_best_on_a_basis_that_is_not_orthonormal(m, r, seed):
    r = min(r, m)
    rough = torch.linalg.qr(normal(m, r, seed=seed)).Q + 0.05 * normal(m, r, seed=seed + 1)
    x = normal(m, 4, seed=seed + 2)
    best = torch.linalg.lstsq(rough, x).solution
    assert torch.allclose(least_squares_on(rough) @ x, best, atol=1e-9)
