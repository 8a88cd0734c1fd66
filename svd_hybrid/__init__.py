"""svdh: a family of fine-tuned models as one small, verifiable artifact.

Public names: `compress`, `reload`, `Artifact`, `SvdhError`. They are imported on first use, so that
`import svd_hybrid` stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svd_hybrid.compress.api import compress as compress
    from svd_hybrid.errors import SvdhError as SvdhError
    from svd_hybrid.reload.api import reload as reload
    from svd_hybrid.reload.model import Artifact as Artifact

__version__ = "0.1.0"
__all__ = ["Artifact", "SvdhError", "__version__", "compress", "reload"]

_HOMES = {
    "Artifact": "svd_hybrid.reload.model",
    "SvdhError": "svd_hybrid.errors",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("compress", "reload"):
        return import_module(f"svd_hybrid.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
