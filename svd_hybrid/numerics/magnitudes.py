"""The k-th largest magnitude, exactly: of one array, or of a stream that is never held whole.

Magnitudes are compared after rounding to float32, where the bit pattern of |x| is monotone as an
unsigned integer. A stream is counted twice: a histogram of the high 16 bits finds the bin, one of
the low 16 bits inside that bin finds the value; an array is narrowed to a few percent by a sample.
Source: methods.md §3, "fast exact implementation".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from svd_hybrid.numerics.blocks import CHUNK

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

BINS = 1 << 16
SAMPLE = 16384
SMALL = 8 * SAMPLE
"""Below this many scalars a plain partition is as fast as sampling."""
SPREAD = 3.5
"""Half width of the bracket in standard deviations of the sampled rank: misses once in 2000."""


@dataclass(frozen=True, slots=True)
class Level:
    """A magnitude and where it stands among the others.

    Args:
        value: the magnitude, exact in float32.
        missing: what the larger ones leave to the goal: so many of `equal` reach the rank, or, in a
            level by mass, so much of the sum of squares.
        equal: how many magnitudes are exactly this one.
    """

    value: float
    missing: float
    equal: int


def magnitudes(values: torch.Tensor) -> Iterator[Floats]:
    """|values| (D,) as float32, in chunks that are overwritten by the next one."""
    source = values.numpy()
    buffer = np.empty(min(CHUNK, source.size), np.float32)
    for start in range(0, source.size, CHUNK):
        part = source[start : start + CHUNK]
        chunk = buffer[: part.size]
        np.abs(part, out=chunk, casting="same_kind")
        yield chunk


def kth_largest(values: torch.Tensor, rank: int) -> Level:
    """The `rank`-th largest |value| of an array.

    Args:
        values: (D,) float32 or float64, finite.
        rank: 1..D.
    """
    if values.numel() > SMALL and (level := _by_sample(values, rank)) is not None:
        return level
    whole = np.abs(values.numpy()).astype(np.float32, copy=False)
    return _select(whole, rank, 0)


def _select(candidates: Floats, rank: int, above: int) -> Level:
    """The level of `rank` when `above` larger magnitudes are not among the candidates."""
    place = candidates.size - (rank - above)
    value = np.partition(candidates, place)[place]
    above += int(np.count_nonzero(candidates > value))
    return Level(float(value), rank - above, int(np.count_nonzero(candidates == value)))


def _by_sample(values: torch.Tensor, rank: int) -> Level | None:
    """The level from the scalars inside a sampled bracket; None when the bracket missed it."""
    size = values.numel()
    stride = size // SAMPLE
    picks = np.arange(SAMPLE) * stride + np.random.default_rng(0).integers(0, stride, SAMPLE)
    sample = np.abs(values.numpy()[picks]).astype(np.float32, copy=False)
    share = 1 - rank / size
    reach = SPREAD * (share * (1 - share) / SAMPLE) ** 0.5 + 2 / SAMPLE
    first = max(int((share - reach) * SAMPLE), 0)
    last = min(int((share + reach) * SAMPLE), SAMPLE - 1)
    sample.partition([first, last])
    low = sample[first] if first else np.float32(0)
    high = sample[last] if last < SAMPLE - 1 else np.float32(np.inf)
    above = 0
    inside = []
    for chunk in magnitudes(values):
        over = chunk > high
        above += int(np.count_nonzero(over))
        over ^= chunk >= low  # every `over` is also >= low: what is left lies in the bracket
        inside.append(chunk[over])
    candidates = np.concatenate(inside)
    if not 0 < rank - above <= candidates.size:
        return None
    return _select(candidates, rank, above)


def levels_of_stream(
    stream: Iterable[tuple[torch.Tensor, Any]], goals: Sequence[float], *, by_mass: bool = False
) -> list[Level]:
    """Per task, the magnitude at which a sum from the largest downwards reaches its goal.

    Args:
        stream: stacks (N, *shape); read twice.
        goals: per task a rank >= 1, or with `by_mass` a share of the sum of squares, (0, 1).
        by_mass: sum squares instead of counting.

    Returns:
        One level per task. Of a task that is zero everywhere, by mass: value 0.
    """
    coarse = np.zeros((len(goals), BINS))
    for task, chunk in _task_chunks(stream):
        weights = np.square(chunk, dtype=np.float64) if by_mass else None
        coarse[task] += np.bincount(chunk.view(np.uint32) >> 16, weights, BINS)
    wanted = [goal * coarse[task].sum() if by_mass else goal for task, goal in enumerate(goals)]
    bins = [_reached(coarse[task], goal) for task, goal in enumerate(wanted)]
    fine = np.zeros((len(goals), BINS))
    for task, chunk in _task_chunks(stream):
        bits = chunk.view(np.uint32)
        inside = bits[bits >> 16 == bins[task]]
        fine[task] += np.bincount(inside & (BINS - 1), minlength=BINS)
    return [
        _refined(coarse[task], fine[task], bins[task], goal, by_mass)
        for task, goal in enumerate(wanted)
    ]


def _refined(coarse: Doubles, fine: Doubles, bin_: int, goal: float, by_mass: bool) -> Level:
    patterns = (bin_ << 16) + np.arange(BINS, dtype=np.uint32)
    values = patterns.view(np.float32)
    weights = fine
    if by_mass:
        weights = np.where(fine > 0, fine * np.square(np.where(fine > 0, values, 0.0)), 0.0)
    goal -= float(coarse[bin_ + 1 :].sum())
    low = _reached(weights, goal, fine)
    return Level(float(values[low]), goal - float(weights[low + 1 :].sum()), int(fine[low]))


def _task_chunks(stream: Iterable[tuple[torch.Tensor, Any]]) -> Iterator[tuple[int, Floats]]:
    for deltas, _ in stream:
        for task, delta in enumerate(deltas):
            for chunk in magnitudes(delta.reshape(-1)):
                yield task, chunk


def _reached(weights: Doubles, goal: float, counts: Doubles | None = None) -> int:
    """The highest index from which the sum to the end is at least `goal`.

    Where rounding keeps the sum below the goal, the lowest index that holds anything.
    """
    from_top = np.cumsum(weights[::-1])
    held = np.flatnonzero(weights if counts is None else counts)
    index = weights.size - 1 - int(np.searchsorted(from_top, goal))
    return max(index, int(held[0])) if held.size else 0
