"""One writer per output: an exclusive lock on `.NAME.lock` beside it.

The lock is the operating system's (flock), so it ends with its process however that ends; the file
only gives it a place and says who holds it. It is removed at a normal end. A file that a killed
run left is taken over.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from svd_hybrid.console import note
from svd_hybrid.errors import LockedError
from svd_hybrid.io.storage import NOT_SUPPORTED, storage
from svd_hybrid.signals import on_stop, shielded

WAIT_S = 3.0
"""How long a run waits for another that writes the same output."""

PAUSE_S = 0.05
MOST_HOLDER_BYTES = 300


@contextmanager
def locked(target: Path) -> Iterator[bool]:
    """Keep other runs from writing `target`; gives False where the file system cannot lock.

    Args:
        target: absolute path of the output.

    Raises:
        LockedError: another run has held it for `WAIT_S`.
        OSError: the lock file cannot be made.
    """
    path = target.with_name(f".{target.name}.lock")
    deadline = time.monotonic() + WAIT_S
    while True:
        with shielded():
            lock = _try(path)
            forget = on_stop(partial(_remove, path)) if isinstance(lock, int) else None
        if not isinstance(lock, _Busy):
            break
        if time.monotonic() > deadline:
            raise LockedError(
                "another run is writing this output",
                where=f"{target} ({lock.holder})",
                fix="wait until it ends, or choose another output",
            )
        time.sleep(PAUSE_S)
    if lock is None or forget is None:
        note(f"{target.parent} is on a file system without locks: let no other run write there")
        yield False
        return
    try:
        _sign(lock)
        yield True
    finally:
        with shielded():
            try:
                _remove(path)  # before the lock is given up: whoever waits looks for the file
            finally:
                os.close(lock)
                forget()


@dataclass(frozen=True, slots=True)
class _Busy:
    """Somebody has the lock."""

    holder: str


def _try(path: Path) -> int | _Busy | None:
    """The open lock file, locked; None where there are no locks."""
    descriptor = storage().create(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        storage().lock(descriptor)
        if _is_file(descriptor, path):
            return descriptor
        busy = _Busy("a run that has just ended")
    except BlockingIOError:
        busy = _Busy(_holder(descriptor))
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (*NOT_SUPPORTED, errno.ENOLCK):
            raise
        _remove(path)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return busy


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: its last holder may have removed it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


def _sign(descriptor: int) -> None:
    """Say in the lock file who holds it."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
    storage().truncate(descriptor)
    storage().write(descriptor, memoryview(text.encode()))


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, MOST_HOLDER_BYTES, 0).decode(errors="replace").strip()
    return text.splitlines()[0] if text else "a process that has just begun"


def _remove(path: Path) -> None:
    with suppress(OSError):
        storage().remove_file(path)
