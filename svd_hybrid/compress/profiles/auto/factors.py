"""Low-rank plans for one stack: factors as integers, least squares on what is decoded.

Direction i of a task costs its two vectors. At one step for all numbers their bits and distortion
follow from the energy alone (a unit vector u that carries energy e is rounded as sqrt(e) * u), so
the rank falls out of the prices. Source: codec design §2, §3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svd_hybrid.codec.integers import unit_rows
from svd_hybrid.compress.layer_inputs import LayerInputs
from svd_hybrid.numerics.energy import rank_for_energy
from svd_hybrid.numerics.linalg import canonical_signs
from svd_hybrid.numerics.rounding import NEAREST, rounding_bits, rounding_distortion
from svd_hybrid.numerics.symmetric import eigenvalues, eigenvectors, gram_of_columns

HALVINGS = 12
SHARED_REACH = 3.0
"""How much weaker than alone a direction may be that tasks share the vectors of."""
PRICE = 2 * math.log(2) / 12
"""Squared steps that one bit is worth: the slope of distortion against bits at fine steps."""
ROW_BITS = 2.0
"""What the class of a row costs, about."""
THRESHOLDS = (0.5, 0.55, 0.6, 0.65)
"""Fractions of a step from which magnitudes may be rounded up: late ones save bits when coarse."""
NEGLIGIBLE = 1e-6
"""Share of the largest energy below which what columns span is rounding."""
RIDGE = 1e-9
"""Added to the squared norms, which are 1; far below the rounding of coefficients."""


@dataclass(frozen=True, slots=True)
class Directions:
    """The strongest directions of one matrix (m, n).

    Args:
        energies: (k,) float, descending, > 0: squared singular values.
        left: (m, k), orthonormal columns.
        right: (k, n), rows scaled by the singular values: the matrix is left @ right.
    """

    energies: Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True, slots=True)
class TaskFactors:
    """Factors of every task's own: X_t ~ basis_t.T @ coeff_t.

    Args:
        bases: per task (k_t, m) int32, rows in units of nothing: they are normalised.
        coefficients: per task (k_t, n) int32 in units of the step.
    """

    bases: tuple[Tensor, ...]
    coefficients: tuple[Tensor, ...]

    @property
    def own(self) -> tuple[Tensor, ...]:
        """What is solved per task: the coefficients."""
        return self.coefficients

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        """All that is stored."""
        return (*self.bases, *self.coefficients)

    @property
    def rank(self) -> int:
        """Directions of the task that has most."""
        return max(len(basis) for basis in self.bases)


@dataclass(frozen=True)
class SharedFactors:
    """Two bases for all tasks and a core of each: X_t ~ left.T @ core_t @ right.

    Args:
        left: (p, m) int32, rows are normalised.
        right: (q, n) int32, the same.
        cores: per task (p, q) int32 in units of the step.
    """

    left: Tensor
    right: Tensor
    cores: tuple[Tensor, ...]

    @property
    def own(self) -> tuple[Tensor, ...]:
        """What is solved per task: the cores."""
        return self.cores

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        """All that is stored."""
        return (self.left, self.right, *self.cores)

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Both bases as they are decoded: unit rows, float32."""
        return unit_rows(self.left), unit_rows(self.right)

    @cached_property
    def projectors(self) -> tuple[Tensor, Tensor]:
        """Of both bases, float64."""
        left, right = self.sides
        return _projector(left), _projector(right)

    def core(self, x: Tensor, step: float) -> Tensor:
        """Least-squares core (p, q) int32 of a matrix (m, n)."""
        left, right = self.projectors
        on_both = left.to(x.dtype) @ x @ right.to(x.dtype).T
        return (on_both / step).round().to(torch.int32)

    @property
    def rank(self) -> int:
        """Directions of the larger basis."""
        return max(len(self.left), len(self.right))


Factors = TaskFactors | SharedFactors


def strongest_directions(
    x: Tensor, least: float, max_rank: int | None = None, max_energy: float | None = None
) -> Directions:
    """The directions of a matrix that carry some energy, strongest first.

    Args:
        x: (m, n) float.
        least: energy of a direction that may be worth coding.
        max_rank: most directions; None for any number.
        max_energy: share of the energy after which no more are taken; None for all.

    Returns:
        Directions of the dtype of `x`.
    """
    tall = x.shape[0] > x.shape[1]
    gram = gram_of_columns(x if tall else x.T, x.dtype)
    energies = eigenvalues(gram).clamp_min(0)
    kept = int((energies > least).sum())
    if max_rank is not None:
        kept = min(kept, max_rank)
    if max_energy is not None:
        kept = min(kept, rank_for_energy(energies, max_energy))
    energies, vectors = eigenvectors(gram, kept)
    vectors = canonical_signs(vectors)
    scales = energies.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    if not tall:
        return Directions(energies, vectors, vectors.T @ x)
    return Directions(energies, (x @ vectors) / scales, vectors.T * scales[:, None])


