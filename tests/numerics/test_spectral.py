"""Polar factors and leading triplets against LAPACK's singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.numerics.spectral import leading, noise_level, polar, polar_by_svd
from svd_hybrid.numerics.subspace import polar_beside
from svd_hybrid.numerics.symmetric import eigenvectors, gram_of_columns

SHAPES = [(40, 40), (90, 30), (30, 90), (300, 200), (200, 300)]


def matrix(m: int, n: int, decay: float, seed: int = 0) -> Tensor:
    """Float32 with singular values from 1 to exp(-decay)."""
    random = torch.Generator().manual_seed(seed)
    r = min(m, n)
    left, right = (
        torch.linalg.qr(torch.randn(size, r, generator=random, dtype=torch.float64))[0]
        for size in (m, n)
    )
    values = torch.exp(-decay * torch.arange(r, dtype=torch.float64) / max(r - 1, 1))
    return ((left * values) @ right.T).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 1.0, 4.0])
def test_polar_factor_is_that_of_the_svd(shape, decay):
    a = matrix(*shape, decay)
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    found = polar(a, noise_level(a))
    assert found.rank == min(shape)
    assert abs(found.nuclear / float(s.sum()) - 1) < 1e-6
    assert float((found.whole - u @ vh).norm() / min(shape) ** 0.5) < 5e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 1.0, 9.0])
@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_leading_triplets_reconstruct_the_best_approximation(shape, decay, count):
    a = matrix(*shape, decay)
    found = leading(a, count, noise_level(a))
    s = torch.linalg.svdvals(a.double())
    assert torch.allclose(found.s.double(), s[:count], rtol=1e-5)
    rest = a.double() - (found.u * found.s).double() @ found.v.double().T
    missed = float(s[count:].square().sum())
    assert float(rest.square().sum()) <= missed + 1e-5 * float(s.square().sum())
    for side in (found.u, found.v):
        assert torch.allclose(side.T @ side, torch.eye(count), atol=1e-5)
    residual = a.T.double() @ found.u.double() - found.v.double() * found.s.double()
    assert (residual.norm(dim=0) <= 1e-5 * found.s + 1e-7 * s[0]).all()


@given(m=st.integers(1, 9), n=st.integers(1, 9), seed=st.integers(0, 99))
def test_float64_is_as_exact_as_the_svd(m, n, seed):
    a = matrix(m, n, 1.0, seed).double()
    assert torch.allclose(polar(a, 0.0).whole, polar_by_svd(a, 0.0).whole, atol=1e-12)
    full = leading(a, min(m, n), 0.0)
    assert torch.allclose((full.u * full.s) @ full.v.T, a, atol=1e-12)


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (4, 4)])
def test_nothing_and_zeros_have_rank_zero(size):
    a = torch.zeros(size)
    found = polar(a, noise_level(a))
    assert found.rank == 0
    assert found.whole.shape == size
    assert not found.whole.any()
    assert len(leading(a, min(size), noise_level(a)).s) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_numbers_far_from_one_are_no_problem(scale):
    a = matrix(30, 20, 2.0)
    assert torch.allclose(polar(a * scale, 0.0).whole, polar(a, 0.0).whole, atol=1e-5)


def test_noise_is_no_direction():
    a = matrix(30, 20, 0.0)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    s[5:] = 0.1 * noise_level(a)
    low = (u * s) @ vh
    found = polar(low, noise_level(low))
    assert found.rank == 5
    assert found.right is not None
    assert found.whole.shape == (30, 20)


def test_polar_beside_a_basis_is_the_polar_factor_of_both():
    basis = torch.linalg.qr(torch.randn(30, 12, generator=torch.Generator().manual_seed(1)))[0]
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(2))
    whole = polar_by_svd(torch.cat([x, basis], dim=1).double(), 0.0).whole
    assert torch.allclose(polar_beside(x, basis, 1e-6).double(), whole, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_of_a_matrix_and_of_its_transpose_need_no_copy(dtype):
    a = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for x in (a, a.T):
        lower = torch.from_numpy(gram_of_columns(x, dtype)).tril()
        assert torch.allclose(lower, (x.T @ x).tril().to(dtype), atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 12])
def test_eigenvectors_are_the_largest_in_descending_order(count):
    a = torch.randn(20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, vectors = eigenvectors(gram_of_columns(a, torch.float64), count)
    want = torch.linalg.eigvalsh(a.T @ a).flip(0)[:count]
    assert torch.allclose(values, want)
    assert torch.allclose(a.T @ (a @ vectors), vectors * values, atol=1e-9)
