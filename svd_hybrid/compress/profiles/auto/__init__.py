"""`auto`: strong directions as factors, the rest as noise-like codes, one step for the family."""

from __future__ import annotations

from svd_hybrid.compress.profiles.auto.encode import AUTO, MAX

__all__ = ["AUTO", "MAX"]
