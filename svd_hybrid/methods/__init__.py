"""Merge rules, one per file, and the table of them."""

from __future__ import annotations

from svd_hybrid.methods.base import MergeMethod
from svd_hybrid.methods.svd_hybrid import SVD_HYBRID
from svd_hybrid.registry import Registry

METHODS: Registry[MergeMethod] = Registry("method", [SVD_HYBRID])

__all__ = ["METHODS", "MergeMethod"]
