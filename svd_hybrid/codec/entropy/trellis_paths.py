"""The trellis: paths through the numbers of a class, and what a path's state says.

An index k stands for twice itself, or for one less in magnitude, in units of half a step: which of
the two is the quantiser of the path's state, and parities of k move the state. Number j of a class
follows number j - paths; the first ones have state 0. Source: Joint Video Experts Team, trellis of
8 states of "dependent quantization" (ITU-T H.266); codec design §5.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.tables import Bytes, Ints

NEXT: Bytes = np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.uint8)
"""(state, parity) → the state after it."""
STATES = len(NEXT)
PATH_LENGTH = 128
"""Numbers of a path, at most: short ones make many that an encoder can search at once."""


def path_count(count: int) -> int:
    """Paths through `count` numbers of a class.

    >>> path_count(1), path_count(128), path_count(129)
    (1, 1, 2)
    """
    return -(-count // PATH_LENGTH)


def rounds(count: int) -> Iterator[slice]:
    """The numbers that come at once, one of every path."""
    paths = path_count(count)
    for start in range(0, count, max(paths, 1)):
        yield slice(start, min(start + paths, count))


def quantisers(parities: NDArray[np.integer]) -> Bytes:
    """Which quantiser each number of a class has: (n,) uint8 of 0 and 1.

    Args:
        parities: (n,) of 0 and 1, what each number moves its path by.
    """
    found = np.empty(len(parities), np.uint8)
    states: Bytes = np.zeros(path_count(len(parities)), np.uint8)
    for now in rounds(len(parities)):
        states = states[: now.stop - now.start]
        found[now] = states & 1
        states = NEXT[states, parities[now]]
    return found


def doubled(indices: Ints, quantiser: Bytes) -> Ints:
    """What indices stand for, in half steps: (n,) int64."""
    below: Ints = np.sign(indices) * quantiser.astype(np.int64)
    return 2 * indices - below
