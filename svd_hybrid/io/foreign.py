"""Files that are no checkpoint, recognised by how they begin, so that the error can say what is."""

from __future__ import annotations

from svd_hybrid.errors import FamilyError

LFS = "fetch the file itself with git lfs pull"
PAGE = "download the file itself; the address led to a page"
CONVERT = "pass the checkpoint as .safetensors, .pt, .pth or .bin"
UNPACK = "unpack it first"

BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer", LFS),
    (b"<!doctype html", "a web page", PAGE),
    (b"<html", "a web page", PAGE),
    (b"<?xml", "an XML text", PAGE),
    (b"{", "a JSON text", PAGE),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (b"\xfd7zXZ", "an xz archive", UNPACK),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"\x89HDF", "an HDF5 file", CONVERT),
    (b"GGUF", "a GGUF file", CONVERT),
)
TAR_MAGIC, TAR_OFFSET = b"ustar", 257
LONGEST = TAR_OFFSET + len(TAR_MAGIC)
"""How much of a file is looked at."""


def refuse_foreign(start: bytes, where: str) -> None:
    """Refuse a file that begins like something else.

    Args:
        start: its first LONGEST bytes.
        where: the file.

    Raises:
        FamilyError: it is known, and no checkpoint.
    """
    folded = start.lstrip().lower()
    for magic, what, fix in BEGINNINGS:
        if folded.startswith(magic.lower()):
            raise FamilyError(f"file is {what}, not a checkpoint", where=where, fix=fix)
    if start[TAR_OFFSET:].startswith(TAR_MAGIC):
        raise FamilyError(
            "file is a tar archive, as torch wrote before version 0.2, or of something else",
            where=where,
            fix="save the state_dict again with a current torch",
        )
