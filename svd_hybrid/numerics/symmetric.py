"""Gram matrices and their eigenvectors through LAPACK, on as many threads as torch may use.

SciPy rather than torch: it forms one triangle of a Gram matrix (half the work) and computes only
the eigenvectors that are asked for.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg  # type: ignore[import-untyped]
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from torch import Tensor

Array = NDArray[Any]
SUBSET_PAYS = 3  # a subset of eigenvectors is cheaper than all below 1 / this of them (measured)


def gram_of_columns(a: Tensor, dtype: torch.dtype) -> Array:
    """Lower triangle of a.T @ a.

    Args:
        a: (m, n) float; the transpose of a contiguous matrix is as good as a contiguous one.
        dtype: float32 or float64, of the products and the result.

    Returns:
        (n, n), Fortran order; what is above the diagonal means nothing.
    """
    array = a.to(dtype).numpy()
    if not array.size:
        return np.zeros((array.shape[1],) * 2, array.dtype, order="F")
    syrk = linalg.blas.ssyrk if dtype == torch.float32 else linalg.blas.dsyrk
    with _threads():
        if array.flags.f_contiguous:
            return syrk(1.0, array, trans=1, lower=1)  # type: ignore[no-any-return]
        return syrk(1.0, array.T, trans=0, lower=1)  # type: ignore[no-any-return]


def eigenvectors(gram: Array, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a symmetric matrix with their vectors, in descending order.

    Args:
        gram: (n, n) float32 or float64, lower triangle.
        count: how many, 0..n.

    Returns:
        values: (count,) and vectors: (n, count), of the dtype of `gram`.
    """
    size = len(gram)
    with _threads():
        if count * SUBSET_PAYS < size and count:
            chosen = (size - count, size - 1)
            values, vectors = linalg.eigh(
                gram, driver="evr", subset_by_index=chosen, check_finite=False
            )
        else:
            values, vectors = _all_eigenvectors(gram)
    largest = torch.from_numpy(values).flip(0)[:count]
    return largest, torch.from_numpy(vectors).flip(1)[:, :count]


def eigenvalues(gram: Array) -> Tensor:
    """All eigenvalues of a symmetric matrix, descending, (n,) of the dtype of `gram`.

    Args:
        gram: (n, n) float32 or float64, lower triangle.
    """
    if not len(gram):
        return torch.from_numpy(gram.reshape(0))
    with _threads():
        values = linalg.eigh(gram, driver="evr", eigvals_only=True, check_finite=False)
    return torch.from_numpy(values).flip(0)


def inverse_norm(gram: Array) -> float:
    """Frobenius norm of the inverse of a float32 Gram matrix; infinite when it has none.

    Args:
        gram: (n, n) float32, lower triangle.
    """
    if not len(gram):
        return 0.0
    factor, failed = linalg.lapack.spotrf(gram, lower=1)
    inverse, singular = linalg.lapack.spotri(factor, lower=1) if not failed else (factor, failed)
    return math.inf if singular else triangle_norm(inverse)


def triangle_norm(lower: Array) -> float:
    """Frobenius norm of the symmetric matrix whose lower triangle is given."""
    squares = np.square(np.tril(lower), dtype=np.float64)
    return float(np.sqrt(2 * squares.sum() - squares.diagonal().sum()))


def _all_eigenvectors(gram: Array) -> tuple[Array, Array]:
    if not len(gram):
        return gram[0:0].reshape(0), gram
    try:
        return linalg.eigh(gram, driver="evd", check_finite=False)  # type: ignore[no-any-return]
    except np.linalg.LinAlgError:  # divide and conquer did not converge: try the other algorithm
        return linalg.eigh(gram, driver="evr", check_finite=False)  # type: ignore[no-any-return]


@cache
def _controller() -> Any:
    return ThreadpoolController()


def _threads() -> Any:
    """A block in which SciPy's BLAS has the threads that torch has."""
    return _controller().limit(limits=torch.get_num_threads(), user_api="blas")
