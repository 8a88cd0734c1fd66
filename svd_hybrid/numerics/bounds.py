"""How many bits a given relative error needs, read off the spectra of the deltas.

What goes in: the singular values of every task's delta, tensor by tensor. What comes out: bits per
number of two reference lines that measured artifacts are drawn against. Both take numbers to be
Gaussian and share one distortion level theta, the water level: a number of variance v costs
1/2 log2(v / theta) bits and is left with an error of theta, or costs nothing and loses v.

- `white_bits` knows the variance of a tensor and nothing else.
- `manifold_bits` knows the singular values and pays for the singular vectors.

Source: codec design, section 2 (`model of the data`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svd_hybrid.errors import ParameterError

HALVINGS = 56
"""Of the interval of log2(theta), less than 2**11 wide in float64; leaves theta to 2**-45 of it."""

Curve = Callable[[float], tuple[float, float]]
"""theta → (bits, squared error), summed over all numbers; the error never falls with theta."""


@dataclass(frozen=True, slots=True)
class DeltaSpectrum:
    """Singular values of one tensor's deltas.

    Args:
        rows, columns: of the matrix; a vector is one row.
        singular: (N, min(rows, columns)) float64, descending, >= 0.
    """

    rows: int
    columns: int
    singular: Tensor

    @property
    def count(self) -> int:
        """Numbers in the deltas of all tasks."""
        return self.singular.shape[0] * self.rows * self.columns

    @property
    def energy(self) -> float:
        """Squared norm of all tasks' deltas."""
        return float(self.singular.square().sum())


def delta_spectrum(stack: Tensor) -> DeltaSpectrum:
    """Singular values of every task's delta.

    Args:
        stack: (N, m, n) float.
    """
    rows, columns = stack.shape[1:]
    return DeltaSpectrum(rows, columns, torch.linalg.svdvals(stack.double()))


def white_bits(spectra: Sequence[DeltaSpectrum], relative_error: float) -> float:
    """Bits per number of independent Gaussian numbers with one variance per tensor.

    Args:
        spectra: of every tensor that is stored; those without any change count as numbers too.
        relative_error: norm of the error over that of the deltas, >= 0.

    Returns:
        0 from a relative error of 1 on; infinity at 0, unless nothing changed.

    Raises:
        ParameterError: the relative error is negative or not a number.

    >>> spectrum = delta_spectrum(torch.ones(1, 1, 4))
    >>> white_bits([spectrum], 0.25)
    2.0
    """
    variances = _column([s.energy / s.count for s in spectra if s.energy])
    counts = _column([s.count for s in spectra if s.energy])

    def curve(theta: float) -> tuple[float, float]:
        bits, errors = _coded(variances, theta)
        return float(counts @ bits), float(counts @ errors)

    return _bits_per_number(spectra, relative_error, curve)


def manifold_bits(spectra: Sequence[DeltaSpectrum], relative_error: float) -> float:
    """Bits per number of codes that store each task's singular directions and their strengths.

    A matrix of rank r has r (m + n - r) free numbers. Component i = 0, 1, … of m >= n brings m - i
    of variance s_i**2 / m and n - i - 1 of variance s_i**2 / n, for each direction is orthogonal to
    those before it. A component is left out whole where that is cheaper at the slope the water
    level stands for, 2 ln(2) theta a bit.

    Unlike the codec design, which never leaves one out: the loss of a component then counts on both
    sides, and at relative errors around 0.5 the line lies 0.02 bits above artifacts measured there.

    Arguments, result and errors are those of `white_bits`.
    """
    changed = [s for s in spectra if s.energy]
    parts = torch.cat([_components(s) for s in changed], 1) if changed else torch.zeros(5, 0)
    energies, long_counts, long_variances, short_counts, short_variances = parts.double()

    def curve(theta: float) -> tuple[float, float]:
        long_bits, long_errors = _coded(long_variances, theta)
        short_bits, short_errors = _coded(short_variances, theta)
        bits = long_counts * long_bits + short_counts * short_bits
        errors = long_counts * long_errors + short_counts * short_errors
        kept = (bits > 0) & (errors + 2 * math.log(2) * theta * bits < energies)
        return float(bits[kept].sum()), float(torch.where(kept, errors, energies).sum())

    return _bits_per_number(spectra, relative_error, curve)


def _coded(variances: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """Bits and squared error of a number of each variance at one water level."""
    return 0.5 * torch.log2(variances / theta).clamp_min(0), variances.clamp_max(theta)


def _components(spectrum: DeltaSpectrum) -> Tensor:
    """(5, components of all tasks): energy, then count and variance of the long and short side."""
    energies = spectrum.singular.square()
    long, short = (max(spectrum.rows, spectrum.columns), min(spectrum.rows, spectrum.columns))
    index = torch.arange(short, dtype=torch.float64).expand_as(energies)
    columns = (energies, long - index, energies / long, short - index - 1, energies / short)
    return torch.stack([column.flatten() for column in columns])


def _bits_per_number(
    spectra: Sequence[DeltaSpectrum], relative_error: float, curve: Curve
) -> float:
    """Bits per number at the error; where the error jumps, a mixture of both sides of the jump."""
    if not relative_error >= 0:
        raise ParameterError(f"relative_error is {relative_error}, not >= 0")
    energy, count = sum(s.energy for s in spectra), sum(s.count for s in spectra)
    if not energy or relative_error >= 1:
        return 0.0
    wanted = relative_error**2 * energy
    if not wanted:
        return math.inf
    largest = max(float(s.singular.max()) for s in spectra if s.energy) ** 2
    low, high = math.log2(wanted / count) - 1, math.log2(largest) + 1
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if curve(2.0**middle)[1] > wanted else (middle, high)
    (more_bits, less_error), (less_bits, more_error) = curve(2.0**low), curve(2.0**high)
    share = (wanted - less_error) / (more_error - less_error) if more_error > less_error else 0.0
    return (more_bits + share * (less_bits - more_bits)) / count


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
