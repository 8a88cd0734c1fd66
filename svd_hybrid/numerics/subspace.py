"""Directions that deltas have in common, those each has of its own, and both made orthonormal.

Source: methods.md §12, with the structure of its matrices used: own left vectors are orthogonal to
the common ones, and common vectors are already orthonormal among themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svd_hybrid.numerics.spectral import (
    Triplets,
    is_in_safe_range,
    leading,
    leading_in_single,
    noise_level,
    polar,
    spectrum,
)
from svd_hybrid.numerics.symmetric import Array, gram_of_columns

DELICATE = 3e-4  # what weaker directions become would show that a basis was rounded to float32


def common_and_own(
    stack: Tensor, count: int, own: int, stored: float
) -> tuple[Triplets, list[Triplets]]:
    """Triplets of the sum, and of what each delta has outside their left space.

    Args:
        stack: (N, m, n) float.
        count: of the sum's triplets, 0..min(m, n).
        own: triplets per delta.
        stored: noise that the deltas have from how they were stored, as a singular value.

    Returns:
        Common triplets and one set per delta; fewer where the numerical rank is smaller.
    """
    total = stack.sum(0)
    m, n = total.shape
    level = max(noise_level(total), stored)
    if m > n:
        common = leading(total, count, level)
        outside = [_outside(delta, common.u, own, stored) for delta in stack]
        return common, outside
    rows = spectrum(total.T)  # m <= n: the left space is small, and so is what is left of it
    kept = min(count, rows.rank(level))
    sigma = rows.energies[:kept].sqrt()
    basis = rows.vectors[:, :kept]
    right = (total.T.double() @ (basis / sigma)).to(stack.dtype)
    common = Triplets(basis.to(stack.dtype), sigma.to(stack.dtype), right)
    rest = rows.vectors[:, kept:].to(stack.dtype)
    return common, [_within(delta, rest, own, stored) for delta in stack]


def _outside(delta: Tensor, basis: Tensor, count: int, stored: float) -> Triplets:
    """Leading triplets of the delta with its projection on the basis taken away.

    The Gram matrix of the rest is the difference of two, so the rest itself is seldom formed.
    """
    inside = basis.T @ delta
    level = max(noise_level(delta), stored)  # what is left of a delta inside is rounding
    if count and delta.dtype == torch.float32 and is_in_safe_range(delta):
        gram = gram_of_columns(delta, torch.float32)
        norm = _norm(gram)
        gram -= gram_of_columns(inside, torch.float32)
        found = leading_in_single(
            gram, lambda subspace: delta @ subspace - basis @ (inside @ subspace), count, norm
        )
        if found is not None:
            return found.above(level)
    return leading(delta - basis @ inside, count, level)


def _norm(gram: Array) -> float:
    """The largest eigenvalue of a Gram matrix (lower triangle), to a few percent from below."""
    lower = torch.from_numpy(gram)
    lower, diagonal = lower.tril(), lower.diagonal()
    vector = diagonal.sqrt()
    for _ in range(10):
        vector = vector / vector.norm()
        vector = lower @ vector + lower.T @ vector - diagonal * vector
    return float(vector.norm())


def _within(delta: Tensor, basis: Tensor, count: int, stored: float) -> Triplets:
    """Leading triplets of the delta's projection on the basis."""
    found = leading(basis.T @ delta, count, max(noise_level(delta), stored))
    return Triplets(basis @ found.u, found.s, found.v)


def polar_beside(x: Tensor, basis: Tensor, level: float) -> Tensor:
    """The polar factor of [x, basis].

    The basis is orthonormal, so only the directions of it that x touches change; rotating these to
    the front leaves a small problem, p + min(p, c) columns instead of p + c.

    Args:
        x: (n, p) float.
        basis: (n, c) float, orthonormal columns.
        level: directions with singular values up to this are null.

    Returns:
        (n, p + c), same dtype.
    """
    touched = torch.linalg.qr(basis.T @ x)[0]
    front = basis @ touched
    small = polar(torch.cat([x, front], dim=1), level)
    if small.weakest < DELICATE:
        return polar(torch.cat([x, basis], dim=1), level).whole
    made, width = small.whole, x.shape[1]
    return torch.cat([made[:, :width], basis + (made[:, width:] - front) @ touched.T], dim=1)
