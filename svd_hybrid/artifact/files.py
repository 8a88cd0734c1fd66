"""Checking the files of an artifact against its manifest; needs neither torch nor NumPy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.jsonfile import canonical_json, parse_json
from svd_hybrid.artifact.manifest import FileRecord, Manifest, check_path, manifest_from_json
from svd_hybrid.errors import ArtifactError, StorageError
from svd_hybrid.frames import decompress_stated


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact directory.

    Raises:
        StorageError: there is no such directory, or it may not be read.
        ArtifactError: it has no manifest, or a malformed one.
        VersionError: its format version is not readable here.
        UnsafeError: it names a path the format does not know.
    """
    path = folder / layout.MANIFEST
    if not folder.is_dir():
        fault = "is not a directory" if folder.exists() else "does not exist"
        raise StorageError(
            f"artifact {fault}",
            where=str(folder),
            fix="pass the directory that svdh compress wrote",
        )
    if not path.is_file():
        raise ArtifactError(
            "directory has no manifest.json, so it is no svdh artifact",
            where=str(folder),
            fix="pass the directory that svdh compress wrote; for one in the original .pt layout "
            "run svdh convert first",
        )
    if path.stat().st_size > layout.MOST_MANIFEST_BYTES:
        raise ArtifactError(
            f"manifest is larger than {layout.MOST_MANIFEST_BYTES} bytes", where=str(path)
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError("manifest may not be read", where=str(path)) from error
    manifest = manifest_from_json(
        parse_json(data, str(path)), str(path), lambda record: _read_index(folder, record)
    )
    try:
        canonical = manifest.to_bytes() == data
    except ValueError:  # a number or a character that no canonical form has: 1e999, half a pair
        canonical = False
    if not canonical:
        raise ArtifactError("manifest is not in canonical form", where=str(path))
    return manifest


def _read_index(folder: Path, record: FileRecord) -> Any:
    """The parsed index, once it is the one the manifest lists, in canonical form."""
    if record.bytes > layout.MOST_MANIFEST_BYTES:
        raise ArtifactError(
            f"index is larger than {layout.MOST_MANIFEST_BYTES} bytes", where=str(folder)
        )
    path = check_file(folder, record)
    try:
        data = decompress_stated(path.read_bytes(), layout.MOST_INDEX_BYTES)
    except OSError as error:
        raise StorageError("index may not be read", where=str(path)) from error
    except ArtifactError as error:
        error.where = str(path)
        raise
    content = parse_json(data, str(path))
    try:
        canonical = canonical_json(content) == data
    except ValueError:
        canonical = False
    if not canonical:
        raise ArtifactError("index is not in canonical form", where=str(path))
    return content


def resolve(folder: Path, record: FileRecord) -> Path:
    """The file a manifest names, if it is one the format knows and lies inside the directory.

    Raises:
        UnsafeError: any other path.
    """
    check_path(record, str(folder))
    return folder / record.path


def check_file(folder: Path, record: FileRecord) -> Path:
    """The file's path, once its size and digest are as the manifest says (size first).

    Raises:
        ArtifactError: missing, of another size, or of other content.
        UnsafeError: the path is not one the format knows.
    """
    path = resolve(folder, record)
    fix = "copy the artifact again; svdh verify lists every damaged file"
    if not path.is_file():
        raise ArtifactError("file is missing", where=str(path), fix=fix)
    size = path.stat().st_size
    if size != record.bytes:
        raise ArtifactError(
            f"file has {size} bytes, the manifest says {record.bytes}", where=str(path), fix=fix
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != record.sha256:
        raise ArtifactError(
            f"file content is not what was written (sha256 {digest[:12]}…, "
            f"the manifest has {record.sha256[:12]}…)",
            where=str(path),
            fix=fix,
        )
    return path


def directory_bytes(folder: Path) -> int:
    """Sum of the sizes of every file below the directory."""
    return sum(path.lstat().st_size for path in _files_below(folder))


def foreign_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Relative paths of files in the directory that the manifest does not list."""
    listed = {record.path for record in manifest.files} | {layout.MANIFEST}
    for path in _files_below(folder):
        relative = path.relative_to(folder).as_posix()
        if relative not in listed:
            yield relative


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield Path(parent) / name
