"""Modules that are imported when they are first used.

Merge methods are listed, with their parameters, by commands that must start without torch; so the
one file of a method names torch and the kernels it uses through `lazy`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class _LazyModule(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self.__name__), attribute)


def lazy(name: str) -> Any:
    """A stand-in for the module `name`, which is imported at the first attribute access.

    >>> lazy("math").sqrt(4.0)
    2.0
    """
    return _LazyModule(name)
