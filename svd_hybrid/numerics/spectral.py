"""Polar factors and leading singular triplets of a matrix, from Gram matrices.

float32 matrices go through the Gram matrix of their shorter side: in float64, or in float32 where
its rounding cannot be seen in the result. float64 matrices go through a singular value
decomposition, because a Gram matrix would square what float64 can resolve. Directions at the level
of numerical noise are left out, so nothing here depends on the arbitrary vectors LAPACK puts there.
Source: methods.md §23.2, §23.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svd_hybrid.numerics.symmetric import (
    Array,
    eigenvectors,
    gram_of_columns,
    inverse_norm,
    triangle_norm,
)

EPSILON_F32 = 2.0**-24
SINGLE_ERROR = 3e-6  # bound on the relative error a float32 product may bring
MIXING = 1e-5  # bound on how much a leading direction may be mixed with those left out
ALL = -1.0  # a level that counts every direction, noise included
SAFE_RANGE = (1e-12, 1e12)  # largest entries whose squares are far from the ends of float32


@dataclass(frozen=True, slots=True)
class Polar:
    """The polar factor of a matrix (m, n) over its numerical row and column space.

    Args:
        left: (m, r) float; or the whole factor (m, n) where `right` is None.
        right: (n, r), with factor = left @ right.T; None for a full factor.
        nuclear: sum of the singular values that count.
        rank: how many count.
        weakest: the smallest that counts; 0 without any.
    """

    left: Tensor
    right: Tensor | None
    nuclear: float
    rank: int
    weakest: float

    @property
    def whole(self) -> Tensor:
        """(m, n)."""
        return self.left if self.right is None else self.left @ self.right.T


@dataclass(frozen=True, slots=True)
class Triplets:
    """Singular triplets, strongest first: u (m, k), s (k,), v (n, k), orthonormal columns."""

    u: Tensor
    s: Tensor
    v: Tensor

    @property
    def transposed(self) -> Triplets:
        """Those of the transposed matrix."""
        return Triplets(self.v, self.s, self.u)

    def first(self, count: int) -> Triplets:
        """The strongest `count` of them."""
        return Triplets(self.u[:, :count], self.s[:count], self.v[:, :count])

    def above(self, level: float) -> Triplets:
        """Those with a singular value above the level."""
        return self.first(int((self.s > level).sum()))


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues (n,) of a.T @ a, descending, >= 0, and their vectors (n, n); both float64."""

    energies: Tensor
    vectors: Tensor

    def rank(self, level: float) -> int:
        """How many belong to singular values above the level."""
        return int((self.energies > level**2).sum())


def noise_level(a: Tensor) -> float:
    """Singular values of `a` up to this are noise: four times what rounding its entries may make.

    Rounding moves each entry by at most eps / 2 of itself, so no singular value by more than that
    share of the Frobenius norm. Unlike methods.md §11, which takes max(m, n) * eps * sigma_1: at
    768 x 768 that would drop a true direction from every seventh matrix of random entries.

    >>> noise_level(torch.tensor([[3.0, 4.0]])) == 2 * 2**-23 * 5
    True
    """
    return 2 * torch.finfo(a.dtype).eps * float(a.double().norm())


def polar(a: Tensor, level: float) -> Polar:
    """The polar factor U V^T of a, over the directions with singular values above the level.

    Args:
        a: (m, n) float32 or float64.
        level: see `noise_level`.

    Returns:
        Left and right as two thin factors where these are smaller than the whole; dtype of `a`.
    """
    m, n = a.shape
    if m < n:
        return _transposed(polar(a.T, level))
    if a.dtype == torch.float64:
        return polar_by_svd(a, level)
    found = spectrum(a)
    rank = found.rank(level)
    energies, vectors = found.energies[:rank], found.vectors[:, :rank]
    inverse = energies.rsqrt()
    nuclear = float(energies.sqrt().sum())
    amplified = rms(energies[:1].sqrt() * inverse)  # rounding of a row, in each direction
    wide = torch.float32 if amplified * EPSILON_F32 <= SINGLE_ERROR else torch.float64
    weakest = float(energies[-1].sqrt()) if rank else 0.0
    if rank * (m + n) < m * n:
        left = _times(a, vectors * inverse, wide)
        return Polar(left, vectors.to(a.dtype), nuclear, rank, weakest)
    root = _times((vectors * inverse).to(wide), vectors.T, wide)
    return Polar(_times(a, root, wide), None, nuclear, rank, weakest)


def polar_by_svd(a: Tensor, level: float) -> Polar:
    """As `polar`, from the singular value decomposition LAPACK gives."""
    m, n = a.shape
    triplets = singular_triplets(a).above(level)
    rank, nuclear = len(triplets.s), float(triplets.s.sum())
    weakest = float(triplets.s[-1]) if rank else 0.0
    if rank * (m + n) < m * n:
        return Polar(triplets.u, triplets.v, nuclear, rank, weakest)
    return Polar(triplets.u @ triplets.v.T, None, nuclear, rank, weakest)


