"""Digests of a file and of its blocks, so that a part of it can be trusted without the rest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from svd_hybrid.artifact import layout


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def block_count(size: int) -> int:
    """How many digests a file of so many bytes has; 0 where it is one block, and needs none."""
    return -(-size // layout.BLOCK_BYTES) if size > layout.BLOCK_BYTES else 0


def block_digests(path: Path) -> str:
    """The digests of a file's blocks, one after the other; empty where it has none.

    Raises:
        OSError: it cannot be read.
    """
    count = block_count(path.stat().st_size)
    with path.open("rb") as file:
        return "".join(block_digest(file.read(layout.BLOCK_BYTES)) for _ in range(count))


def block_digest(block: bytes) -> str:
    """The first half of the SHA-256 of a block, in hex.

    Half of it is as hard to meet with other bytes as anything is that is guessed: 2^128 trials.

    >>> block_digest(b"")
    'e3b0c44298fc1c149afbf4c8996fb924'
    """
    return hashlib.sha256(block).hexdigest()[: layout.BLOCK_DIGITS]