def least_energy(m: int, n: int, step: float, tasks: int) -> float:
    """The energy below which no direction of an (m, n) matrix can pay.

    Args:
        m: rows.
        n: columns.
        step: of basis and coefficients.
        tasks: that may share its vectors.
    """
    low, high = 0.0, 64.0 * (m + n) * step**2
    for _ in range(HALVINGS):
        energy = torch.tensor([(low + high) / 2], dtype=torch.float64)
        cost = number_costs(energy, m, step) + number_costs(energy, n, step)
        if float(cost) < float(energy):
            high = float(energy)
        else:
            low = float(energy)
    return high / (SHARED_REACH if tasks > 1 else 1.0)


def number_costs(energies: Tensor, count: int, step: float, up_from: float = NEAREST) -> Tensor:
    """Squared error plus priced bits of `count` numbers that share each energy.

    Args:
        energies: any shape, float64.
        count: numbers that share one.
        step: they are rounded to.
        up_from: fraction of the step from which magnitudes are rounded up.
    """
    variances = (energies.to(torch.float64) / (count * step**2)).numpy()
    bits = rounding_bits(variances, up_from)
    costs = rounding_distortion(variances, up_from) + PRICE * bits
    return torch.from_numpy(np.asarray(costs)) * (count * step**2)


def rest_cost(energy: float, count: int, step: float) -> float:
    """Squared error plus priced bits of a rest that is rounded, or its energy if that is less.

    Args:
        energy: squared norm of the rest.
        count: of its numbers.
        step: they are rounded to.
    """
    return min(energy, float(threshold_costs(energy, count, step).min()))


def threshold_costs(energy: float, count: int, step: float) -> NDArray[np.float64]:
    """Cost of rounding numbers, for each of THRESHOLDS; arguments as for `rest_cost`."""
    whole = torch.tensor([energy], dtype=torch.float64)
    return np.array([float(number_costs(whole, count, step, up)) for up in THRESHOLDS])


def paying(gains: Tensor, costs: Tensor) -> int:
    """How many leading directions gain more than they cost."""
    return int((gains > costs).to(torch.int64).cumprod(0).sum())


def rounded_basis(vectors: Tensor, energies: Tensor, step: float) -> Tensor:
    """Unit vectors (length, k) as integer rows (k, length), each as precise as its energy asks."""
    rows = (vectors * (energies.sqrt() / step)).T.round()
    return rows[rows.any(1)].to(torch.int32)


def task_factors(
    stack: Sequence[Tensor], found: Sequence[Directions], step: float, worth: float = 1.0
) -> TaskFactors | None:
    """Every task's own factors; None when no direction pays.

    Args:
        stack: per task (m, n).
        found: the directions of each.
        step: of basis and coefficients.
        worth: what a unit of energy costs that is left to the rest.
    """
    m, n = stack[0].shape
    bases, coefficients = [], []
    for x, directions in zip(stack, found, strict=True):
        energies = directions.energies
        costs = number_costs(energies, m, step) + number_costs(energies, n, step)
        rank = paying(energies * worth, costs)
        basis = rounded_basis(directions.left[:, :rank], energies[:rank], step)
        bases.append(basis)
        coefficients.append(solved(unit_rows(basis), x, step))
    if not any(map(len, bases)):
        return None
    return TaskFactors(tuple(bases), tuple(coefficients))


@dataclass(frozen=True, slots=True)
class JointSpan:
    """What the directions of all tasks span together.

    Args:
        left, right: energies (p,), (q,) and orthonormal columns (m, p), (n, q), strongest first.
        energies: per task (p, q), on every pair of them.
    """

    left: tuple[Tensor, Tensor]
    right: tuple[Tensor, Tensor]
    energies: tuple[Tensor, ...]

    @classmethod
    def of(cls, found: Sequence[Directions]) -> JointSpan:
        """Of the directions of each task."""
        left = _joint_basis(torch.cat([d.left * d.energies.sqrt() for d in found], 1))
        right = _joint_basis(torch.cat([d.right for d in found]).T)
        energies = ((left[1].T @ d.left @ (d.right @ right[1])).square_() for d in found)
        return cls(left, right, tuple(energies))


