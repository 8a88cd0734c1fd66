"""manifest.json and its index: what the artifact is. Frozen records ⇄ canonical JSON.

A manifest holds nothing that changes between equal runs: no time, host, path or thread count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.consistency import check_consistent
from svd_hybrid.artifact.jsonfile import canonical_json
from svd_hybrid.artifact.merges import Merge, StoredMerge, merge_from_json
from svd_hybrid.artifact.schema import validate
from svd_hybrid.errors import ArtifactError, UnknownNameError, UnsafeError, UsageError, VersionError
from svd_hybrid.registry import did_you_mean


@dataclass(frozen=True, slots=True)
class Span:
    """Where the string of one slice lies.

    Args:
        file: index into the manifest's files; 0 for an empty string, which lies nowhere.
        offset: of its first byte in the array `streams` of that shard; 0 for an empty string.
        length: in bytes; 0 stands for a slice of zeros.
    """

    file: int
    offset: int
    length: int


Cursor: TypeAlias = dict[tuple[int, int | None], int]
"""Bytes of `streams` counted so far, by file and task (None: strings of shared parts)."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """How one part of one tensor is stored.

    Args:
        codec: index into the manifest's codecs.
        rows: rows of the part (of one slice, when stacked).
        columns: columns; >= 1.
        stacked: whether it has one slice per task, in task order.
        slices: of a stacked part in arrays that has fewer than there are tasks; else None. The
            tasks without a slice have zeros.
        spans: of a part in strings: one for every slice; else None.
    """

    codec: int
    rows: int
    columns: int
    stacked: bool
    slices: int | None = None
    spans: tuple[Span, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest record; offsets follow from the lengths."""
        record: dict[str, Any] = {
            "codec": self.codec,
            "rows": self.rows,
            "columns": self.columns,
            "stacked": self.stacked,
        }
        if self.slices is not None:
            record["slices"] = self.slices
        if self.spans is not None:
            record["shards"] = [span.file for span in self.spans]
            record["lengths"] = [span.length for span in self.spans]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any], cursor: Cursor) -> PartRecord:
        """The record of validated JSON.

        Args:
            record: the JSON.
            cursor: how far the parts before it reach; moved on.

        Raises:
            ArtifactError: it does not say of every slice in which shard it lies.
        """
        spans = None
        if "lengths" in record:
            try:
                pairs = list(zip(record["shards"], record["lengths"], strict=True))
            except ValueError as error:
                raise ArtifactError("a part names more shards than lengths, or fewer") from error
            spans = tuple(
                next_span(cursor, file, index if record["stacked"] else None, length)
                for index, (file, length) in enumerate(pairs)
            )
        return cls(
            record["codec"],
            record["rows"],
            record["columns"],
            record["stacked"],
            record.get("slices"),
            spans,
        )

    def held(self, tasks: int) -> int:
        """How many slices are stored, in an artifact of that many tasks."""
        if self.spans is not None:
            return len(self.spans)
        return (self.slices or tasks) if self.stacked else 1


