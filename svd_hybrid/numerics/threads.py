"""One thread where the order of additions would otherwise depend on the thread count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block, so that equal inputs give equal bits.

    Matrix products and eigen-decompositions add in an order that depends on the thread count; the
    encoder uses this block so that an artifact does not.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
