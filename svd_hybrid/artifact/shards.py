"""What shards hold, read from their headers alone; needs neither torch nor NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd_hybrid.artifact.jsonfile import parse_json
from svd_hybrid.artifact.layout import SHARD_PATTERN, STREAMS
from svd_hybrid.artifact.manifest import FileRecord, Manifest
from svd_hybrid.errors import ArtifactError
from svd_hybrid.limits import MOST_JSON_BYTES

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
ITEM_BYTES |= {"U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """One array of a shard.

    Args:
        dtype: as safetensors writes it.
        shape: sizes.
        begin: byte of the file where its data begins.
        nbytes: of the data.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int

    @property
    def slices(self) -> int:
        """Size of the first axis; 0 where there is none."""
        return self.shape[0] if self.shape else 0

    def place(self, task: int | None) -> tuple[int, int]:
        """First byte in the file, and number of bytes, of all of it or of one slice."""
        if task is None:
            return self.begin, self.nbytes
        nbytes = self.nbytes // self.slices
        return self.begin + task * nbytes, nbytes


def header_bytes(path: Path) -> int:
    """How many bytes stand before the data of a shard: the header and its length.

    Raises:
        ArtifactError: it is no safetensors file.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MOST_JSON_BYTES, path.stat().st_size):
        raise ArtifactError("shard is no safetensors file: no header", where=str(path))
    return 8 + length


def read_header(path: Path) -> dict[str, ArrayInfo]:
    """The arrays of a shard by name.

    Raises:
        ArtifactError: it is no safetensors file, or has gaps.
    """
    start = header_bytes(path)
    with path.open("rb") as file:
        header = parse_json(file.read(start)[8:], str(path))
    try:
        arrays = {name: _info(entry, start) for name, entry in _entries(header)}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError("shard is no safetensors file: odd header", where=str(path)) from error
    position = start
    for info in sorted(arrays.values(), key=lambda info: (info.begin, info.nbytes)):
        if info.begin != position:
            raise ArtifactError("shard has a gap or an overlap between arrays", where=str(path))
        position += info.nbytes
    if position != path.stat().st_size:
        raise ArtifactError("shard ends before or after its last array", where=str(path))
    return arrays


def _entries(header: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(header, dict):
        raise TypeError("header is no object")
    return ((name, entry) for name, entry in header.items() if name != "__metadata__")


def _info(entry: Any, start: int) -> ArrayInfo:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("sizes")
    if end - begin != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
        raise ValueError("offsets")
    return ArrayInfo(entry["dtype"], shape, start + begin, end - begin)


def array_shards(manifest: Manifest) -> list[FileRecord]:
    """The shards that may hold arrays of fixed layout: all but those of single tasks' strings."""
    of_tasks = {
        span.file
        for tensor in manifest.tensors
        for part in tensor.parts.values()
        for span in part.spans or ()
        if part.stacked and span.length
    }
    return [
        file
        for index, file in enumerate(manifest.files)
        if index not in of_tasks and SHARD_PATTERN.fullmatch(file.path)
    ]


def check_streams(path: Path, wanted: Mapping[int | None, int]) -> None:
    """Compare the strings that the manifest says are in a shard with what the shard holds.

    A shard has strings of shared parts, or of one task, and they fill its array `streams`.

    Args:
        path: the shard.
        wanted: from `string_bytes`.

    Raises:
        ArtifactError: the two disagree.
    """
    arrays = read_header(path)
    if not wanted and STREAMS not in arrays:
        return
    streams = arrays.get(STREAMS)
    if streams is None or not wanted:
        have = "has none" if streams is None else "names none of them"
        raise ArtifactError(f"strings are stored where the other side {have}", where=str(path))
    if (streams.dtype, len(streams.shape)) != ("U8", 1):
        raise ArtifactError(f"array {STREAMS!r} is no row of bytes", where=str(path))
    if len(wanted) > 1:
        raise ArtifactError("one shard has strings of several tasks", where=str(path))
    ((task, total),) = wanted.items()
    if total != streams.nbytes:
        raise ArtifactError(
            f"strings have {total} bytes, the shard holds {streams.nbytes}", where=str(path)
        )
    if task is not None and len(arrays) > 1:
        raise ArtifactError("shard of a task's strings holds other arrays", where=str(path))


def string_bytes(manifest: Manifest) -> dict[str, dict[int | None, int]]:
    """Bytes of strings in each shard that has any, by task; None for shared parts."""
    found: dict[str, dict[int | None, int]] = {}
    for tensor in manifest.tensors:
        for part in tensor.parts.values():
            for index, span in enumerate(part.spans or ()):
                if span.length:
                    task = index if part.stacked else None
                    of_file = found.setdefault(manifest.files[span.file].path, {})
                    of_file[task] = of_file.get(task, 0) + span.length
    return found
