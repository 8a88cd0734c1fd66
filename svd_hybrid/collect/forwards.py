"""Replacing what modules do when they are called, for as long as a block of code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def replaced(
    modules: Iterable[nn.Module], make: Callable[[int, nn.Module], Forward]
) -> Iterator[None]:
    """Give each module the forward that `make(place, module)` returns; what was there comes back.

    `make` may keep `module.forward`, which is still the old one when it is called.
    """
    chosen = list(modules)
    before = [module.__dict__.get("forward") for module in chosen]
    for place, module in enumerate(chosen):
        module.forward = make(place, module)
    try:
        yield
    finally:
        for module, forward in zip(chosen, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward
