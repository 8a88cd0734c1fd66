"""What an output may take the place of: nothing, an empty folder, or an earlier output.

`--overwrite` replaces what svdh wrote before, whole. It never deletes anybody's other files: a
folder is replaced only if everything in it has a name that svdh gives to files of such an output.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from svd_hybrid.errors import StorageError, UsageError, shorten


@dataclass(frozen=True, slots=True)
class OutputKind:
    """A kind of folder that svdh writes.

    Args:
        name: for people.
        files: patterns of relative paths; one that ends in `/` covers all below that folder.
        marks: one of its files has one of these names.
    """

    name: str
    files: tuple[str, ...]
    marks: tuple[str, ...]

    def foreign(self, folder: Path) -> list[str]:
        """Files in a folder that are none of this kind's, by relative path."""
        return [
            path
            for path in _files_below(folder)
            if not any(_fits(path, pattern) for pattern in self.files)
        ]

    def is_marked(self, folder: Path) -> bool:
        """Whether a folder has what shows its kind."""
        return any(_fits(path, mark) for path in _files_below(folder) for mark in self.marks)


def _fits(path: str, pattern: str) -> bool:
    if pattern.endswith("/"):
        return path.startswith(pattern)
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


def check_free(path: Path, overwrite: bool, kind: OutputKind | None = None) -> None:
    """Refuse an output that is in the way, before any work is done.

    Args:
        path: where the output goes.
        overwrite: whether an earlier output may be replaced. A link is replaced itself, never what
            it points to.
        kind: of the folder that will be written; None for a file.

    Raises:
        StorageError: the target is in the way, or its parent does not exist. An empty folder is not
            in the way of a folder.
    """
    path = path.absolute()
    if not path.parent.is_dir():
        raise StorageError(
            "folder of the output does not exist", where=str(path.parent), fix="create it first"
        )
    if path.is_mount():
        raise StorageError(
            "output is a mount point, which cannot be replaced as a whole",
            where=str(path),
            fix="name a folder inside it",
        )
    if not os.path.lexists(path) or (kind is not None and is_empty_folder(path)):
        return
    _check_type(path, kind)
    if not overwrite:
        raise StorageError(
            "output exists", where=str(path), fix="choose another path, or pass --overwrite"
        )
    if kind is not None and not path.is_symlink():
        _check_content(path, kind)


def _check_type(path: Path, kind: OutputKind | None) -> None:
    wanted = "file" if kind is None else "folder"
    there = "folder" if path.is_dir() else "file" if path.is_file() else "device or pipe"
    if (path.is_symlink() and there != "device or pipe") or not path.exists():
        return
    if there != wanted:
        raise StorageError(
            f"output is a {wanted}, and a {there} is in its place",
            where=str(path),
            fix="choose another path; nothing there is touched",
        )


def _check_content(path: Path, kind: OutputKind) -> None:
    if not kind.is_marked(path):
        raise StorageError(
            f"folder in the output's place is no {kind.name}",
            where=str(path),
            fix="choose another path; nothing there is touched",
        )
    foreign = kind.foreign(path)
    if foreign:
        raise StorageError(
            f"{kind.name} in the output's place holds files svdh did not write: {shorten(foreign)}",
            where=str(path),
            fix="move them elsewhere, or choose another path; nothing there is touched",
        )


def protect_inputs(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace what the run reads, or lie inside it.

    Raises:
        UsageError: the output is an input, a folder that holds one, or inside a folder that is one.
    """
    targets = {output.absolute(), output.resolve()}
    for path in inputs:
        for source in (path.absolute(), path.resolve()):
            if not targets.isdisjoint((source, *source.parents)):
                raise UsageError(
                    "output would replace an input of this run",
                    where=str(path),
                    fix="choose another output path",
                )
            if any(source in target.parents for target in targets):
                raise UsageError(
                    "output lies inside an input of this run, which is never edited",
                    where=str(output),
                    fix="choose another output path",
                )


def is_empty_folder(path: Path) -> bool:
    """Whether there is a real directory with nothing in it."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _files_below(folder: Path) -> Iterator[str]:
    for parent, _, files in os.walk(folder):
        for name in sorted(files):
            yield (Path(parent) / name).relative_to(folder).as_posix()
