"""Writing an artifact: shards as the tensors come, documents, the manifest last.

The caller provides a staging directory (io.staging) and renames it; nothing here is visible before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.blocks import block_count, block_digests, file_digest
from svd_hybrid.artifact.layout import SHARD_BYTES, STREAMS, array_name, shard_folder
from svd_hybrid.artifact.manifest import (
    Cursor,
    FileRecord,
    Manifest,
    PartRecord,
    Rebuilt,
    Span,
    TensorRecord,
    next_span,
)
from svd_hybrid.artifact.merges import Merge
from svd_hybrid.codec import AnyCodec, Encoded, codec_to_json
from svd_hybrid.frames import compress
from svd_hybrid.io.new_file import (
    COPY_BYTES,
    NewFile,
    make_folder,
    write_file,
)
from svd_hybrid.io.safetensors_writer import HEADER_ALIGNMENT, SafetensorsWriter
from svd_hybrid.io.storage import storage
from svd_hybrid.io.tensors import info_of

DIAGNOSTICS_UNIT = 64
"""diagnostics.json is filled with spaces to a multiple of this, so it can state its own size."""


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """One part, encoded.

    Args:
        codec: what encoded it.
        rows, columns: of the part, or of each slice.
        stacked: whether there is one slice per task (else exactly one slice). Slices of the last
            tasks may be missing; they are zeros.
        arrays: what a Codec made; empty for a StreamCodec.
        strings: what a StreamCodec made, one of every slice; empty for a Codec.
    """

    codec: AnyCodec
    rows: int
    columns: int
    stacked: bool
    arrays: Encoded = field(default_factory=dict)
    strings: tuple[bytes, ...] = ()

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return len(next(iter(self.arrays.values()))) if self.arrays else len(self.strings)

    @property
    def nbytes(self) -> int:
        """Stored bytes of its arrays and strings."""
        return _bytes(self.arrays) + sum(map(len, self.strings))


@dataclass(slots=True)
class _OpenShard:
    """What a shard will hold: arrays and strings in memory, or strings on disk."""

    arrays: dict[str, Tensor] = field(default_factory=dict)
    strings: bytearray = field(default_factory=bytearray)
    on_disk: int = 0
    number: int | None = None

    @property
    def nbytes(self) -> int:
        return _bytes(self.arrays) + len(self.strings) + self.on_disk


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
        self._shared = {name: _OpenShard() for name in layout.SHARD_FOLDERS}
        self._of_tasks: dict[tuple[str, int], _OpenShard] = {}
        self._shards: list[str] = []  # paths; until the end spans name shards by index here
        self._cursor: Cursor = {}
        self._blocks = 0  # of the shards so far
        self._rebuilt: Rebuilt | None = None

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
            codec, shape = self._codec_index(part.codec), (part.rows, part.columns)
            stored[name] = PartRecord(codec, *shape, part.stacked, self._fewer_slices(part))
            folder = shard_folder(name)
            for array, tensor in part.arrays.items():
                self._shared[folder].arrays[array_name(ordinal, name, array)] = tensor
            self._close_if_full(folder)
        for name in sorted(parts):  # the order that offsets follow from
            if parts[name].strings:
                spans = self._add_strings(shard_folder(name), parts[name])
                stored[name] = replace(stored[name], spans=spans)
        self._tensors.append(
            replace(record, parts=stored, task=task, blend=blend, merges=merges or {})
        )

    def add_alias(self, record: TensorRecord, alias: str) -> None:
        """Store nothing for a tensor that is an earlier one's twin in base and tasks."""
        self._tensors.append(replace(record, alias=alias))

    @property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """Records of what was stored so far, in order."""
        return tuple(self._tensors)

    def finish(
        self,
        merges: Mapping[str, Merge],
        default_merge: str,
        documents: Mapping[str, bytes],
        diagnostics: Callable[[dict[str, int]], bytes],
        rebuilt: Callable[[Manifest], Rebuilt | None] = lambda _: None,
    ) -> Manifest:
        """Write what is left: open shards, documents, diagnostics, manifest.

        Args:
            merges: merges by name.
            default_merge: the one reload gives by default.
            documents: file name → content.
            diagnostics: makes diagnostics.json from the byte breakdown of the whole directory,
                itself and the manifest included; called again while the sizes it states grow.
            rebuilt: digests of what a reader of this manifest gets; every shard is in its place.

        Returns:
            The manifest that was written.
        """
        for folder in layout.SHARD_FOLDERS:
            self._close(folder)
        for folder, task in sorted(self._of_tasks):
            self._close_of_task(folder, task)
        for name, data in documents.items():
            self._write(name, data)
        self._place_strings()
        unknown = FileRecord(layout.DIAGNOSTICS, 0, "0" * 64)
        bare = self._manifest(merges, default_merge, FileRecord(layout.INDEX, 0, "0" * 64), unknown)
        self._rebuilt = rebuilt(bare)
        index = replace(bare, rebuilt=self._rebuilt).index_bytes()
        self._write(layout.INDEX, compress(index, layout.INDEX_LEVEL))
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
        write_file(self.folder / layout.DIAGNOSTICS, data)
        write_file(self.folder / layout.MANIFEST, manifest.to_bytes())
        return manifest

    def _manifest(
        self, merges: Mapping[str, Merge], default_merge: str, *more: FileRecord
    ) -> Manifest:
        files = sorted([*self._files, *more], key=lambda file: file.path)
        return Manifest(
            self.profile,
            self.tasks,
            merges,
            default_merge,
            tuple(self._codecs),
            tuple(self._tensors),
            tuple(files),
            self.holds_tasks,
            rebuilt=self._rebuilt,
        )

    def _place_strings(self) -> None:
        """Give every string the index that its shard has among all files."""
        paths = [file.path for file in self._files] + [layout.INDEX, layout.DIAGNOSTICS]
        ordinals = {path: ordinal for ordinal, path in enumerate(sorted(paths))}

        def placed(part: PartRecord) -> PartRecord:
            spans = tuple(
                replace(span, file=ordinals[self._shards[span.file]]) if span.length else span
                for span in part.spans or ()
            )
            return part if part.spans is None else replace(part, spans=spans)

        self._tensors = [
            replace(tensor, parts={name: placed(part) for name, part in tensor.parts.items()})
            for tensor in self._tensors
        ]

    def _fewer_slices(self, part: EncodedPart) -> int | None:
        """How many slices an array part has, when that is less than one per task."""
        expected = len(self.tasks) if part.stacked else 1
        if not 0 < part.slices <= expected or (part.slices < expected and not part.stacked):
            raise ValueError(f"a part has {part.slices} slices for {expected}")
        return part.slices if part.arrays and part.slices < expected else None

    def _add_strings(self, folder: str, part: EncodedPart) -> tuple[Span, ...]:
        """Put the strings of a part into the open shards of their folder, or of their tasks."""
        spans = []
        for index, data in enumerate(part.strings):
            task = index if part.stacked else None
            if not data:
                spans.append(Span(0, 0, 0))
                continue
            shard = self._shared[folder]
            if task is not None:
                shard = self._of_tasks.setdefault((folder, task), _OpenShard())
            if shard.number is None:
                shard.number = len(self._shards)
                self._shards.append("")
            spans.append(next_span(self._cursor, shard.number, task, len(data)))
            if task is None:
                shard.strings += data
            else:
                self._append(folder, task, data)
        self._close_if_full(folder)
        return tuple(spans)

    def _append(self, folder: str, task: int, data: bytes) -> None:
        """Put a task's string into its open shard, on disk: there may be thousands of tasks."""
        shard = self._of_tasks[folder, task]
        make_folder(self.folder / folder)
        with NewFile(self._draft(folder, task), append=True, durable=False) as file:
            file.write(data)
        shard.on_disk += len(data)
        if shard.nbytes >= SHARD_BYTES:
            self._close_of_task(folder, task)

    def _draft(self, folder: str, task: int) -> Path:
        return self.folder / folder / f"draft-{task}"

    def _codec_index(self, codec: AnyCodec) -> int:
        record = codec_to_json(codec)
        if record not in self._codecs:
            self._codecs.append(record)
        return self._codecs.index(record)

    def _close_if_full(self, folder: str) -> None:
        if self._shared[folder].nbytes >= SHARD_BYTES:
            self._close(folder)

    def _close(self, folder: str) -> None:
        """Write the open shard of a folder under the name of its content."""
        shard = self._shared[folder]
        if not shard.nbytes:
            return
        make_folder(self.folder / folder)
        draft = self.folder / folder / "draft"
        if not shard.arrays:
            self._close_strings(folder, shard, BytesIO(shard.strings))
        else:
            arrays = dict(shard.arrays)
            if shard.strings:
                arrays[STREAMS] = torch.frombuffer(shard.strings, dtype=torch.uint8)
            with SafetensorsWriter(draft, {n: info_of(a) for n, a in arrays.items()}) as writer:
                for name in writer.order:
                    writer.write(name, arrays[name])
            self._publish(folder, draft, shard)
        self._shared[folder] = _OpenShard()

    def _close_of_task(self, folder: str, task: int) -> None:
        """Write the open shard of a task's strings under the name of its content."""
        strings = self._draft(folder, task)
        with strings.open("rb") as file:
            self._close_strings(folder, self._of_tasks.pop((folder, task)), file)
        storage().remove_file(strings)

    def _close_strings(self, folder: str, shard: _OpenShard, strings: BinaryIO) -> None:
        """Write a shard of strings alone."""
        draft, padding = self.folder / folder / "draft", 0
        while True:  # until no other shard has this content: strings of two tasks may be equal
            header = _streams_header(shard.nbytes, padding)
            with NewFile(draft) as file:
                file.write(header)
                strings.seek(0)
                while block := strings.read(COPY_BYTES):
                    file.write(block)
            if self._publish(folder, draft, shard):
                return
            padding += HEADER_ALIGNMENT

    def _publish(self, folder: str, draft: Path, shard: _OpenShard) -> bool:
        """Give a finished shard the name of its content, unless there is one of that name."""
        digest = file_digest(draft)
        path, size = f"{folder}/{digest}.safetensors", draft.stat().st_size
        if (self.folder / path).exists():
            storage().remove_file(draft)
            return False
        storage().rename(draft, self.folder / path)
        self._blocks += block_count(size)
        listed = self._blocks <= layout.MOST_BLOCKS
        blocks = block_digests(self.folder / path) if listed else ""
        self._files.append(FileRecord(path, size, digest, blocks))
        if shard.number is not None:
            self._shards[shard.number] = path
        return True

    def _write(self, name: str, data: bytes) -> None:
        write_file(self.folder / name, data)
        self._files.append(FileRecord(name, len(data), hashlib.sha256(data).hexdigest()))


def _bytes(arrays: Mapping[str, Tensor]) -> int:
    return sum(array.numel() * array.element_size() for array in arrays.values())


def _streams_header(size: int, padding: int) -> bytes:
    """The beginning of a shard that holds strings alone."""
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps({STREAMS: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT + padding)
    return len(text).to_bytes(8, "little") + text
