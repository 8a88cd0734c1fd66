"""What a manifest is made of: strings, parts, tensors, files, digests. Frozen records ⇄ JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from svd_hybrid.errors import ArtifactError


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
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of its matrix view, as `delta.evaluate.matrix_shape`."""
        if len(self.shape) < 2:
            return 1, math.prod(self.shape)
        return self.shape[0], math.prod(self.shape[1:])

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
    """One file of the directory other than the manifest.

    Args:
        path: relative to the directory.
        bytes: its size.
        sha256: of its content (hex).
        blocks: `artifact.blocks.block_digest` of each of its blocks, one after the other; empty
            where there are none, and the file is compared as a whole.
    """

    path: str
    bytes: int
    sha256: str
    blocks: str = ""

    def to_json(self) -> dict[str, Any]:
        """The manifest record."""
        record = {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}
        return record | {"blocks": self.blocks} if self.blocks else record


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