def next_span(cursor: Cursor, file: int, task: int | None, length: int) -> Span:
    """The span of the next string of a task, or of the shared parts, in a shard."""
    if not length:
        return Span(file, 0, 0)
    offset = cursor.get((file, task), 0)
    cursor[file, task] = offset + length
    return Span(file, offset, length)


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of the base, and what is stored beside it.

    Args:
        name, dtype, shape: as in the base.
        sha256: `tensor_digest` of the base tensor.
        parts: stored parts by name; empty when no task changed the tensor.
        task: expression (JSON) of a task's delta; None when it is zero for every task.
        blend: expression of the delta a linear merge sums, where it differs from `task`
            (a shrunk noise region); else None.
        merges: merge name → `MergedTensor` JSON: `merged`, and `task` where single tasks come back
            from it; a stored merge that is not named here leaves the tensor as it is.
        buffer: a running statistic: merged with weights that sum to 1, never scaled.
        alias: name of an earlier tensor with the same content in base and tasks, stored once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    parts: Mapping[str, PartRecord]
    task: Mapping[str, Any] | None = None
    blend: Mapping[str, Any] | None = None
    merges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    buffer: bool = False
    alias: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest record; fields at their default are left out."""
        record: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "sha256": self.sha256,
        }
        if self.parts:
            record["parts"] = {name: part.to_json() for name, part in self.parts.items()}
        for key in ("task", "blend", "alias"):
            if getattr(self, key) is not None:
                record[key] = getattr(self, key)
        if self.merges:
            record["merges"] = {name: dict(entry) for name, entry in self.merges.items()}
        if self.buffer:
            record["buffer"] = True
        return record

    @property
    def expressions(self) -> list[Mapping[str, Any]]:
        """Every expression (JSON) over its parts."""
        own = [expr for expr in (self.task, self.blend) if expr is not None]
        return own + [expr for entry in self.merges.values() for expr in entry.values()]

    @classmethod
    def from_json(cls, record: Mapping[str, Any], cursor: Cursor) -> TensorRecord:
        """The record of validated JSON, once the tensors before it moved the cursor.

        Raises:
            ArtifactError: a part does not say where all its slices lie.
        """
        stored = sorted(record.get("parts", {}).items())
        parts = {name: PartRecord.from_json(part, cursor) for name, part in stored}
        return cls(
            name=record["name"],
            dtype=record["dtype"],
            shape=tuple(record["shape"]),
            sha256=record["sha256"],
            parts=parts,
            task=record.get("task"),
            blend=record.get("blend"),
            merges=record.get("merges", {}),
            buffer=record.get("buffer", False),
            alias=record.get("alias"),
        )


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of the directory other than the manifest."""

    path: str
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """The manifest record."""
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What the writer rebuilt from what it had written, with the base.

    Args:
        tasks: task → SHA-256 (hex) of the `tensor_digest`s of all its tensors, one after the other
            by ascending name, in the dtypes a reader gives by default. Tasks that do not come back,
            or not in the dtype of the base, are left out.
        merges: the same of stored merges.
    """

    tasks: Mapping[str, str]
    merges: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The manifest record."""
        record = {"tasks": dict(self.tasks), "merges": dict(self.merges)}
        return {kind: digests for kind, digests in record.items() if digests}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole of manifest.json.

    Args:
        profile: name of the codec choices; provenance only.
        tasks: task names in order; slices and weights follow it.
        merges: named merges.
        default_merge: the one reload gives when nothing is asked for.
        codecs: codec records, named by index from the parts.
        tensors: every tensor of the base, by ascending name.
        files: every other file of the directory, by ascending path.
        holds_tasks: whether the `task` expressions of the tensors give every fine-tune.
        indexed: whether the tensors are in a file of their own, which is one of `files`.
        rebuilt: digests of what comes back; None when they were not made.
    """

    profile: str
    tasks: tuple[str, ...]
    merges: Mapping[str, Merge]
    default_merge: str
    codecs: tuple[Mapping[str, Any], ...]
    tensors: tuple[TensorRecord, ...]
    files: tuple[FileRecord, ...]
    holds_tasks: bool = True
    indexed: bool = True
    rebuilt: Rebuilt | None = None

    def to_bytes(self) -> bytes:
        """manifest.json: canonical JSON, sealed by its own checksum."""
        record = {
            "format": layout.FORMAT,
            "format_version": layout.WRITTEN,
            "profile": self.profile,
            "tasks": list(self.tasks),
            "merges": {name: merge.to_json() for name, merge in self.merges.items()},
            "default_merge": self.default_merge,
            "codecs": [dict(codec) for codec in self.codecs],
            "files": [file.to_json() for file in self.files],
        }
        if not self.holds_tasks:
            record["holds_tasks"] = False
        if not self.indexed:
            record |= self._index()
        return canonical_json(sealed(record))

    def index_bytes(self) -> bytes:
        """What the index holds, before it is compressed: canonical JSON."""
        return canonical_json(self._index())

    def _index(self) -> dict[str, Any]:
        index: dict[str, Any] = {"tensors": [tensor.to_json() for tensor in self.tensors]}
        return index if self.rebuilt is None else index | {"rebuilt": self.rebuilt.to_json()}

    @property
    def artifact_id(self) -> str:
        """SHA-256 (hex) of the manifest; it covers every file through their digests."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def breakdown(self) -> dict[str, int]:
        """Bytes of the directory by shard folder and document, this manifest included."""
        total = {layout.MANIFEST: len(self.to_bytes())}
        for file in self.files:
            key = file.path.split("/", 1)[0]
            total[key] = total.get(key, 0) + file.bytes
        return total

    @property
    def scalars(self) -> int:
        """Scalars of one checkpoint, all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def recovers_tasks(self) -> bool:
        """Whether single tasks come back, from task deltas or from a merge that keeps them."""
        kept = any(isinstance(m, StoredMerge) and m.tasks for m in self.merges.values())
        return self.holds_tasks or kept

    def task_index(self, task: str) -> int:
        """Position of a task.

        Raises:
            UnknownNameError: the artifact has no such task.
        """
        return _index(task, self.tasks, "task")

    def merge(self, name: str | None) -> Merge:
        """The named merge, or the default one.

        Raises:
            UnknownNameError: the artifact has no such merge.
        """
        names = list(self.merges)
        return self.merges[names[_index(name or self.default_merge, names, "merge")]]

    def tasks_from(self, name: str | None) -> str | None:
        """Which merge's expressions single tasks come from; None for the tensors' own.

        Args:
            name: a merge that was asked for; None for wherever they are: the stored tasks, else
                the default merge, else the first merge that has them.

        Raises:
            UnknownNameError: the artifact has no such merge.
            UsageError: single tasks cannot be rebuilt from it.
        """
        if name is None and self.holds_tasks:
            return None
        first = [self.default_merge, *sorted(self.merges)]
        for candidate in first if name is None else [name]:
            merge = self.merge(candidate)
            if isinstance(merge, StoredMerge) and merge.tasks:
                return candidate
        raise UsageError(
            f"merge {name!r} does not hold single tasks" if name else "no single task is stored",
            fix="drop --merge to use the stored tasks"
            if self.holds_tasks
            else "compress again with --store-tasks on",
        )


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with `checksum`: SHA-256 (hex) of the canonical JSON of all its other fields.

    Raises:
        ValueError: the record is not JSON that can be written.
    """
    content = {key: value for key, value in record.items() if key != "checksum"}
    return content | {"checksum": hashlib.sha256(canonical_json(content)).hexdigest()}


def _index(name: str, names: tuple[str, ...] | list[str], kind: str) -> int:
    if name not in names:
        raise UnknownNameError(
            f"the artifact has no {kind} {name!r}", fix=did_you_mean(name, names)
        )
    return list(names).index(name)


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
    version = record.get("format_version")
    if not isinstance(version, int) or not (
        layout.OLDEST_READABLE <= version <= layout.NEWEST_READABLE
    ):
        raise VersionError(
            f"artifact has format version {version!r}; this svdh reads "
            f"{layout.OLDEST_READABLE} to {layout.NEWEST_READABLE}",
            where=where,
            fix="install the svdh release that writes that version",
        )
    validate(record, "manifest-v1", where)
    _check_seal(record, where)
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
    except ValueError:  # text that is no Unicode
        intact = False
    if not intact:
        raise ArtifactError(
            "manifest content is not what was written: its checksum differs",
            where=where,
            fix="copy the artifact again",
        )
