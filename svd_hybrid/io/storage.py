"""Every system call with which svdh changes a disk, behind one object that tests swap.

A test's storage fails call n, writes half of what it is given, or stops dead; the code above it is
the code that users run. Reading goes past it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

KEEP, EXCHANGE = 1, 2
"""Flags of renameat2(2): refuse an existing target; let two names change places."""

AT_FDCWD = -100
NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)

S = TypeVar("S", bound="Storage")


class Storage:
    """The operating system's own calls; each raises OSError as they do."""

    def create(self, path: Path, flags: int) -> int:
        """Open for writing, made if it is not there, by the umask; `flags` are those of os.open."""
        return os.open(path, os.O_CREAT | os.O_CLOEXEC | flags, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write; returns how many bytes were taken."""
        return os.write(descriptor, data)

    def truncate(self, descriptor: int) -> None:
        """Empty an open file."""
        os.ftruncate(descriptor, 0)

    def sync(self, descriptor: int) -> None:
        """Have a file or directory reach the disk."""
        os.fsync(descriptor)

    def lock(self, descriptor: int) -> None:
        """Take the exclusive lock of an open file, or raise BlockingIOError."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def make_folder(self, path: Path) -> None:
        """A new directory, by the umask."""
        path.mkdir()

    def permit(self, folder: Path) -> None:
        """Let the owner change what is in a directory that is about to be removed."""
        folder.chmod(0o700)

    def rename(self, source: Path, target: Path) -> None:
        """Rename; a file replaces a file or link, a directory an empty directory."""
        source.rename(target)

    def rename_with(self, source: Path, target: Path, flag: int) -> None:
        """renameat2(2) with KEEP or EXCHANGE; ENOSYS where there is no such call."""
        from ctypes import CDLL, get_errno  # here, because readers load this module too

        call = getattr(CDLL(None, use_errno=True), "renameat2", None)
        if call is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(source))
        if call(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flag):
            code = get_errno()
            raise OSError(code, os.strerror(code), str(source), None, str(target))

    def remove_file(self, path: Path) -> None:
        """Remove a file or a link."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()


_storage = Storage()


def storage() -> Storage:
    """What writes now."""
    return _storage


@contextmanager
def using(other: S) -> Iterator[S]:
    """Let another storage write inside the block."""
    global _storage
    before, _storage = _storage, other
    try:
        yield other
    finally:
        _storage = before
