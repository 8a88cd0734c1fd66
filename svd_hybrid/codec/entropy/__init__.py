"""Entropy coder for slices: integer matrices with scale classes, static tables and rANS.

`classify` and `count` gather statistics, `Tables.fit` makes tables, `encode` and `decode` use
them. Decoding is integers only, so equal bytes give equal numbers everywhere.
"""

from __future__ import annotations

from svd_hybrid.codec.entropy.alphabet import CLASSES, SYMBOLS, class_rms, class_shift
from svd_hybrid.codec.entropy.classes import Classes
from svd_hybrid.codec.entropy.classify import classify
from svd_hybrid.codec.entropy.slices import cost, count, decode, encode
from svd_hybrid.codec.entropy.tables import Tables

__all__ = [
    "CLASSES",
    "SYMBOLS",
    "Classes",
    "Tables",
    "class_rms",
    "class_shift",
    "classify",
    "cost",
    "count",
    "decode",
    "encode",
]
