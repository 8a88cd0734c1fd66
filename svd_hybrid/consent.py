"""What a user has allowed in so many words; nothing unless they said so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_MODULE_PICKLES: ContextVar[bool] = ContextVar("module_pickles", default=False)


def module_pickles_allowed() -> bool:
    """Whether the tensors of whole pickled modules may be read (`io.module_pickle`)."""
    return _MODULE_PICKLES.get()


@contextmanager
def allow_module_pickles() -> Iterator[None]:
    """Allow it inside the block."""
    token = _MODULE_PICKLES.set(True)
    try:
        yield
    finally:
        _MODULE_PICKLES.reset(token)
