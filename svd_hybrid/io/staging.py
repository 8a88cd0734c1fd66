"""All or nothing: outputs are built beside their target and put in place by a rename.

Lock, recover and sweep, build in `.NAME.staging-XXXXXXXX`, flush files, then folders, rename, flush
the parent, unlock. docs/crash-safety.md says what that promises.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from svd_hybrid.errors import StorageError
from svd_hybrid.io.locks import locked
from svd_hybrid.io.new_file import remove_tree, sync_folders
from svd_hybrid.io.outputs import OutputKind, check_free
from svd_hybrid.io.publish import STAGING, publish, recover, scratch_folder, sweep
from svd_hybrid.signals import on_stop, shielded


@contextmanager
def staged_directory(target: Path, overwrite: bool, kind: OutputKind) -> Iterator[Path]:
    """A new directory beside `target` that becomes it when the block ends without an error.

    Leaving the block for any reason removes what was staged; an existing target is replaced whole
    (with `overwrite`, if it is of that kind) or kept.

    Raises:
        LockedError: another run is writing it.
        StorageError: the target is in the way, or the disk refuses (full, permission, read-only).
    """
    target = target.absolute()
    with _storage_errors(target), _reserved(target, overwrite, kind), _scratch(target) as staging:
        yield staging
        sync_folders(staging)
        with shielded():
            publish(staging, target, overwrite, kind)


@contextmanager
def staged_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new path beside `target` that replaces it when the block ends without an error.

    Raises:
        LockedError, StorageError: as for `staged_directory`.
    """
    target = target.absolute()
    with _storage_errors(target), _reserved(target, overwrite, None), _scratch(target) as scratch:
        yield scratch / target.name
        sync_folders(scratch)
        with shielded():
            publish(scratch / target.name, target, overwrite, None)


@contextmanager
def _reserved(target: Path, overwrite: bool, kind: OutputKind | None) -> Iterator[None]:
    """The target locked, recovered, swept, and free."""
    with locked(target) as alone:
        if alone:
            recover(target)
            sweep(target)
        check_free(target, overwrite, kind)
        yield


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A hidden directory beside `target`, gone at the end if it was not renamed."""
    with shielded():
        scratch = scratch_folder(target, STAGING)
        forget = on_stop(partial(remove_tree, scratch))
    try:
        yield scratch
    finally:
        remove_tree(scratch)
        forget()


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    """Turn what the operating system refuses while writing into one StorageError."""
    ours = (str(target), str(target.with_name(f".{target.name}.")))
    try:
        yield
    except OSError as error:
        what, where, fix = f"cannot write: {error.strerror or error}", target, "check the path"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "no space left on the disk"
            fix = "free some space; nothing was left half-written"
        elif error.filename and not str(error.filename).startswith(ours):
            what, where = f"file cannot be read: {error.strerror}", error.filename
        raise StorageError(what, where=str(where), fix=fix) from error
