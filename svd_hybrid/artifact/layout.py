"""File names and versions of the artifact directory, in one place."""

from __future__ import annotations

import re

FORMAT = "svdh-artifact"
OLDEST_READABLE = 1
NEWEST_READABLE = 1
WRITTEN = 1

MANIFEST = "manifest.json"
INDEX = "index.json.zst"
CONFIG = "config.json"
WEIGHTS = "weights.json"
CLUSTERS = "clusters.json"
DIAGNOSTICS = "diagnostics.json"
DIAGNOSTICS_TENSORS = "diagnostics-tensors.json.zst"
CARD = "README.md"
DOCUMENTS = (CONFIG, WEIGHTS, CLUSTERS, DIAGNOSTICS, DIAGNOSTICS_TENSORS, CARD)

BASIS, COEFFS, MASKS = "basis", "coeffs", "masks"
SHARD_FOLDERS = (BASIS, COEFFS, MASKS)
SHARD_PATTERN = re.compile(r"(basis|coeffs|masks)/([0-9a-f]{64})\.safetensors")

STREAMS = "streams"
"""The one array of a shard that holds strings of bytes, one after the other."""

SHARD_BYTES = 32 * 2**20
"""A shard is closed once it holds this much; bounds what the writer keeps in memory."""

BLOCK_BYTES = 2**16
"""Of a longer shard each block of so many bytes has a digest of its own."""

BLOCK_DIGITS = 32
"""Hex digits of a block's digest: the first half of its SHA-256."""

MOST_BLOCKS = 2**19
"""The writer lists no more, for 32 GiB of shards: a quarter of what a manifest may hold."""

INDEX_LEVEL = 19


def is_known(path: str) -> bool:
    """Whether an artifact may hold a file of that path beside its manifest."""
    return path in (*DOCUMENTS, INDEX) or SHARD_PATTERN.fullmatch(path) is not None


def shard_folder(part: str) -> str:
    """Which folder a part's arrays are stored in, by its role.

    >>> shard_folder("coeff_low"), shard_folder("mean"), shard_folder("noise.basis_high")
    ('coeffs', 'basis', 'basis')
    """
    role = part.rsplit(".", 1)[-1]
    if role.startswith("coeff"):
        return COEFFS
    return MASKS if role.startswith("mask") else BASIS


def array_name(ordinal: int, part: str, array: str) -> str:
    """Name of a stored array: tensor ordinal, part, array.

    >>> array_name(12, "coeff_low", "stage0.codes")
    't00012.coeff_low.stage0.codes'
    """
    return f"t{ordinal:05d}.{part}.{array}"
