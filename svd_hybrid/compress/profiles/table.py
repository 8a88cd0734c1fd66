"""The table of profiles."""

from __future__ import annotations

from svd_hybrid.compress.profiles.base import Profile
from svd_hybrid.compress.profiles.hybrid import HYBRID
from svd_hybrid.registry import Registry

PROFILES: Registry[Profile] = Registry("profile", [HYBRID])
