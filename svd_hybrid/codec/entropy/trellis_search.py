"""The encoder's way through the trellis: least squared error plus priced bits, by Viterbi."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.classes import Classes
from svd_hybrid.codec.entropy.trellis_paths import NEXT, PATH_LENGTH, STATES, path_count
from svd_hybrid.codec.entropy.trellis_sources import index_bits, reach_of

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]

PRICE = 0.42
"""Squared half steps that one bit is worth."""
BLOCK = 1024
"""Paths searched at once, so that they stay in the cache."""
UNREACHED = np.float32(1e30)

# into every state lead two ways: from which state, and by what kind (2 * quantiser + parity)
_WAYS = [
    [(state, parity) for state in range(STATES) for parity in (0, 1) if NEXT[state, parity] == to]
    for to in range(STATES)
]
FROM = np.array([[state for state, _ in ways] for ways in _WAYS]).T
KIND = np.array([[2 * (state & 1) + parity for state, parity in ways] for ways in _WAYS]).T


def search(values: Floats, classes: Classes, price: float = PRICE) -> tuple[Indices, Indices]:
    """The indices of a matrix and what they stand for in half steps; 0 where the class is 0.

    Args:
        values: (rows, columns) float32, in half steps.
        classes: of every number.
        price: squared half steps that one bit is worth.
    """
    columns = values.shape[1]
    out: Indices = np.zeros((2, *values.shape), np.int32)
    grids, kinds = [], []
    for c, where in classes.places(columns):
        if classes.columns is None:
            where = (where[:, None] * columns + np.arange(columns)).ravel()
        paths = path_count(len(where))
        places = np.full(paths * PATH_LENGTH, -1, np.int64)
        places[: len(where)] = where
        grids.append(places.reshape(PATH_LENGTH, paths))
        kinds.append(np.full(paths, c))
    if not grids:
        return out[0], out[1]
    places, kind = np.concatenate(grids, axis=1), np.concatenate(kinds)
    flat, found = values.ravel(), out.reshape(2, -1)
    for start in range(0, len(kind), BLOCK):
        part = places[:, start : start + BLOCK]
        used = part >= 0
        part = part[: int(used.any(axis=1).sum())]
        used = used[: len(part)]
        indices = _viterbi(flat[part] * used, used, kind[start : start + BLOCK], price)
        found[:, part[used]] = indices[:, used]
    return out[0], out[1]


def _viterbi(
    values: Floats, used: NDArray[np.bool_], kind: NDArray[np.int64], price: float
) -> Indices:
    """(2, length, paths): indices and half steps of values, the first ones of each path used."""
    length, paths = values.shape
    costs, indices = _candidates(values, kind, price)
    costs *= used[:, None]
    total = np.full((STATES, paths), UNREACHED, np.float32)
    total[0] = 0
    second = np.empty((length, STATES, paths), np.bool_)
    one, two, step = (np.empty((STATES, paths), np.float32) for _ in range(3))
    for at in range(length):
        for way, out in ((0, one), (1, two)):
            total.take(FROM[way], axis=0, out=out, mode="clip")
            costs[at].take(KIND[way], axis=0, out=step, mode="clip")
            out += step
        np.less(two, one, out=second[at])
        np.minimum(one, two, out=total)
    every = np.arange(paths)
    state = total.argmin(axis=0)
    found = np.empty((2, length, paths), np.int32)
    for at in range(length - 1, -1, -1):
        way = second[at, state, every].view(np.uint8)
        index = indices[at, KIND[way, state], every]
        found[0, at] = index
        found[1, at] = 2 * index - np.minimum(index, KIND[way, state] >> 1)
        state = FROM[way, state]
    return found * np.sign(values).astype(np.int32)


def _candidates(values: Floats, kind: NDArray[np.int64], price: float) -> tuple[Floats, Indices]:
    """The cheapest magnitude of each kind: cost and index, (length, 4, paths)."""
    length, paths = values.shape
    costs = np.empty((length, 4, paths), np.float32)
    indices = np.empty((length, 4, paths), np.int32)
    magnitudes = np.abs(values)
    bits = index_bits() * np.float32(price)  # (classes, 2, magnitudes)
    width = bits.shape[2]
    reach = reach_of()[kind]
    for quantiser in (0, 1):
        exact = (magnitudes + np.float32(quantiser)) * np.float32(0.5)
        base = (kind * 2 + quantiser) * width
        beyond = np.rint(exact).astype(np.int32)
        for parity in (0, 1):
            near = np.rint((exact - parity) * np.float32(0.5)).astype(np.int32) * 2 + parity
            np.maximum(near, parity, out=near)
            ends = (reach & 1) == parity  # all from the reach upwards count as the reach
            near = np.where(ends & (beyond >= reach), beyond, near)
            near = np.where(ends, near, np.minimum(near, reach - 1)).astype(np.int32)
            best = None
            for index in (near, np.maximum(np.minimum(near, reach) - 2, parity)):
                index = index.astype(np.int32)
                value = 2 * index - np.minimum(index, 1) * quantiser
                cost = (magnitudes - value.astype(np.float32)) ** 2
                cost += bits.take(base + np.minimum(index, width - 1))
                if best is None:
                    best = cost, index
                else:
                    lower = cost < best[0]
                    best = np.where(lower, cost, best[0]), np.where(lower, index, best[1])
            assert best is not None
            costs[:, 2 * quantiser + parity], indices[:, 2 * quantiser + parity] = best
    return costs, indices
