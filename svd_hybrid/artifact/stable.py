"""Reading an artifact that another run may replace at any moment.

A replacement is one step, so what is read before it is the old artifact and what is read after it
the new one. A reader that has the old manifest and finds files of the new one begins again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

from svd_hybrid.artifact import layout
from svd_hybrid.errors import LockedError, StorageError

T = TypeVar("T")
P = ParamSpec("P")
Identity: TypeAlias = tuple[int, ...] | None
ATTEMPTS = 5


def read_stable(
    folder: Path, read: Callable[[], T], is_whole: Callable[[T], bool] = lambda _: False
) -> T:
    """What `read` gives of one artifact, not of two.

    Args:
        folder: the artifact.
        read: reads it; called again where it fails, or gives something that is not shown to be
            whole, and the artifact is no longer the one that was there before.
        is_whole: whether what it gave is that of one artifact, by what it has checked.

    Raises:
        LockedError: it was replaced during each of `ATTEMPTS` readings.
        Exception: what `read` raises of an artifact that stayed.
    """
    for _ in range(ATTEMPTS):
        before = identity(folder)
        try:
            result = read()
        except Exception as error:
            if identity(folder) == before and not _is_back(error, folder):
                raise
        else:
            if is_whole(result) or identity(folder) == before:
                return result
    raise LockedError(
        "artifact is replaced faster than it can be read",
        where=str(folder),
        fix="try again when the runs that write it have ended",
    )


def restarted(
    run: Callable[Concatenate[Path, P], T],
) -> Callable[Concatenate[Path, P], T]:
    """Begin a run anew where it fails because the artifact, its first argument, was replaced."""

    @wraps(run)
    def stable(folder: Path, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return read_stable(folder, lambda: run(folder, *args, **kwargs), lambda _: True)

    return stable


def identity(folder: Path) -> Identity:
    """What tells an artifact from the one that takes its place; None where there is none."""
    try:
        status = (folder / layout.MANIFEST).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def refuse_replaced(folder: Path, before: Identity) -> None:
    """Refuse to go on from an artifact that is no longer there.

    Raises:
        LockedError: another run has replaced it.
    """
    if identity(folder) != before:
        raise LockedError(
            "artifact was replaced by another run while this one read it",
            where=str(folder),
            fix="run the command again",
        )


def _is_back(error: Exception, folder: Path) -> bool:
    """Whether a missing artifact is there again: an interrupted run had set it aside."""
    if not isinstance(error, StorageError) or folder.exists():
        return False
    from svd_hybrid.io.locks import locked  # here, because reading rarely needs it
    from svd_hybrid.io.publish import recover, set_aside

    target = folder.absolute()
    kept = set_aside(target)
    if kept is None:
        return False
    try:
        with locked(target) as alone:
            return alone and recover(target)
    except (LockedError, OSError):
        error.fix = f"an interrupted --overwrite left it at {kept}: move it back"
        return False
