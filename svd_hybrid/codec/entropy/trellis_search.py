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
    return np.where(values < 0, -found, found)  # a zero may have an index: its parity is the path's


def _candidates(values: Floats, kind: NDArray[np.int64], price: float) -> tuple[Floats, Indices]:
    """The cheapest magnitude of each kind: cost and index, (length, 4, paths)."""
    costs = np.empty((len(values), 4, len(kind)), np.float32)
    indices = np.empty(costs.shape, np.int32)
    magnitudes = np.abs(values)
    bits = index_bits() * np.float32(price)  # (classes, 2, magnitudes)
    width = bits.shape[2]
    reach = reach_of()[kind]
    for quantiser in (0, 1):
        own = bits[:, quantiser].ravel()
        exact = (magnitudes + np.float32(quantiser)) * np.float32(0.5)
        for parity in (0, 1):
            tried = _nearest(exact, parity, reach)
            prices = [
                (magnitudes - (2 * index - np.minimum(index, 1) * quantiser)) ** 2
                + own.take(kind * width + np.minimum(index, width - 1))
                for index in tried
            ]
            at = 2 * quantiser + parity
            costs[:, at] = np.minimum(prices[0], prices[1])
            indices[:, at] = np.where(prices[1] < prices[0], tried[1], tried[0])
    return costs, indices


def _nearest(exact: Floats, parity: int, reach: Indices) -> tuple[Indices, Indices]:
    """The indices of a parity nearest to some numbers, and those below them.

    All indices from the reach upwards have the parity of the reach.
    """
    near = np.rint((exact - np.float32(parity)) * np.float32(0.5)).astype(np.int32) * 2 + parity
    np.maximum(near, parity, out=near)
    whole = np.rint(exact).astype(np.int32)
    ends = (reach & 1) == parity
    near = np.where(ends, np.where(whole >= reach, whole, near), np.minimum(near, reach - 1))
    below = np.maximum(near - np.where(near > reach, 1, 2).astype(np.int32), parity)
    return near, below
