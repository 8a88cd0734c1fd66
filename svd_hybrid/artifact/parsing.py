"""Parsed JSON → a manifest that can be relied on, or the fault it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from svd_hybrid import __version__
from svd_hybrid.artifact import layout
from svd_hybrid.artifact.codec_table import check_codecs
from svd_hybrid.artifact.consistency import check_consistent
from svd_hybrid.artifact.manifest import Manifest, sealed
from svd_hybrid.artifact.merges import merge_from_json
from svd_hybrid.artifact.records import Cursor, FileRecord, Rebuilt, TensorRecord
from svd_hybrid.artifact.schema import validate
from svd_hybrid.errors import ArtifactError, UnsafeError, VersionError


def manifest_from_json(
    record: Any, where: str, read_index: Callable[[FileRecord], Any] | None = None
) -> Manifest:
    """The manifest of a parsed manifest.json.

    Args:
        record: the parsed JSON.
        where: its file, for errors.
        read_index: the parsed JSON of the index; needed where the manifest has no tensors.

    Raises:
        VersionError: written in a format version outside this reader's range.
        ArtifactError: it breaks the schema, or contradicts itself.
        UnsafeError: it names a path the format does not know.
    """
    if not isinstance(record, dict) or record.get("format") != layout.FORMAT:
        raise ArtifactError("this is not an svdh manifest", where=where)
    _check_version(record, where)
    validate(record, "manifest-v1", where)
    _check_seal(record, where)
    check_codecs(record["codecs"], where)
    files = tuple(FileRecord(**file) for file in record["files"])
    for file in files:
        check_path(file, where)
    index = next((file for file in files if file.path == layout.INDEX), None)
    if (index is None) != ("tensors" in record):
        raise ArtifactError("tensors are neither in the manifest nor in an index", where=where)
    if index is not None:
        record = dict(record) | _content_of(index, record, read_index, where)
    merges = {name: merge_from_json(merge) for name, merge in record["merges"].items()}
    manifest = Manifest(
        profile=record["profile"],
        tasks=tuple(record["tasks"]),
        merges=merges,
        default_merge=record["default_merge"],
        codecs=tuple(record["codecs"]),
        tensors=_tensors(record["tensors"], where),
        files=files,
        holds_tasks=record.get("holds_tasks", True),
        indexed=index is not None,
        rebuilt=_rebuilt(record.get("rebuilt")),
    )
    check_consistent(manifest, where)
    return manifest


def _check_version(record: Mapping[str, Any], where: str) -> None:
    version = record.get("format_version")
    if isinstance(version, int) and (layout.OLDEST_READABLE <= version <= layout.NEWEST_READABLE):
        return
    needs = record.get("needs")  # of later versions, which must say it so
    release = f"svdh {needs}" if isinstance(needs, str) else f"an svdh newer than {__version__}"
    raise VersionError(
        f"artifact has format version {str(version)[:20]}; svdh {__version__} reads "
        f"{layout.OLDEST_READABLE} to {layout.NEWEST_READABLE}",
        where=where,
        fix=f"read it with {release[:60]}: pip install --upgrade svd-hybrid",
    )


def check_path(file: FileRecord, where: str) -> None:
    """Refuse a file that no artifact holds.

    Raises:
        UnsafeError: the format knows no such path.
    """
    if not layout.is_known(file.path):
        raise UnsafeError(
            f"manifest names a path the format does not know: {file.path!r}", where=where
        )


def _content_of(
    index: FileRecord,
    record: Mapping[str, Any],
    read_index: Callable[[FileRecord], Any] | None,
    where: str,
) -> dict[str, Any]:
    """The fields that the index holds, once they conform to the schema."""
    if read_index is None:
        raise ArtifactError("the index of the manifest is not at hand", where=where)
    content = read_index(index)
    known = isinstance(content, dict) and {"tensors"} <= set(content) <= {"tensors", "rebuilt"}
    if not known or "rebuilt" in record:
        raise ArtifactError("index holds something else than tensors and digests", where=where)
    validate(dict(record) | content, "manifest-v1", where)
    return dict(content)


def _rebuilt(record: Mapping[str, Any] | None) -> Rebuilt | None:
    if record is None:
        return None
    return Rebuilt(record.get("tasks", {}), record.get("merges", {}))


def _tensors(records: Any, where: str) -> tuple[TensorRecord, ...]:
    cursor: Cursor = {}
    try:
        return tuple(TensorRecord.from_json(tensor, cursor) for tensor in records)
    except ArtifactError as error:
        error.where = error.where or where
        raise


def _check_seal(record: Mapping[str, Any], where: str) -> None:
    """Refuse a manifest of which a bit has changed since it was written."""
    try:
        intact = sealed(record)["checksum"] == record["checksum"]
    except (ValueError, RecursionError):  # text that is no Unicode
        intact = False
    if not intact:
        raise ArtifactError(
            "manifest content is not what was written: its checksum differs",
            where=where,
            fix="copy the artifact again",
        )
