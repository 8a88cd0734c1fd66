"""Codecs: tensor ⇄ stored arrays. Encode and decode stand side by side, one codec a file."""

from __future__ import annotations

from svd_hybrid.codec.base import Codec, Encoded
from svd_hybrid.codec.bitmask import BitmaskCodec
from svd_hybrid.codec.half import HalfCodec
from svd_hybrid.codec.raw import RawCodec
from svd_hybrid.codec.residual import ResidualAffineCodec
from svd_hybrid.codec.table import CODECS, codec_from_json, codec_to_json

__all__ = [
    "CODECS",
    "BitmaskCodec",
    "Codec",
    "Encoded",
    "HalfCodec",
    "RawCodec",
    "ResidualAffineCodec",
    "codec_from_json",
    "codec_to_json",
]
