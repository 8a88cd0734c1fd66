"""Packages of the extra `[eval]`, imported when something needs them."""

from __future__ import annotations

import importlib
import os
from typing import Any

from svd_hybrid.errors import UsageError

INSTALL = "pip install 'svd-hybrid[eval]'"


def require(package: str, purpose: str) -> Any:
    """The module of that name.

    Args:
        package: importable name.
        purpose: what needs it, for the error.

    Raises:
        UsageError: it is not installed.
    """
    if package == "transformers":
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"{purpose} needs the package {package!r}: {error}", fix=f"run {INSTALL}"
        ) from error
