"""Packages that can be called: `svd_hybrid.compress(...)` is a function and a package at once."""

from __future__ import annotations

import sys
from typing import Any


def make_callable(package: str, module: str, function: str) -> None:
    """Let a package be called as the function `module.function`, imported on the first call.

    The public names `svd_hybrid.compress` and `svd_hybrid.reload` are also the packages that
    hold the code (and `python -m svd_hybrid.reload` needs it so); Python lets a module choose its
    class for such cases.
    """
    kind = type(sys.modules[package])

    class CallablePackage(kind):  # type: ignore[valid-type, misc]
        """A package whose call is one function's call."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            from importlib import import_module

            return getattr(import_module(module), function)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
