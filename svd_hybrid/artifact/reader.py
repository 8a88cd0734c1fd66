"""Reading parts back: manifest, shards, codecs. Every shard is checked before it is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from svd_hybrid.artifact.files import check_file, read_manifest
from svd_hybrid.artifact.layout import SHARD_PATTERN, array_name
from svd_hybrid.artifact.manifest import Manifest, PartRecord, TensorRecord
from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import Codec, codec_from_json
from svd_hybrid.errors import ArtifactError


class ArtifactReader:
    """An artifact directory, opened.

    Args:
        folder: the directory.
        manifest: its manifest, read and checked.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.codecs: list[Codec] = [codec_from_json(record) for record in manifest.codecs]
        self._ordinals = {tensor.name: index for index, tensor in enumerate(manifest.tensors)}
        self._shard_of: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: Path) -> ArtifactReader:
        """Read the manifest; shards are opened, and their digests checked, on first use.

        Raises:
            StorageError, ArtifactError, VersionError, UnsafeError: as the manifest deserves.
        """
        return cls(folder, read_manifest(folder))

    def owner(self, record: TensorRecord) -> TensorRecord:
        """The record that holds a tensor's parts: its own, or its target's for an alias."""
        return self.manifest.tensors[self._ordinals[record.alias or record.name]]

    def parts(self, record: TensorRecord) -> ArtifactParts:
        """Where the parts of a tensor are found."""
        owner = self.owner(record)
        return ArtifactParts(self, owner, self._ordinals[owner.name])

    def array(self, name: str, task: int | None) -> Tensor:
        """A stored array, or the slice (1, …) of one task.

        Raises:
            ArtifactError: a shard is damaged, or none holds the array.
        """
        shards = self._shards()
        if name not in shards:
            raise ArtifactError(f"no shard holds array {name!r}", where=str(self.folder))
        if task is None:
            whole: Tensor = shards[name].get_tensor(name)
            return whole
        view = shards[name].get_slice(name)
        if task >= view.get_shape()[0]:
            raise ArtifactError(f"array {name!r} has no slice {task}", where=str(self.folder))
        part: Tensor = view[task : task + 1]
        return part

    def _shards(self) -> dict[str, Any]:
        """Array name → open shard; every shard's size and digest are checked here, once."""
        if self._shard_of is None:
            shard_of: dict[str, Any] = {}
            for record in self.manifest.files:
                if SHARD_PATTERN.fullmatch(record.path):
                    path = check_file(self.folder, record)
                    try:
                        shard = cast("Any", safe_open(path, framework="pt"))
                    except SafetensorError as error:
                        raise ArtifactError(
                            f"shard is no safetensors file: {str(error)[:160]}", where=str(path)
                        ) from error
                    for name in shard.keys():  # noqa: SIM118 (safe_open is no mapping)
                        if name in shard_of:
                            raise ArtifactError(f"array {name!r} is stored twice", where=str(path))
                        shard_of[name] = shard
            self._shard_of = shard_of
        return self._shard_of


class ArtifactParts:
    """The parts of one tensor (a delta.evaluate.PartSource)."""

    def __init__(self, reader: ArtifactReader, record: TensorRecord, ordinal: int) -> None:
        self.reader = reader
        self.record = record
        self.ordinal = ordinal

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
        stored = {}
        for name, record in self.record.parts.items():
            codec = self.reader.codecs[record.codec]
            slices = len(self.reader.manifest.tasks) if record.stacked else 1
            arrays = {
                array: self.reader.array(array_name(self.ordinal, name, array), None)
                for array in codec.layout((slices, record.rows, record.columns))
            }
            stored[name] = EncodedPart(codec, record.rows, record.columns, record.stacked, arrays)
        return stored

    def decode(self, part: str, task: int | None) -> Tensor:
        """The part (of one task), float32 or bool.

        Raises:
            ArtifactError: stored arrays are missing or not as the format says.
        """
        record = self._part(part)
        codec = self.reader.codecs[record.codec]
        shape = (1, record.rows, record.columns)
        names = codec.layout(shape)
        arrays = {n: self.reader.array(array_name(self.ordinal, part, n), task) for n in names}
        try:
            return codec.decode(arrays, shape)[0]
        except ArtifactError as error:
            error.where = f"tensor {self.record.name!r}, part {part!r} in {self.reader.folder}"
            raise
