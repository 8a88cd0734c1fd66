"""A storage that fails at its n-th call: error, full disk, short write, kill (SQLite's loop).

Only calls that change the disk are counted; what the code under test does about a failure goes
through the same storage.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from svd_hybrid.io.storage import NOT_SUPPORTED, Storage

CALLS = [name for name in vars(Storage) if not name.startswith("_")]
NEEDS_SPACE = ("create", "write", "make_folder")
NEVER = 10**9


class Crash(BaseException):
    """The process is gone: nothing more reaches the disk."""


class FaultyStorage(Storage):
    """The real storage up to call `at`.

    Args:
        at: number of the call that fails, from 0.
        fault: `EIO` for that call alone; `ENOSPC` for it and all later ones that need space;
            `short` for a write that takes half, after which the disk is full; `kill` for the end of
            the process before that call, `torn` for the same in the middle of a write.
        exchanges: whether the file system has renameat2.
        locks: whether it has locks.
    """

    def __init__(
        self, at: int = NEVER, fault: str = "", *, exchanges: bool = True, locks: bool = True
    ) -> None:
        self.at = at
        self.fault = fault
        self.exchanges = exchanges
        self.locks = locks
        self.calls: list[str] = []

    def sync(self, descriptor: int) -> None:
        """Nothing: no test cuts the power, and it is half the time of a tiny run."""

    def rename_with(self, source: Path, target: Path, flag: int) -> None:
        if not self.exchanges:
            raise OSError(errno.EINVAL, "no renameat2", str(source))
        super().rename_with(source, target, flag)

    def lock(self, descriptor: int) -> None:
        if not self.locks:
            raise OSError(NOT_SUPPORTED[-1], "no locks")
        super().lock(descriptor)


def _counted(name: str) -> Any:
    real = getattr(FaultyStorage, name)

    def call(self: FaultyStorage, *args: Any) -> Any:
        number = len(self.calls)
        if not (self.fault in ("kill", "torn") and number > self.at):
            self.calls.append(name)
        if number < self.at:
            return real(self, *args)
        first = number == self.at
        if self.fault in ("kill", "torn"):
            if first and self.fault == "torn" and name == "write":
                real(self, args[0], args[1][: len(args[1]) // 2])
            raise Crash
        if first and self.fault == "short" and name == "write" and len(args[1]) > 1:
            return real(self, args[0], args[1][: len(args[1]) // 2])
        if self.fault == "EIO" and first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.fault in ("ENOSPC", "short") and name in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *args)

    return call


for _name in CALLS:
    setattr(FaultyStorage, _name, _counted(_name))