def leading(a: Tensor, count: int, level: float) -> Triplets:
    """The first `count` singular triplets with values above the level.

    Args:
        a: (m, n) float32 or float64.
        count: 0..min(m, n).
        level: see `noise_level`.

    Returns:
        Triplets, dtype of `a`, each up to its sign.
    """
    m, n = a.shape
    if m < n:
        return leading(a.T, count, level).transposed
    if a.dtype == torch.float64:
        return singular_triplets(a).above(level).first(count)
    if count and is_in_safe_range(a):
        single = gram_of_columns(a, torch.float32)
        found = leading_in_single(single, lambda subspace: a @ subspace, count)
        if found is not None:
            return found.above(level)
    energies, vectors = eigenvectors(gram_of_columns(a, torch.float64), count)
    rank = int((energies > level**2).sum())
    sigma = energies[:rank].sqrt()
    u = _times(a, vectors[:, :rank] / sigma, torch.float64)
    return Triplets(u, sigma.to(a.dtype), vectors[:, :rank].to(a.dtype))


def spectrum(a: Tensor) -> Spectrum:
    """Eigenvalues and vectors of a.T @ a.

    Args:
        a: (m, n) float. Of a float64 matrix with m < n the vectors of no energy are missing.
    """
    if a.dtype == torch.float64:
        triplets = singular_triplets(a)
        return Spectrum(triplets.s.square(), triplets.v)
    if a.shape[0] > a.shape[1] and is_in_safe_range(a):  # square ones are seldom well conditioned
        single = gram_of_columns(a, torch.float32)
        expected = triangle_norm(single) * inverse_norm(single) / math.sqrt(len(single) or 1)
        if EPSILON_F32 * expected <= SINGLE_ERROR:  # close to what is checked below
            energies, vectors = eigenvectors(single, a.shape[1])
            relative = (energies[0] / energies).double()
            if energies[-1] > 0 and EPSILON_F32 * rms(relative) <= SINGLE_ERROR:
                return Spectrum(energies.double(), vectors.double())
    energies, vectors = eigenvectors(gram_of_columns(a, torch.float64), a.shape[1])
    return Spectrum(energies.clamp_min(0), vectors)


def rms(values: Tensor) -> float:
    """Root of the mean square; 0 without values."""
    return float(values.square().mean().sqrt()) if values.numel() else 0.0


def singular_triplets(a: Tensor) -> Triplets:
    """All min(m, n) triplets as LAPACK gives them, arbitrary null vectors included."""
    try:
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
    except RuntimeError:  # divide and conquer did not converge: once more in float64
        u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    return Triplets(u.to(a.dtype), s.to(a.dtype), vh.T.to(a.dtype))


def leading_in_single(
    gram: Array, image: Callable[[Tensor], Tensor], count: int, norm: float | None = None
) -> Triplets | None:
    """Leading triplets from a float32 Gram matrix, where a margin makes them exact.

    The rounding of the Gram matrix mixes directions that lie close together. More directions than
    wanted are kept, and separated anew from their images (Rayleigh-Ritz, products in float64); what
    is mixed in from outside them is below rounding / margin.

    Args:
        gram: (n, n) float32, lower triangle of A.T @ A.
        image: (n, p) → (m, p), A times it.
        count: of triplets, 1..n.
        norm: of what was rounded, sigma_1**2 unless the Gram matrix is a difference.

    Returns:
        Triplets, or None where there is no such margin.
    """
    padded = count + max(16, count // 3)
    if padded * 2 > len(gram):
        return None
    energies, vectors = eigenvectors(gram, padded)
    rounding = EPSILON_F32 * (float(energies[0]) if norm is None else norm)
    if rounding > MIXING * float(energies[count - 1] - energies[-1]):
        return None
    subspace = torch.linalg.qr(vectors)[0]
    imaged = image(subspace)
    energies, rotation = eigenvectors(gram_of_columns(imaged, torch.float64), count)
    sigma = energies.sqrt()
    u = _times(imaged, rotation / sigma, torch.float64)
    return Triplets(u, sigma.to(u.dtype), _times(subspace, rotation, torch.float64))


def is_in_safe_range(a: Tensor) -> bool:
    """Whether the Gram matrix of the float32 matrix neither overflows nor vanishes."""
    return a.numel() > 0 and SAFE_RANGE[0] < float(a.abs().max()) < SAFE_RANGE[1]


def _transposed(found: Polar) -> Polar:
    if found.right is None:
        return replace(found, left=found.left.T)
    return replace(found, left=found.right, right=found.left)


def _times(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Product a @ b, summed in `dtype`, rounded to the dtype of `a`."""
    return (a.to(dtype) @ b.to(dtype)).to(a.dtype)
