"""All or nothing: outputs are built beside their target and put in place by a rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svd_hybrid.errors import StorageError, SvdhError


@contextmanager
def staged_directory(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new directory beside `target` that becomes it when the block ends without an error.

    Files are flushed to disk before the rename. Leaving the block for any reason removes what was
    staged; an existing target is replaced whole (with `overwrite`) or kept.

    Raises:
        StorageError: the target is in the way, or the disk refuses (full, permission, read-only).
    """
    target = target.absolute()
    with _storage_errors(target), _scratch(target) as staging:
        yield staging
        _sync_tree(staging)
        _replace(staging, target, overwrite)


@contextmanager
def staged_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new path beside `target` that replaces it when the block ends without an error.

    Raises:
        StorageError: as for `staged_directory`.
    """
    target = target.absolute()
    with _storage_errors(target), _scratch(target) as scratch:
        yield scratch / target.name
        _sync_tree(scratch)
        _replace(scratch / target.name, target, overwrite)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A hidden directory beside `target`, gone at the end if it was not renamed."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.staging-", dir=target.parent))
    try:
        umask = os.umask(0)
        os.umask(umask)
        scratch.chmod(0o777 & ~umask)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    """Turn what the operating system refuses while writing into one StorageError."""
    try:
        yield
    except SvdhError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            "no space left on the disk" if full else f"cannot write: {error.strerror or error}",
            where=str(error.filename or target),
            fix="free some space; nothing was left half-written" if full else "check the path",
        ) from error


def _replace(staged: Path, target: Path, overwrite: bool) -> None:
    """Rename `staged` to `target`; what is there is kept until its successor is in place."""
    if not os.path.lexists(target) or (is_empty_folder(target) and staged.is_dir()):
        staged.rename(target)  # which replaces an empty directory
    elif not overwrite:
        raise StorageError(
            "output appeared while this run was writing", where=str(target), fix="pass --overwrite"
        )
    elif staged.is_file() and (target.is_symlink() or not target.is_dir()):
        staged.replace(target)
    else:
        _exchange(staged, target)
    _sync_directory(target.parent)


def _exchange(staged: Path, target: Path) -> None:
    """Where no single rename can replace: `target` steps aside and comes back on failure."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        target.rename(aside / target.name)
        staged.rename(target)
    except BaseException:
        if not os.path.lexists(target):
            (aside / target.name).rename(target)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def is_empty_folder(path: Path) -> bool:
    """Whether there is a real directory with nothing in it."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync_file(Path(parent) / name)
        _sync_directory(Path(parent))


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
