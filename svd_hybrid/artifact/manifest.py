"""manifest.json: what the artifact is. Frozen records ⇄ canonical JSON.

A manifest holds nothing that changes between equal runs: no time, host, path or thread count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.jsonfile import canonical_json
from svd_hybrid.artifact.schema import validate
from svd_hybrid.delta.expr import parts_of
from svd_hybrid.delta.serial import expr_from_json
from svd_hybrid.errors import ArtifactError, UnknownNameError, VersionError
from svd_hybrid.registry import did_you_mean

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes that have deltas; as in io.tensors, which needs torch."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """How one part of one tensor is stored.

    Args:
        codec: index into the manifest's codecs.
        rows: rows of the part (of one slice, when stacked).
        columns: columns; >= 1.
        stacked: whether it has one slice per task, in task order.
    """

    codec: int
    rows: int
    columns: int
    stacked: bool

    def to_json(self) -> dict[str, Any]:
        """The manifest record."""
        return {
            "codec": self.codec,
            "rows": self.rows,
            "columns": self.columns,
            "stacked": self.stacked,
        }


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
        if self.buffer:
            record["buffer"] = True
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TensorRecord:
        """The record of validated JSON."""
        parts = {name: PartRecord(**part) for name, part in record.get("parts", {}).items()}
        return cls(
            name=record["name"],
            dtype=record["dtype"],
            shape=tuple(record["shape"]),
            sha256=record["sha256"],
            parts=parts,
            task=record.get("task"),
            blend=record.get("blend"),
            buffer=record.get("buffer", False),
            alias=record.get("alias"),
        )


@dataclass(frozen=True, slots=True)
class LinearMerge:
    """A merge that is a weighted sum of the stored tasks, times `scaling`.

    Args:
        method: id and version of the rule that chose the weights; provenance only.
        weights: one finite number per task, in task order.
        scaling: factor on the merged delta (not on buffers).
    """

    method: str
    method_version: int
    weights: tuple[float, ...]
    scaling: float

    def to_json(self) -> dict[str, Any]:
        """The manifest record."""
        return {
            "kind": "linear",
            "method": self.method,
            "method_version": self.method_version,
            "weights": list(self.weights),
            "scaling": self.scaling,
        }


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
    """

    profile: str
    tasks: tuple[str, ...]
    merges: Mapping[str, LinearMerge]
    default_merge: str
    codecs: tuple[Mapping[str, Any], ...]
    tensors: tuple[TensorRecord, ...]
    files: tuple[FileRecord, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON, sealed by its own checksum."""
        return canonical_json(
            sealed(
                {
                    "format": layout.FORMAT,
                    "format_version": layout.WRITTEN,
                    "profile": self.profile,
                    "tasks": list(self.tasks),
                    "merges": {name: merge.to_json() for name, merge in self.merges.items()},
                    "default_merge": self.default_merge,
                    "codecs": [dict(codec) for codec in self.codecs],
                    "tensors": [tensor.to_json() for tensor in self.tensors],
                    "files": [file.to_json() for file in self.files],
                }
            )
        )

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

    def task_index(self, task: str) -> int:
        """Position of a task.

        Raises:
            UnknownNameError: the artifact has no such task.
        """
        return _index(task, self.tasks, "task")

    def merge(self, name: str | None) -> LinearMerge:
        """The named merge, or the default one.

        Raises:
            UnknownNameError: the artifact has no such merge.
        """
        names = list(self.merges)
        return self.merges[names[_index(name or self.default_merge, names, "merge")]]


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


def manifest_from_json(record: Any, where: str) -> Manifest:
    """The manifest of a parsed manifest.json.

    Raises:
        VersionError: written in a format version outside this reader's range.
        ArtifactError: it breaks the schema, or contradicts itself.
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
    merges = {
        name: LinearMerge(
            merge["method"], merge["method_version"], tuple(merge["weights"]), merge["scaling"]
        )
        for name, merge in record["merges"].items()
    }
    manifest = Manifest(
        profile=record["profile"],
        tasks=tuple(record["tasks"]),
        merges=merges,
        default_merge=record["default_merge"],
        codecs=tuple(record["codecs"]),
        tensors=tuple(TensorRecord.from_json(tensor) for tensor in record["tensors"]),
        files=tuple(FileRecord(**file) for file in record["files"]),
    )
    _check_consistent(manifest, where)
    return manifest


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


def _check_consistent(manifest: Manifest, where: str) -> None:
    """What a schema cannot say: references resolve, counts agree, nothing appears twice."""

    def require(truth: bool, what: str) -> None:
        if not truth:
            raise ArtifactError(what, where=where)

    names = [tensor.name for tensor in manifest.tensors]
    require(names == sorted(set(names)), "tensors are not in ascending order of distinct names")
    paths = [file.path for file in manifest.files]
    require(paths == sorted(set(paths)), "files are not in ascending order of distinct paths")
    require(manifest.default_merge in manifest.merges, "default_merge names no merge")
    for name, merge in manifest.merges.items():
        require(
            len(merge.weights) == len(manifest.tasks),
            f"merge {name!r} has {len(merge.weights)} weights for {len(manifest.tasks)} tasks",
        )
    by_name = {tensor.name: tensor for tensor in manifest.tensors}
    for tensor in manifest.tensors:
        for part_name, part in tensor.parts.items():
            require(
                part.codec < len(manifest.codecs),
                f"tensor {tensor.name!r}, part {part_name!r}: codec {part.codec} is not listed",
            )
        for expression in (tensor.task, tensor.blend):
            if expression is not None:
                unknown = set(parts_of(expr_from_json(expression))) - set(tensor.parts)
                require(not unknown, f"tensor {tensor.name!r}: no parts {sorted(unknown)}")
        stores = bool(tensor.parts) or tensor.task is not None or tensor.blend is not None
        require(
            tensor.dtype in FLOATS or not (stores or tensor.alias),
            f"tensor {tensor.name!r} is {tensor.dtype}, so it has no delta",
        )
        if tensor.alias is not None:
            target = by_name.get(tensor.alias)
            require(
                target is not None
                and target.alias is None
                and (target.dtype, target.shape, target.sha256)
                == (tensor.dtype, tensor.shape, tensor.sha256)
                and not stores,
                f"tensor {tensor.name!r} is no true alias of {tensor.alias!r}",
            )
