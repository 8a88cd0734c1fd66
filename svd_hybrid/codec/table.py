"""The closed list of codecs, and how a manifest names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svd_hybrid import __version__
from svd_hybrid.codec.base import AnyCodec
from svd_hybrid.codec.bitmask import BitmaskCodec
from svd_hybrid.codec.half import HalfCodec
from svd_hybrid.codec.integers import IntegersCodec
from svd_hybrid.codec.raw import RawCodec
from svd_hybrid.codec.residual import ResidualAffineCodec
from svd_hybrid.codec.sign import SignCodec
from svd_hybrid.codec.sparse_sign import SparseSignCodec
from svd_hybrid.codec.trellis import TrellisCodec
from svd_hybrid.codec.zstd_affine import ZstdAffineCodec
from svd_hybrid.codec.zstd_planes import ZstdPlanesCodec
from svd_hybrid.errors import VersionError
from svd_hybrid.registry import Registry, did_you_mean

CODECS: Registry[type[AnyCodec]] = Registry(
    "codec",
    [
        RawCodec,
        HalfCodec,
        ResidualAffineCodec,
        BitmaskCodec,
        IntegersCodec,
        TrellisCodec,
        ZstdPlanesCodec,
        SignCodec,
        SparseSignCodec,
        ZstdAffineCodec,
    ],
)


def codec_from_json(record: Mapping[str, Any]) -> AnyCodec:
    """The codec a manifest record names.

    Args:
        record: {"name": …, "version": …, **parameters}.

    Raises:
        VersionError: this reader has no such codec, or not that version of it.
        ArtifactError: the parameters are not as the format says.
    """
    config = dict(record)
    name, version = config.pop("name"), config.pop("version")
    if name not in tuple(CODECS):  # exactly as written: a manifest is not typed by hand
        raise VersionError(
            f"unknown codec {name[:80]!r} for svdh {__version__}; {did_you_mean(name, CODECS)}"
        )
    codec = CODECS[name]
    if version != codec.version:
        raise VersionError(
            f"codec {name!r} has version {str(version)[:20]}; "
            f"svdh {__version__} reads version {codec.version}"
        )
    return codec.from_config(config)


def codec_to_json(codec: AnyCodec) -> dict[str, Any]:
    """The manifest record of a codec; `codec_from_json` reads it back."""
    return {"name": codec.name, "version": codec.version, **codec.config()}
