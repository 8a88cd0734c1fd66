"""Codecs: tensor ⇄ stored arrays or strings. Encode and decode side by side, one codec a file."""

from __future__ import annotations

from svd_hybrid.codec.base import AnyCodec, Codec, Encoded, StreamCodec
from svd_hybrid.codec.bitmask import BitmaskCodec
from svd_hybrid.codec.half import HalfCodec
from svd_hybrid.codec.integers import IntegersCodec
from svd_hybrid.codec.raw import RawCodec
from svd_hybrid.codec.residual import ResidualAffineCodec
from svd_hybrid.codec.sign import SignCodec
from svd_hybrid.codec.sparse_sign import SparseSignCodec
from svd_hybrid.codec.table import CODECS, codec_from_json, codec_to_json
from svd_hybrid.codec.trellis import TrellisCodec
from svd_hybrid.codec.zstd_affine import ZstdAffineCodec
from svd_hybrid.codec.zstd_planes import ZstdPlanesCodec

__all__ = [
    "CODECS",
    "AnyCodec",
    "BitmaskCodec",
    "Codec",
    "Encoded",
    "HalfCodec",
    "IntegersCodec",
    "RawCodec",
    "ResidualAffineCodec",
    "SignCodec",
    "SparseSignCodec",
    "StreamCodec",
    "TrellisCodec",
    "ZstdAffineCodec",
    "ZstdPlanesCodec",
    "codec_from_json",
    "codec_to_json",
]
