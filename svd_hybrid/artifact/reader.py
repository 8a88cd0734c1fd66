"""Reading parts back: manifest, shards, codecs. Nothing of a shard is trusted unchecked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from svd_hybrid.artifact.checked_file import CheckedFile
from svd_hybrid.artifact.files import check_file, read_manifest
from svd_hybrid.artifact.layout import STREAMS, array_name
from svd_hybrid.artifact.manifest import Manifest
from svd_hybrid.artifact.records import FileRecord, PartRecord, Span, TensorRecord
from svd_hybrid.artifact.shards import ArrayInfo, array_shards, read_header
from svd_hybrid.artifact.stable import Identity, identity, read_stable, refuse_replaced
from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import AnyCodec, StreamCodec, codec_from_json
from svd_hybrid.codec.streams import decode_slice
from svd_hybrid.errors import ArtifactError, StorageError
from svd_hybrid.limits import UNVOUCHED_BYTES, UNVOUCHED_RATIO


class ArtifactReader:
    """An artifact directory, opened.

    Args:
        folder: the directory.
        manifest: its manifest, read and checked.
        known: what tells this artifact from one that takes its place.

    Raises:
        VersionError: it needs a codec this reader lacks.
        ArtifactError: a part in strings has a codec of arrays, or the other way round.
    """

    def __init__(self, folder: Path, manifest: Manifest, known: Identity = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.known = known
        self.codecs: list[AnyCodec] = [codec_from_json(record) for record in manifest.codecs]
        self._ordinals = {tensor.name: index for index, tensor in enumerate(manifest.tensors)}
        self._shards = Shards(folder, manifest, known)
        self._last: ArtifactParts | None = None
        self.keeps_shared = False
        """Whether decoded shared parts are kept from one selection of a tensor to the next."""
        self.vouched = False
        """Whether a base has the shapes that the manifest gives to its tensors."""
        for tensor in manifest.tensors:
            for name, part in tensor.parts.items():
                self._check_kind(tensor, name, part)

    @classmethod
    def open(cls, folder: Path, expect: str | None = None) -> ArtifactReader:
        """Read the manifest; shards are opened, and their digests checked, on first use.

        Args:
            folder: the directory.
            expect: its id, when only that artifact will do.

        Raises:
            StorageError, ArtifactError, VersionError, UnsafeError: as the manifest deserves.
        """
        return read_stable(
            folder, lambda: cls(folder, read_manifest(folder, expect), identity(folder))
        )

    def owner(self, record: TensorRecord) -> TensorRecord:
        """The record that holds a tensor's parts: its own, or its target's for an alias."""
        return self.manifest.tensors[self._ordinals[record.alias or record.name]]

    def parts(self, record: TensorRecord) -> ArtifactParts:
        """Where the parts of a tensor are found."""
        owner = self.owner(record)
        if self._last is None or self._last.record is not owner or not self.keeps_shared:
            self._last = None  # before anything new is decoded
            parts = ArtifactParts(self, owner, self._ordinals[owner.name])
            self._last = parts if self.keeps_shared else None
            return parts
        return self._last

    def array(self, name: str, task: int | None) -> Tensor:
        """A stored array, or the slice (1, …) of one task.

        Raises:
            ArtifactError: a shard is damaged, or none holds the array.
            LockedError: another run has replaced the artifact.
        """
        return self._shards.array(name, task)

    def string(self, span: Span) -> bytes:
        """The string of one slice.

        Raises:
            ArtifactError: its shard is damaged, or too short.
        """
        return self._shards.string(span)

    def _check_kind(self, tensor: TensorRecord, name: str, part: PartRecord) -> None:
        codec = self.codecs[part.codec]
        if isinstance(codec, StreamCodec) != (part.spans is not None):
            raise ArtifactError(
                f"part is not stored as codec {codec.name!r} stores one",
                where=f"tensor {tensor.name!r}, part {name!r} in {self.folder}",
            )


class Shards:
    """The shards of an artifact, each opened when needed, and compared as far as it is read."""

    def __init__(self, folder: Path, manifest: Manifest, known: Identity) -> None:
        self.folder = folder
        self.manifest = manifest
        self.known = known
        self._homes: dict[str, FileRecord] | None = None  # shard of every array
        self._files: dict[str, CheckedFile] = {}
        self._opened: dict[Path, Any] = {}

    def array(self, name: str, task: int | None) -> Tensor:
        """As `ArtifactReader.array`."""
        record = self._home(name)
        file = self._file(record)
        with self._while_there():
            info = file.arrays.get(name)
            if info is None or (task is not None and task >= info.slices):
                raise ArtifactError(f"array {name!r} has no slice {task}", where=str(self.folder))
            path = file.need(*info.place(task))
        shard = self._open(path)
        if task is None:
            whole: Tensor = shard.get_tensor(name)
            return whole
        part: Tensor = shard.get_slice(name)[task : task + 1]
        return part

    def string(self, span: Span) -> bytes:
        """As `ArtifactReader.string`."""
        if not span.length:
            return b""
        record = self.manifest.files[span.file]
        file = self._file(record)
        with self._while_there():
            info = _streams_of(file, self.folder / record.path)
            if span.offset + span.length > info.nbytes:
                where = str(self.folder / record.path)
                raise ArtifactError("shard ends before a string does", where=where)
            begin = info.begin + span.offset
            with file.need(begin, span.length).open("rb") as opened:
                opened.seek(begin)
                return opened.read(span.length)

    def _file(self, record: FileRecord) -> CheckedFile:
        if record.path not in self._files:
            self._files[record.path] = CheckedFile(self.folder, record)
        return self._files[record.path]

    def _home(self, name: str) -> FileRecord:
        """The shard that holds an array; headers are read here, once, and not yet trusted."""
        if self._homes is None:
            homes: dict[str, FileRecord] = {}
            for record in array_shards(self.manifest):
                for array in self._names(record):
                    other = homes.setdefault(array, record)
                    if other is not record and array != STREAMS:
                        self._check(other, record)
                        where = str(self.folder / record.path)
                        raise ArtifactError(f"array {array!r} is stored twice", where=where)
            self._homes = homes
        if name not in self._homes:
            self._check(*array_shards(self.manifest))
            raise ArtifactError(f"no shard holds array {name!r}", where=str(self.folder))
        return self._homes[name]

    def _names(self, record: FileRecord) -> list[str]:
        try:
            return list(read_header(self.folder / record.path))
        except (ArtifactError, OSError):
            self._check(record)  # says more, where the file is not what was written
            raise

    def _check(self, *records: FileRecord) -> None:
        with self._while_there():
            for record in records:
                check_file(self.folder, record)

    @contextmanager
    def _while_there(self) -> Iterator[None]:
        """Name the cause where a file is missing because another run replaced the artifact."""
        try:
            yield
        except (ArtifactError, StorageError, OSError):
            if self.known is not None:
                refuse_replaced(self.folder, self.known)
            raise

    def _open(self, path: Path) -> Any:
        if path not in self._opened:
            with self._while_there():
                try:
                    self._opened[path] = cast("Any", safe_open(path, framework="pt"))
                except SafetensorError as error:
                    raise ArtifactError(
                        f"shard is no safetensors file: {str(error)[:160]}", where=str(path)
                    ) from error
        return self._opened[path]


def _streams_of(file: CheckedFile, path: Path) -> ArrayInfo:
    info = file.arrays.get(STREAMS)
    if info is None or (info.dtype, len(info.shape)) != ("U8", 1):
        raise ArtifactError(f"shard has no array {STREAMS!r} of bytes", where=str(path))
    return info


def _check_claim(decoded: int, stored: int) -> None:
    """Refuse to make a lot out of a little because a manifest says so."""
    if decoded > max(UNVOUCHED_BYTES, UNVOUCHED_RATIO * stored):
        raise ArtifactError(
            f"{stored} stored bytes claim to be {decoded} decoded ones",
            fix="pass the base, which can vouch for the size of its tensors",
        )


class ArtifactParts:
    """The parts of one tensor (a delta.evaluate.PartSource)."""

    def __init__(self, reader: ArtifactReader, record: TensorRecord, ordinal: int) -> None:
        self.reader = reader
        self.record = record
        self.ordinal = ordinal
        self._shared: dict[str, Tensor] = {}

    def _part(self, part: str) -> PartRecord:
        if part not in self.record.parts:
            raise ArtifactError(
                f"expression of tensor {self.record.name!r} needs part {part!r}, "
                "which is not stored",
                where=str(self.reader.folder),
            )
        return self.record.parts[part]

    def is_stacked(self, part: str) -> bool:
        """Whether the part has one slice per task."""
        return self._part(part).stacked

    def shape(self, part: str) -> tuple[int, int]:
        """Rows and columns."""
        record = self._part(part)
        return record.rows, record.columns

    def encoded(self) -> dict[str, EncodedPart]:
        """All parts as they are stored, to be put into another artifact."""
        return {name: self._encoded(name, record) for name, record in self.record.parts.items()}

    def _encoded(self, name: str, record: PartRecord) -> EncodedPart:
        codec = self.reader.codecs[record.codec]
        shape = (record.rows, record.columns)
        if isinstance(codec, StreamCodec):
            strings = tuple(self.reader.string(span) for span in record.spans or ())
            return EncodedPart(codec, *shape, record.stacked, {}, strings)
        slices = record.held(len(self.reader.manifest.tasks))
        arrays = {
            array: self.reader.array(array_name(self.ordinal, name, array), None)
            for array in codec.layout((slices, *shape))
        }
        return EncodedPart(codec, *shape, record.stacked, arrays)

    def decode(self, part: str, task: int | None) -> Tensor:
        """The part (of one task), as its codec gives it; zeros for a task without a slice.

        Raises:
            ArtifactError: stored arrays or strings are missing or not as the format says.
        """
        if part in self._shared:
            return self._shared[part]
        decoded = self._decode(part, task)
        if task is None and self.reader.keeps_shared:
            self._shared[part] = decoded
        return decoded

    def _decode(self, part: str, task: int | None) -> Tensor:
        record = self._part(part)
        codec = self.reader.codecs[record.codec]
        shape = (record.rows, record.columns)
        if task is not None and task >= record.held(len(self.reader.manifest.tasks)):
            return torch.zeros(shape, dtype=codec.dtype)
        try:
            if isinstance(codec, StreamCodec):
                assert record.spans is not None  # as __init__ of the reader has checked
                span = record.spans[task or 0]
                if not self.reader.vouched:
                    _check_claim(math.prod(shape) * codec.dtype.itemsize, span.length)
                return decode_slice(codec, self.reader.string(span), shape)
            names = codec.layout((1, *shape))
            arrays = {n: self.reader.array(array_name(self.ordinal, part, n), task) for n in names}
            return codec.decode(arrays, (1, *shape))[0]
        except ArtifactError as error:
            error.where = (
                error.where or f"tensor {self.record.name!r}, part {part!r} in {self.reader.folder}"
            )
            raise
