"""Entropy coder for slices: integer matrices with scale classes, static tables and rANS.

`classify` chooses the classes that `encode` will use. Decoding is integers only, so equal bytes
give equal numbers everywhere.
"""

from __future__ import annotations

from svd_hybrid.codec.entropy.classes import Classes
from svd_hybrid.codec.entropy.classify import classify
from svd_hybrid.codec.entropy.slices import Prepared, decode, encode, prepare

__all__ = ["Classes", "Prepared", "classify", "decode", "encode", "prepare"]
