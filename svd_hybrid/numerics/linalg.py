"""Orthonormal bases from Gram matrices, with signs that do not depend on LAPACK.

The tall factor of a stack is found through the Gram matrix of its short side, accumulated in
float64: exact enough for float32 data and much cheaper than a thin SVD of the stack.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

EPSILON_F32 = 2.0**-24  # half a unit in the last place of float32, relative


def gram_of_rows(matrices: Iterable[Tensor]) -> Tensor:
    """Sum of X @ X.T over matrices X of one row count.

    Args:
        matrices: non-empty; each (m, n_i), any float dtype.

    Returns:
        (m, m) float64.

    Raises:
        ValueError: there is no matrix.
    """
    total: Tensor | None = None
    for x in matrices:
        wide = x.to(torch.float64)
        product = wide @ wide.T
        total = product if total is None else total.add_(product)
    if total is None:
        raise ValueError("gram_of_rows needs at least one matrix")
    return total


def principal_directions(gram: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors of a Gram matrix above the numerical noise, strongest first.

    Args:
        gram: (m, m) float64, symmetric, positive semi-definite: X @ X.T.
        size: sets the noise floor. For a stack with the tasks as one side, its other side, as in
            methods.md §23.1; else m, for the rounding of a Gram matrix grows with its own size.

    Returns:
        energies: (r,) float64, descending, > 0: the squared singular values of X.
        vectors: (m, r) float64, orthonormal columns; the largest entry of each is positive.
        r = 0 when the matrix is zero. Directions with
        sigma <= sigma_1 * sqrt(size) * 2**-24 are rounding noise and are left out.
    """
    energies, vectors = torch.linalg.eigh(gram)
    energies = energies.flip(0).clamp_min(0)
    vectors = vectors.flip(1)
    floor = energies[:1] * (size * EPSILON_F32**2) if energies.numel() else energies
    rank = int((energies > floor).sum()) if energies.numel() and energies[0] > 0 else 0
    return energies[:rank], canonical_signs(vectors[:, :rank])


def canonical_signs(columns: Tensor) -> Tensor:
    """The columns with signs chosen so that each one's entry of largest magnitude is positive.

    Args:
        columns: (m, r) float.

    Returns:
        (m, r), same dtype. Of equal magnitudes the first row decides.

    >>> canonical_signs(torch.tensor([[1.0, -0.5], [-2.0, 0.25]])).tolist()
    [[-1.0, 0.5], [2.0, -0.25]]
    """
    if columns.numel() == 0:
        return columns
    strongest = columns.abs().argmax(dim=0)
    signs = torch.sign(columns[strongest, torch.arange(columns.shape[1])])
    return columns * torch.where(signs == 0, torch.ones_like(signs), signs)


def least_squares_on(basis: Tensor) -> Tensor:
    """The matrix P such that P @ x are the least-squares coefficients of x on the basis.

    Args:
        basis: (m, r) float, full column rank (not necessarily orthonormal, for it was rounded).

    Returns:
        (r, m) float64: (B.T B)^-1 B.T.
    """
    wide = basis.to(torch.float64)
    projector: Tensor = torch.linalg.solve(wide.T @ wide, wide.T)
    return projector
