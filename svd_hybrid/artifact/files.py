"""Checking the files of an artifact against its manifest; needs neither torch nor NumPy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.blocks import block_digests, file_digest
from svd_hybrid.artifact.jsonfile import canonical_json, parse_json, read_limited
from svd_hybrid.artifact.manifest import Manifest
from svd_hybrid.artifact.parsing import check_path, manifest_from_json
from svd_hybrid.artifact.pin import check_pin
from svd_hybrid.artifact.records import FileRecord
from svd_hybrid.errors import ArtifactError, StorageError
from svd_hybrid.frames import decompress_stated
from svd_hybrid.limits import MOST_JSON_BYTES

COPY_AGAIN = "copy the artifact again; svdh verify lists every damaged file"


def read_manifest(folder: Path, expect: str | None = None) -> Manifest:
    """The manifest of an artifact directory.

    Args:
        folder: the directory.
        expect: the artifact's id (see `artifact.pin`), when it is known; nothing of another one is
            even parsed.

    Raises:
        StorageError: there is no such directory, or it may not be read.
        ArtifactError: it has no manifest, a malformed one, or one of another id.
        VersionError: its format version is not readable here.
        UnsafeError: it names a path the format does not know.
        UsageError: `expect` is no id.
    """
    path = folder / layout.MANIFEST
    if not folder.is_dir():
        fault = "is not a directory" if os.path.lexists(folder) else "does not exist"
        raise StorageError(
            f"artifact {fault}",
            where=str(folder),
            fix="pass the directory that svdh compress wrote",
        )
    if not path.is_file():
        raise ArtifactError(
            "directory has no manifest.json, so it is no svdh artifact",
            where=str(path),
            fix="pass the directory that svdh compress wrote; for one in the original .pt layout "
            "run svdh convert first",
        )
    data = read_limited(path, "manifest")
    if expect is not None:
        check_pin(expect, data, folder)
    manifest = manifest_from_json(
        parse_json(data, str(path)), str(path), lambda record: _read_index(folder, record)
    )
    if not _is_spelled(data, manifest.to_bytes):
        raise ArtifactError("manifest is not in canonical form", where=str(path))
    return manifest


def _is_spelled(data: bytes, spell: Callable[[], bytes]) -> bool:
    """Whether the bytes are the canonical ones of their value."""
    try:
        return spell() == data
    except (ValueError, RecursionError):  # what has no canonical form: 1e999, half a character
        return False


def _read_index(folder: Path, record: FileRecord) -> Any:
    """The parsed index, once it is the one the manifest lists, in canonical form."""
    if record.bytes > MOST_JSON_BYTES:
        raise ArtifactError(f"index is larger than {MOST_JSON_BYTES} bytes", where=str(folder))
    path = check_file(folder, record)
    try:
        data = decompress_stated(read_limited(path, "index"), MOST_JSON_BYTES)
    except ArtifactError as error:
        error.where = str(path)
        raise
    content = parse_json(data, str(path))
    if not _is_spelled(data, lambda: canonical_json(content)):
        raise ArtifactError("index is not in canonical form", where=str(path))
    return content


def resolve(folder: Path, record: FileRecord) -> Path:
    """The file a manifest names, if it is one the format knows and lies inside the directory.

    Raises:
        UnsafeError: any other path.
    """
    check_path(record, str(folder))
    return folder / record.path


def check_size(folder: Path, record: FileRecord) -> Path:
    """The file's path, once it is there and its size is as the manifest says.

    Raises:
        ArtifactError: missing, or of another size.
        UnsafeError: the path is not one the format knows.
    """
    path = resolve(folder, record)
    if not path.is_file():
        raise ArtifactError("file is missing", where=str(path), fix=COPY_AGAIN)
    size = path.stat().st_size
    if size != record.bytes:
        raise ArtifactError(
            f"file has {size} bytes, the manifest says {record.bytes}",
            where=str(path),
            fix=COPY_AGAIN,
        )
    return path


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Name the file that cannot be read.

    Raises:
        StorageError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"file cannot be read: {error.strerror}", where=str(path)) from error


def check_file(folder: Path, record: FileRecord) -> Path:
    """The file's path, once its size and digests are as the manifest says (size first).

    Raises:
        ArtifactError: missing, of another size, or of other content.
        UnsafeError: the path is not one the format knows.
        StorageError: it may not be read.
    """
    path = check_size(folder, record)
    with readable(path):
        digest = file_digest(path)
        blocks = block_digests(path) if record.blocks else ""
    if digest != record.sha256:
        raise ArtifactError(
            f"file content is not what was written (sha256 {digest[:12]}…, "
            f"the manifest has {record.sha256[:12]}…)",
            where=str(path),
            fix=COPY_AGAIN,
        )
    if blocks != record.blocks:
        raise ArtifactError(
            "file is as written, but the manifest has other digests of its blocks", where=str(path)
        )
    return path


def directory_bytes(folder: Path) -> int:
    """Sum of the sizes of every file below the directory."""
    return sum(path.lstat().st_size for path in _files_below(folder))


def foreign_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Relative paths of what is in the directory and not in the manifest: files, links, folders."""
    listed = {record.path for record in manifest.files} | {layout.MANIFEST}
    holding = {path.split("/")[0] for path in listed if "/" in path}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted((*files, *links)):
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if relative not in listed and relative not in holding:
                yield relative
        relative = Path(parent).relative_to(folder).as_posix()
        if not folders and not files and relative not in (".", *holding):
            yield relative


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield Path(parent) / name
