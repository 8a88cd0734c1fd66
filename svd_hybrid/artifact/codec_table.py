"""The codecs this release reads, with the values their parameters may have; needs no torch.

The same that `codec.codec_from_json` accepts, so that a manifest is refused where it is read and
not only where something is decoded.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from svd_hybrid import __version__
from svd_hybrid.errors import ArtifactError, VersionError
from svd_hybrid.registry import did_you_mean

LARGEST_GROUP = 2**20


@dataclass(frozen=True, slots=True)
class CodecRow:
    """Version and parameters of a codec; a parameter is an integer of a range, or one of words."""

    version: int
    parameters: Mapping[str, Container[Any]] = field(default_factory=dict)


READABLE: Mapping[str, CodecRow] = {
    "raw": CodecRow(1),
    "half": CodecRow(1),
    "residual-affine": CodecRow(
        1,
        {
            "bits": range(1, 9),
            "stages": range(1, 17),
            "group_size": range(LARGEST_GROUP + 1),
            "step": ["F16", "F32"],
        },
    ),
    "bitmask": CodecRow(1),
    "zstd-planes": CodecRow(1, {"number": ["F32", "I16", "I32", "I64"]}),
    "sign": CodecRow(1, {"scale": ["row", "slice"]}),
    "sparse-sign": CodecRow(1),
    "zstd-affine": CodecRow(1, {"bits": range(2, 9), "group_size": range(1, LARGEST_GROUP + 1)}),
    "integers": CodecRow(1, {"rows": ["scaled", "rotated", "unit"]}),
    "trellis": CodecRow(1, {"rows": ["scaled", "rotated"]}),
}


def check_codecs(records: Iterable[Mapping[str, Any]], where: str) -> None:
    """Refuse codec records that this release does not read.

    Raises:
        VersionError: it has no such codec, or not that version of it.
        ArtifactError: the parameters are not as the format says.
    """
    for record in records:
        name, version = record["name"], record["version"]
        row = READABLE.get(name)
        if row is None:
            known = did_you_mean(name[:80], READABLE)
            raise VersionError(
                f"unknown codec {name[:80]!r} for svdh {__version__}; {known}", where=where
            )
        if version != row.version:
            raise VersionError(
                f"codec {name!r} has version {str(version)[:20]}; "
                f"svdh {__version__} reads version {row.version}",
                where=where,
            )
        _check_parameters(name, record, row.parameters, where)


def _check_parameters(
    name: str, record: Mapping[str, Any], allowed: Mapping[str, Container[Any]], where: str
) -> None:
    given = {key: value for key, value in record.items() if key not in ("name", "version")}
    if set(given) != set(allowed):
        keys = [key[:40] for key in sorted(given)][:8]
        raise ArtifactError(
            f"codec {name!r} has keys {keys}, the format asks for {sorted(allowed)}", where=where
        )
    for key, value in given.items():
        if type(value) not in (int, str) or value not in allowed[key]:
            raise ArtifactError(
                f"codec {name!r}: {key} is {str(value)[:80]!r}, out of its range", where=where
            )
