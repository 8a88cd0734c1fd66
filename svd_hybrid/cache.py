"""Results that were measured, kept under the digest of everything they depend on.

An entry is one JSON file named after the SHA-256 of its key: the model's identity, the data's
digest, the evaluator's settings, the versions of the libraries that compute, and the digest of this
package's own source. Whatever changes gives another key, so nothing is ever stale. Entries carry a
seal; one that is cut short, edited or misplaced counts as absent. They are written beside their
place and renamed, so any number of processes may use one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from svd_hybrid.artifact.jsonfile import canonical_json, parse_json
from svd_hybrid.errors import ArtifactError, StorageError

FOLDER = "results-v1"
ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.json")
LEFTOVER_NAME = re.compile(r"\.[0-9a-f]{64}\..*\.part")
ENTRY_KEYS = {"key", "value", "about", "made_s"}
LIBRARIES = (
    "torch",
    "numpy",
    "safetensors",
    "transformers",
    "tokenizers",
    "datasets",
    "pyarrow",
    "pillow",
)
"""What may change a score: numbers, models, and how data is read."""


def default_folder() -> Path:
    """`$SVDH_CACHE_DIR`, else `svdh` below `$XDG_CACHE_HOME` or ~/.cache."""
    own = os.environ.get("SVDH_CACHE_DIR")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "svdh"


@cache
def code_digest() -> str:
    """SHA-256 (hex) of every source file of this package, names included."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


@cache
def library_versions() -> Mapping[str, str]:
    """Versions of what computes, and the kind of machine."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One stored result.

    Args:
        path: its file.
        value: what was measured.
        about: what it is, for people.
        made_s: when it was written, seconds since 1970.
        nbytes: size of the file.
    """

    path: Path
    value: Mapping[str, Any]
    about: Mapping[str, str]
    made_s: float
    nbytes: int


class ResultsCache:
    """A folder of results.

    Args:
        folder: of the cache; made when the first result is stored.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or default_folder()) / FOLDER

    def get(self, key: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The value stored under a key; None when there is none, or it is damaged.

        Args:
            key: everything the value depends on, as JSON; code and libraries are added here.
        """
        whole = _whole_key(key)
        path = self._path(whole)
        entry = _read(path)
        found = entry is not None and _name_of(entry["key"]) == path.name
        return entry["value"] if entry is not None and found else None

    def put(
        self, key: Mapping[str, Any], value: Mapping[str, Any], about: Mapping[str, str]
    ) -> None:
        """Store a value; of two writers of one key the later stays, whole.

        Args:
            key: as for `get`.
            value: JSON.
            about: what it is, for people.

        Raises:
            StorageError: the folder cannot be made or written.
        """
        whole = _whole_key(key)
        path = self._path(whole)
        record = {"key": whole, "value": value, "about": about, "made_s": round(time.time(), 3)}
        data = canonical_json(record | {"seal": _seal(record)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.stem}.", suffix=".part"
            )
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(part).replace(path)
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageError(
                f"cannot write to the results cache: {error.strerror or error}",
                where=str(self.folder),
                fix="set SVDH_CACHE_DIR to a folder that can be written, or pass --no-cache",
            ) from error

    def entries(self) -> Iterator[CacheEntry]:
        """Every readable entry, oldest first."""
        found = []
        for path in self._files(ENTRY_NAME):
            record = _read(path)
            if record is not None and _name_of(record["key"]) == path.name:
                size = path.stat().st_size
                found.append(
                    CacheEntry(path, record["value"], record["about"], record["made_s"], size)
                )
        yield from sorted(found, key=lambda entry: (entry.made_s, entry.path))

    def damaged(self) -> int:
        """How many files are no entries: cut short, edited, or left by a writer that was killed."""
        names = sum(1 for name in (ENTRY_NAME, LEFTOVER_NAME) for _ in self._files(name))
        return names - sum(1 for _ in self.entries())

    def clear(self) -> tuple[int, int]:
        """Delete every entry and leftover, and nothing else; how many files and bytes.

        Raises:
            StorageError: a file cannot be deleted.
        """
        count = total = 0
        for name in (ENTRY_NAME, LEFTOVER_NAME):
            for path in self._files(name):
                try:
                    size = path.stat().st_size
                    path.unlink()
                except FileNotFoundError:
                    continue  # another process was faster
                except OSError as error:
                    raise StorageError(
                        f"cannot delete: {error.strerror or error}", where=str(path)
                    ) from error
                count, total = count + 1, total + size
        return count, total

    def _path(self, whole: Mapping[str, Any]) -> Path:
        name = _name_of(whole)
        return self.folder / name[:2] / name

    def _files(self, name: re.Pattern[str]) -> list[Path]:
        return [path for path in sorted(self.folder.glob("??/*")) if name.fullmatch(path.name)]


def _whole_key(key: Mapping[str, Any]) -> dict[str, Any]:
    return {**key, "code": code_digest(), "libraries": dict(library_versions())}


def _name_of(whole: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(whole)).hexdigest() + ".json"


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(record)).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """A sealed record; None for anything else."""
    try:
        record = parse_json(path.read_bytes(), str(path))
    except (OSError, ArtifactError):
        return None
    if not isinstance(record, dict):
        return None
    seal = record.pop("seal", None)
    return record if record.keys() == ENTRY_KEYS and seal == _seal(record) else None
