"""Sliding windows over a sequence: each token is predicted once, after as many others as fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a sequence.

    Args:
        start, stop: of the model's input; the target of input i is token i + 1.
        new: how many of the last targets no earlier window predicts.
    """

    start: int
    stop: int
    new: int


def windows(length: int, size: int, stride: int) -> Iterator[Window]:
    """Windows of `size` inputs that together predict tokens 1 .. length - 1, each once.

    Args:
        length: tokens of the sequence.
        size: inputs of a window, >= 1.
        stride: new targets of every window but the first, 1..size.

    >>> [(w.start, w.stop, w.new) for w in windows(8, 4, 2)]
    [(0, 4, 4), (2, 6, 2), (3, 7, 1)]
    >>> sum(w.new for w in windows(1000, 64, 16))
    999
    """
    done = 0  # targets predicted so far
    while done < length - 1:
        stop = min(done + (stride if done else size), length - 1)
        yield Window(max(0, stop - size), stop, stop - done)
        done = stop
