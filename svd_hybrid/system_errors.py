"""What the machine refuses — files, memory — as errors of ours, wherever in the code it happens."""

from __future__ import annotations

import errno
import os

from svd_hybrid.errors import StorageError

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")
"""How torch words it, in a RuntimeError."""
NULL_BYTE = "embedded null byte"
"""How Python words it, in a ValueError."""
TOLD_BY_TORCH = (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ENOSPC)
"""Of the system's errors, those that torch passes on as text in a RuntimeError."""
LINK_LOOP = "Symlink loop"
"""How pathlib words it, in a RuntimeError."""


def as_storage_error(error: BaseException) -> StorageError | None:
    """The error to show for one of the operating system's or of the allocator's; else None."""
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename if isinstance(error.filename, str) else str(error.filename or "")
        return StorageError(f"the system refuses: {error.strerror or error}", where=where)
    said = str(error)
    if isinstance(error, ValueError) and said == NULL_BYTE:
        return StorageError("a path holds the character NUL, which no file name does")
    if isinstance(error, MemoryError) or any(word in said for word in OUT_OF_MEMORY):
        return StorageError(
            f"not enough memory: {(said.splitlines() or ['no more is given out'])[0][:160]}",
            fix="end other programs, or raise the memory limit of this one",
        )
    refusal = next((text for text in map(os.strerror, TOLD_BY_TORCH) if text in said), None)
    if isinstance(error, RuntimeError) and refusal is not None:
        return StorageError(f"the system refuses: {refusal}", where=said.splitlines()[0])
    if isinstance(error, RuntimeError) and said.startswith(LINK_LOOP):
        return StorageError(
            "path is a symbolic link that leads to itself",
            where=said.partition("'")[2].rpartition("'")[0],
        )
    return None
