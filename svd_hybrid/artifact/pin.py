"""Pinning an artifact: reading it only when its id is the one that was expected.

The id is the SHA-256 of manifest.json, which covers every file through their digests. Whoever has
it from a channel they trust gets the artifact that was published, or an error.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from svd_hybrid.errors import ArtifactError, UsageError

PREFIX = "sha256:"
_ID = re.compile(r"[0-9a-f]{64}")


def parse_pin(text: str) -> str:
    """The 64 hex digits of an expected id, written with or without `sha256:`.

    Raises:
        UsageError: it is none.

    >>> parse_pin("sha256:" + "0A" * 32) == "0a" * 32
    True
    """
    digest = text.strip().lower().removeprefix(PREFIX)
    if _ID.fullmatch(digest) is None:
        raise UsageError(
            f"{text!r} is no artifact id",
            where="--expect",
            fix="write sha256: and the 64 hex digits that svdh verify prints as the id",
        )
    return digest


def check_pin(expect: str, manifest: bytes, folder: Path) -> None:
    """Compare the id of an artifact with the expected one.

    Args:
        expect: as for `parse_pin`.
        manifest: the bytes of manifest.json.
        folder: of the artifact, for errors.

    Raises:
        ArtifactError: it is another artifact, or its manifest was changed.
        UsageError: `expect` is no id.
    """
    wanted, found = parse_pin(expect), hashlib.sha256(manifest).hexdigest()
    if found != wanted:
        raise ArtifactError(
            f"artifact is not the expected one: its id is {PREFIX}{found}, not {PREFIX}{wanted}",
            where=str(folder),
            fix="get the artifact of that id, or pin the one you mean",
        )
