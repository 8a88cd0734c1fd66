"""Putting a finished output in place, so that a crash at any moment loses neither old nor new.

New output: one rename that refuses an existing target. File over file: one rename. Folder over
folder: the two change places in one call (renameat2 with RENAME_EXCHANGE), and the old one, now in
the staging folder, is removed. Where the file system has no such call, the old one first steps
aside to `.NAME.old-XXXXXXXX`; a crash between the two renames leaves the target absent and the old
output there, and the next run that reads or writes the target brings it back (`recover`).
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from svd_hybrid.errors import StorageError
from svd_hybrid.io.new_file import remove_tree, sync_folder
from svd_hybrid.io.outputs import OutputKind, check_free, is_empty_folder
from svd_hybrid.io.storage import EXCHANGE, KEEP, NOT_SUPPORTED, storage

STAGING, OLD = "staging", "old"


def scratch_folder(target: Path, role: str) -> Path:
    """A new directory beside `target`, named after it and its role."""
    path = target.with_name(f".{target.name}.{role}-{secrets.token_hex(4)}")
    storage().make_folder(path)
    return path


def left_overs(target: Path, role: str) -> list[Path]:
    """Such directories of earlier runs."""
    pattern = re.compile(re.escape(f".{target.name}.{role}-") + "[0-9a-f]{8}")
    try:
        found = [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name)]
    except PermissionError:  # may be written to, not listed
        return []
    return [path for path in sorted(found) if path.is_dir() and not path.is_symlink()]


def set_aside(target: Path) -> Path | None:
    """Where an interrupted replacement left what stood at `target`, if nothing stands there."""
    if os.path.lexists(target) or not target.parent.is_dir():
        return None
    kept = (folder / target.name for folder in left_overs(target, OLD))
    return next((path for path in kept if os.path.lexists(path)), None)


def recover(target: Path) -> bool:
    """Bring back what an interrupted replacement set aside; whether there was anything.

    Only for the holder of the target's lock: it might be what another run is replacing.
    """
    kept = set_aside(target)
    if kept is not None:
        storage().rename(kept, target)
        sync_folder(target.parent)
        remove_tree(kept.parent)
    return kept is not None


def sweep(target: Path) -> None:
    """Remove what earlier runs left beside a target; only for the holder of its lock."""
    for role in (STAGING, OLD):
        for folder in left_overs(target, role):
            remove_tree(folder)


def publish(staged: Path, target: Path, overwrite: bool, kind: OutputKind | None) -> None:
    """Rename `staged` to `target`; what it replaces is removed once that has reached the disk.

    Raises:
        StorageError: something is in the way that may not be replaced.
    """
    replaced = staged
    if not _place(staged, target):
        if not overwrite:
            raise StorageError(
                "output appeared while this run was writing",
                where=str(target),
                fix="pass --overwrite",
            )
        check_free(target, overwrite, kind)
        if kind is None:
            storage().rename(staged, target)
        else:
            replaced = _exchange(staged, target)
    sync_folder(target.parent)
    remove_tree(replaced)


def _place(staged: Path, target: Path) -> bool:
    """Rename where nothing, or an empty folder, is in the way; whether that was so."""
    if os.path.lexists(target):
        if not (staged.is_dir() and is_empty_folder(target)):
            return False
        storage().rename(staged, target)  # which replaces an empty folder
        return True
    try:
        storage().rename_with(staged, target, KEEP)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        storage().rename(staged, target)
    return True


def _exchange(staged: Path, target: Path) -> Path:
    """Let the two change places; where the old one is then."""
    try:
        storage().rename_with(staged, target, EXCHANGE)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return _step_aside(staged, target)
    return staged


def _step_aside(staged: Path, target: Path) -> Path:
    """Two renames for one; `target` comes back on failure. Gives the folder it is in."""
    aside = scratch_folder(target, OLD)
    try:
        storage().rename(target, aside / target.name)
        sync_folder(aside)
        storage().rename(staged, target)
    except BaseException:
        if not os.path.lexists(target):
            storage().rename(aside / target.name, target)
        remove_tree(aside)
        raise
    return aside
