"""manifest.json and its index: what the artifact is, and its one spelling.

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
from svd_hybrid.artifact.merges import Merge, StoredMerge
from svd_hybrid.artifact.records import (
    Cursor,
    FileRecord,
    PartRecord,
    Rebuilt,
    Span,
    TensorRecord,
    next_span,
)
from svd_hybrid.errors import UnknownNameError, UsageError
from svd_hybrid.registry import did_you_mean

__all__ = [
    "Cursor",
    "FileRecord",
    "Manifest",
    "PartRecord",
    "Rebuilt",
    "Span",
    "TensorRecord",
    "next_span",
    "sealed",
]


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

    def tensor(self, name: str) -> TensorRecord:
        """The record of a tensor.

        Raises:
            UnknownNameError: the artifact has no such tensor.
        """
        return self.tensors[_index(name, [tensor.name for tensor in self.tensors], "tensor")]

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
