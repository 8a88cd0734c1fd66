"""How much of a spectrum a rank holds."""

from __future__ import annotations

import torch
from torch import Tensor

from svd_hybrid.errors import ParameterError


def explained_energy(energies: Tensor) -> Tensor:
    """Cumulative share of the energy held by the first 1, 2, … directions.

    Args:
        energies: (r,) squared singular values, descending, >= 0.

    Returns:
        (r,) float64 in [0, 1]; all ones when the energies are all zero.

    >>> explained_energy(torch.tensor([3.0, 1.0])).tolist()
    [0.75, 1.0]
    """
    total = energies.to(torch.float64).cumsum(0)
    if total.numel() == 0 or total[-1] == 0:
        return torch.ones_like(total)
    return total / total[-1]


def rank_for_energy(energies: Tensor, threshold: float, max_rank: int | None = None) -> int:
    """Smallest rank whose directions hold `threshold` of the energy, capped by `max_rank`.

    Args:
        energies: (r,) squared singular values, descending, >= 0; units of the delta, squared.
        threshold: share of the energy to keep, in (0, 1].
        max_rank: cap, >= 1; None for no cap.

    Returns:
        Rank in 0..r. 0 when the energies are all zero: the tasks left this tensor unchanged.

    Raises:
        ParameterError: the threshold or the cap is outside its range.

    Source: SVD-Hybrid rank rule k = min(#{j : E_j < threshold} + 1, cap); unlike the original, the
    test for "no energy" is exact and not absolute, so small deltas keep their rank.

    >>> rank_for_energy(torch.tensor([100.0, 25.0, 4.0, 1.0]), 0.9)
    2
    """
    if not 0 < threshold <= 1:
        raise ParameterError(
            f"energy_threshold is {threshold}, outside (0, 1]", fix="pass a share such as 0.95"
        )
    if max_rank is not None and max_rank < 1:
        raise ParameterError(f"max_rank is {max_rank}, below 1", fix="pass 1 or more")
    if energies.numel() == 0 or energies[0] == 0:
        return 0
    below = int((explained_energy(energies) < threshold).sum())
    wanted = min(below + 1, energies.numel())
    return wanted if max_rank is None else min(wanted, max_rank)
