"""The table of profiles."""

from __future__ import annotations

from svd_hybrid.compress.profiles.auto import AUTO, MAX
from svd_hybrid.compress.profiles.base import Profile
from svd_hybrid.compress.profiles.bitdelta import BITDELTA
from svd_hybrid.compress.profiles.compeft import COMPEFT
from svd_hybrid.compress.profiles.delta_come import DELTA_COME
from svd_hybrid.compress.profiles.exact import EXACT
from svd_hybrid.compress.profiles.fast import FAST
from svd_hybrid.compress.profiles.hybrid import HYBRID
from svd_hybrid.compress.profiles.rtvq import RTVQ
from svd_hybrid.compress.profiles.tvq import TVQ
from svd_hybrid.registry import Registry

PROFILES: Registry[Profile] = Registry(
    "profile",
    [
        AUTO,
        MAX,
        HYBRID,
        TVQ,
        RTVQ,
        BITDELTA,
        COMPEFT,
        DELTA_COME,
        FAST,
        EXACT,
    ],
)
