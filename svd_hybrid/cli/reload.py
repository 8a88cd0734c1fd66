"""`svdh reload`: base + artifact → a model."""

from __future__ import annotations

from svd_hybrid.reload.command import reload

__all__ = ["reload"]
