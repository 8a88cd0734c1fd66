"""Writing an artifact: shards as the tensors come, documents, the manifest last.

The caller provides a staging directory (io.staging) and renames it; nothing here is visible before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.layout import SHARD_BYTES, array_name, shard_folder
from svd_hybrid.artifact.manifest import FileRecord, Manifest, PartRecord, TensorRecord
from svd_hybrid.artifact.merges import Merge
from svd_hybrid.codec import Codec, Encoded, codec_to_json
from svd_hybrid.io.safetensors_writer import SafetensorsWriter
from svd_hybrid.io.tensors import info_of

DIAGNOSTICS_UNIT = 1024
"""diagnostics.json is filled with spaces to a multiple of this, so it can state its own size."""


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """One part, encoded.

    Args:
        codec: what encoded it.
        rows, columns: of the part, or of each slice.
        stacked: whether the arrays have one slice per task (else exactly one slice).
        arrays: the codec's arrays.
    """

    codec: Codec
    rows: int
    columns: int
    stacked: bool
    arrays: Encoded

    @property
    def nbytes(self) -> int:
        """Stored bytes of its arrays."""
        return sum(array.numel() * array.element_size() for array in self.arrays.values())


class ArtifactWriter:
    """Collects tensors into shards and finishes with the manifest.

    Args:
        folder: an empty staging directory.
        profile: name of the codec choices, for the manifest.
        tasks: task names in order.
        holds_tasks: whether the `task` expressions give every fine-tune.
    """

    def __init__(
        self, folder: Path, profile: str, tasks: list[str], *, holds_tasks: bool = True
    ) -> None:
        self.folder = folder
        self.holds_tasks = holds_tasks
        self.profile = profile
        self.tasks = tuple(tasks)
        self._codecs: list[dict[str, object]] = []
        self._tensors: list[TensorRecord] = []
        self._files: list[FileRecord] = []
        self._buffers: dict[str, dict[str, Tensor]] = {name: {} for name in layout.SHARD_FOLDERS}

    def add_tensor(
        self,
        record: TensorRecord,
        parts: Mapping[str, EncodedPart],
        *,
        task: Mapping[str, Any] | None = None,
        blend: Mapping[str, Any] | None = None,
        merges: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Store one tensor; they must come by ascending name.

        Args:
            record: name, dtype, shape, digest and kind of the base tensor.
            parts: encoded parts by name; none when no task changed it.
            task: expression (JSON) of a task's delta.
            blend: expression a linear merge sums, where it differs.
            merges: expressions of stored merges, by their name.
        """
        ordinal = len(self._tensors)
        stored: dict[str, PartRecord] = {}
        for name, part in parts.items():
            codec = self._codec_index(part.codec)
            stored[name] = PartRecord(codec, part.rows, part.columns, part.stacked)
            folder = shard_folder(name)
            for array, tensor in part.arrays.items():
                self._buffers[folder][array_name(ordinal, name, array)] = tensor
            if _bytes(self._buffers[folder]) >= SHARD_BYTES:
                self._flush(folder)
        self._tensors.append(
            replace(record, parts=stored, task=task, blend=blend, merges=merges or {})
        )

    def add_alias(self, record: TensorRecord, alias: str) -> None:
        """Store nothing for a tensor that is an earlier one's twin in base and tasks."""
        self._tensors.append(replace(record, alias=alias))

    def finish(
        self,
        merges: Mapping[str, Merge],
        default_merge: str,
        documents: Mapping[str, bytes],
        diagnostics: Callable[[dict[str, int]], bytes],
    ) -> Manifest:
        """Write what is left: open shards, documents, diagnostics, manifest.

        Args:
            merges: merges by name.
            default_merge: the one reload gives by default.
            documents: file name → content.
            diagnostics: makes diagnostics.json from the byte breakdown of the whole directory,
                itself and the manifest included; called again while the sizes it states grow.

        Returns:
            The manifest that was written.
        """
        for folder in layout.SHARD_FOLDERS:
            self._flush(folder)
        for name, data in documents.items():
            self._write(name, data)
        data, size = b"", 0
        while len(data) >= size:  # grow until the document fits with the sizes it states
            size = -(-(len(data) + 1) // DIAGNOSTICS_UNIT) * DIAGNOSTICS_UNIT
            draft = self._manifest(
                merges, default_merge, FileRecord(layout.DIAGNOSTICS, size, "0" * 64)
            )
            data = diagnostics(draft.breakdown).rstrip(b"\n")
        data = data.ljust(size - 1) + b"\n"
        record = FileRecord(layout.DIAGNOSTICS, size, hashlib.sha256(data).hexdigest())
        manifest = self._manifest(merges, default_merge, record)
        (self.folder / layout.DIAGNOSTICS).write_bytes(data)
        (self.folder / layout.MANIFEST).write_bytes(manifest.to_bytes())
        return manifest

    def _manifest(
        self, merges: Mapping[str, Merge], default_merge: str, diagnostics: FileRecord
    ) -> Manifest:
        files = sorted([*self._files, diagnostics], key=lambda file: file.path)
        return Manifest(
            self.profile,
            self.tasks,
            merges,
            default_merge,
            tuple(self._codecs),
            tuple(self._tensors),
            tuple(files),
            self.holds_tasks,
        )

    def _codec_index(self, codec: Codec) -> int:
        record = codec_to_json(codec)
        if record not in self._codecs:
            self._codecs.append(record)
        return self._codecs.index(record)

    def _flush(self, folder: str) -> None:
        """Write the open shard of a folder under the name of its content."""
        arrays = self._buffers[folder]
        if not arrays:
            return
        (self.folder / folder).mkdir(exist_ok=True)
        draft = self.folder / folder / "draft"
        with SafetensorsWriter(draft, {n: info_of(a) for n, a in arrays.items()}) as writer:
            for name in writer.order:
                writer.write(name, arrays[name])
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = f"{folder}/{digest}.safetensors"
        size = draft.stat().st_size
        draft.rename(self.folder / path)
        self._files.append(FileRecord(path, size, digest))
        arrays.clear()

    def _write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        self._files.append(FileRecord(name, len(data), hashlib.sha256(data).hexdigest()))


def _bytes(arrays: Mapping[str, Tensor]) -> int:
    return sum(array.numel() * array.element_size() for array in arrays.values())