def shared_factors(
    stack: Sequence[Tensor], span: JointSpan, step: float, worth: float = 1.0
) -> SharedFactors | None:
    """Bases for all tasks and their cores; None when none pays.

    Args:
        stack: per task (m, n).
        span: what may be worth coding.
        step: of bases and cores.
        worth: what a unit of energy costs that is left to the rest.
    """
    m, n = stack[0].shape
    (left_energies, left), (right_energies, right) = span.left, span.right
    if not (len(left_energies) and len(right_energies)):
        return None
    gains = torch.zeros(len(left_energies), len(right_energies), dtype=torch.float64)
    for energies in span.energies:  # one at a time, for their costs take ten times their memory
        gains += (energies * worth - number_costs(energies, 1, step)).clamp_min_(0)
    p = paying(gains.sum(1), number_costs(left_energies, m, step))
    q = paying(gains[:p].sum(0), number_costs(right_energies, n, step))
    left_rows = rounded_basis(left[:, :p], left_energies[:p], step)
    right_rows = rounded_basis(right[:, :q], right_energies[:q], step)
    if not (len(left_rows) and len(right_rows)):
        return None
    bases = SharedFactors(left_rows, right_rows, ())
    return replace(bases, cores=tuple(bases.core(x, step) for x in stack))


def _joint_basis(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (r,) and orthonormal vectors (length, r) of what some columns span together."""
    length, count = columns.shape
    wide = count >= length
    gram = gram_of_columns(columns.T if wide else columns, columns.dtype)
    energies = eigenvalues(gram)
    rank = int((energies > energies[:1] * NEGLIGIBLE).sum()) if count else 0
    energies, vectors = eigenvectors(gram, rank)
    if not wide:
        vectors = (columns @ vectors) / energies.sqrt()
    return energies, canonical_signs(vectors)


def solved(basis: Tensor, x: Tensor, step: float, inputs: LayerInputs | None = None) -> Tensor:
    """Least-squares coefficients (k, n) int32 of a matrix on decoded rows (k, m).

    Args:
        basis: (k, m), unit rows.
        x: (m, n).
        step: of the coefficients.
        inputs: of the layer, to be minded in rounding; they must lie along the columns.
    """
    if not len(basis):
        return torch.zeros((0, x.shape[1]), dtype=torch.int32)
    exact = _projector(basis).to(x.dtype) @ x / step
    if inputs is None or inputs.turned:
        return exact.round().to(torch.int32)
    return inputs.rounded(exact)[0].to(torch.int32)


def _projector(rows: Tensor) -> Tensor:
    """(k, m) float64: times a matrix, its least-squares coefficients on unit rows (k, m).

    Coarse rounding can make two rows equal; the ridge then gives each half of the coefficient.
    """
    wide = rows.to(torch.float64)
    gram = wide @ wide.T
    gram.diagonal().add_(RIDGE)
    solution: Tensor = torch.linalg.solve(gram, wide)
    return solution


def solved_again(
    factors: Factors, task: int, x: Tensor, step: float, inputs: LayerInputs | None = None
) -> Tensor:
    """A task's coefficients or core, int32, on the same bases for another matrix."""
    if isinstance(factors, SharedFactors):
        return factors.core(x, step)
    return solved(unit_rows(factors.bases[task]), x, step, inputs)


def with_coefficients(factors: Factors, own: Sequence[Tensor]) -> Factors:
    """The same bases with other coefficients or cores, one per task."""
    if isinstance(factors, SharedFactors):
        return replace(factors, cores=tuple(own))
    return replace(factors, coefficients=tuple(own))


def product(
    factors: Factors, task: int, step: float, dtype: torch.dtype, own: Tensor | None = None
) -> Tensor:
    """What the factors give for a task, (m, n); as decoded, up to the rounding of `dtype`.

    Args:
        factors: of all tasks.
        task: which.
        step: of coefficients or cores.
        dtype: to compute in.
        own: coefficients or core to take instead of the task's.
    """
    numbers = (factors.own[task] if own is None else own).to(dtype) * step
    if isinstance(factors, SharedFactors):
        left, right = factors.sides
        return left.T.to(dtype) @ (numbers @ right.to(dtype))
    return unit_rows(factors.bases[task]).to(dtype).T @ numbers


def factor_bits(factors: Factors) -> float:
    """Bits of all numbers, by their rows' scales."""
    return sum(map(_matrix_bits, factors.matrices))


def _matrix_bits(matrix: Tensor) -> float:
    if not matrix.numel():
        return 0.0
    variances = matrix.to(torch.float64).square().mean(1).numpy()
    return float(rounding_bits(variances).sum()) * matrix.shape[1] + ROW_BITS * len(matrix)
