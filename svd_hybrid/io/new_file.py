"""New files and folders, written through the storage and flushed to disk as they are closed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from svd_hybrid.io.storage import storage

COPY_BYTES = 2**20

SYNC_BYTES = 256 * 2**20
"""How much may wait for the disk: a process in fsync ends only when that is done."""


class NewFile:
    """A file being written, without a buffer: what `write` took, the system has.

    Args:
        path: a file that is not there yet; with `append` one that may be.
        append: add to its end.
        durable: flush it to disk when it is closed; off for what the run itself removes again.

    `failure` keeps what a write raised: torch.save reports that as an error of its own.
    """

    def __init__(self, path: Path, *, append: bool = False, durable: bool = True) -> None:
        self.path = path
        self.durable = durable
        self.failure: BaseException | None = None
        self._waiting = 0
        flags = os.O_WRONLY | (os.O_APPEND if append else os.O_EXCL)
        self._descriptor = storage().create(path, flags)

    def write(self, data: Any) -> int:
        """Write all of a bytes-like object; returns its size."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                taken = storage().write(self._descriptor, left)
                if not taken:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))
                left = left[taken:]
                self._wait_for_disk(taken)
        except BaseException as error:
            self.failure = self.failure or error
            raise
        return size

    def _wait_for_disk(self, taken: int) -> None:
        self._waiting += taken
        if self.durable and self._waiting >= SYNC_BYTES:
            storage().sync(self._descriptor)
            self._waiting = 0

    def flush(self) -> None:
        """Nothing waits in a buffer."""

    def close(self, *, whole: bool) -> None:
        """Close it; flushed to disk if it is whole and to be durable."""
        try:
            if whole and self.durable:
                storage().sync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(whole=error is None)


def write_file(path: Path, data: bytes) -> None:
    """A new file of that content."""
    with NewFile(path) as file:
        file.write(data)


def copy_file(source: Path, target: Path) -> None:
    """A new file with the content of another (of what a link points to)."""
    with source.open("rb") as content, NewFile(target) as file:
        while block := content.read(COPY_BYTES):
            file.write(block)


def make_folder(path: Path) -> None:
    """A directory, unless it is there."""
    if not path.is_dir():
        storage().make_folder(path)


def make_folders(path: Path) -> None:
    """A directory and all above it, unless they are there."""
    for folder in (*reversed(path.parents), path):
        make_folder(folder)


def sync_folder(folder: Path) -> None:
    """Have a directory's entries reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        storage().sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(root: Path) -> None:
    """Flush a directory tree, inner directories first; its files were flushed as they closed."""
    for parent, _, _ in os.walk(root, topdown=False):
        sync_folder(Path(parent))


def delete_tree(path: Path) -> None:
    """Delete a file, a link (never what it points to) or a directory tree.

    Raises:
        OSError: the first of what stood in the way; all that could be deleted is.
    """
    faults = list(_deleting(path))
    if faults:
        raise faults[0]


def remove_tree(path: Path) -> None:
    """As `delete_tree`, but what stays, stays: a later run sweeps it."""
    for _ in _deleting(path):
        pass


def _deleting(path: Path) -> Iterator[OSError]:
    """Delete; gives what the system refuses. Something that is not there is deleted."""
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            if not os.access(path, os.W_OK | os.X_OK):
                storage().permit(path)
            for entry in list(path.iterdir()):
                yield from _deleting(entry)
            storage().remove_folder(path)
        else:
            storage().remove_file(path)
    except FileNotFoundError:
        return
    except OSError as fault:
        yield fault


def renew_folder(folder: Path) -> None:
    """An empty directory in the place of a tree."""
    delete_tree(folder)
    storage().make_folder(folder)
