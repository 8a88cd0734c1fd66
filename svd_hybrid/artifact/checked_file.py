"""A shard of which no byte is used that was not compared with the manifest."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.blocks import block_digest
from svd_hybrid.artifact.files import COPY_AGAIN, check_file, check_size, readable
from svd_hybrid.artifact.records import FileRecord
from svd_hybrid.artifact.shards import ArrayInfo, header_bytes, read_header
from svd_hybrid.errors import ArtifactError


class CheckedFile:
    """Compares a shard with the manifest as far as it is read.

    One with digests of its blocks is compared block by block, any other as a whole, once.

    Args:
        folder: the artifact.
        record: what the manifest says of the shard.
    """

    def __init__(self, folder: Path, record: FileRecord) -> None:
        self._folder = folder
        self._record = record
        self._path: Path | None = None
        self._checked: set[int] = set()

    def need(self, begin: int, nbytes: int) -> Path:
        """The path, once these bytes of the file are what was written.

        Raises:
            ArtifactError: the file is missing, of another size, or its content is another there.
            StorageError: it may not be read.
        """
        if self._path is None:
            check = check_size if self._record.blocks else check_file
            self._path = check(self._folder, self._record)
        if self._record.blocks:
            self._check_blocks(self._path, begin, min(begin + nbytes, self._record.bytes))
        return self._path

    @cached_property
    def arrays(self) -> dict[str, ArrayInfo]:
        """What the header says, once it is what was written.

        Raises:
            ArtifactError: as `need`; or it is no safetensors file.
        """
        prefix = header_bytes(self.need(0, 8))
        return read_header(self.need(0, prefix))

    def _check_blocks(self, path: Path, begin: int, end: int) -> None:
        size = layout.BLOCK_BYTES
        wanted = set(range(begin // size, -(-end // size))) - self._checked
        if not wanted:
            return
        with readable(path), path.open("rb") as file:
            for block in sorted(wanted):
                file.seek(block * size)
                self._check_block(path, block, block_digest(file.read(size)))
                self._checked.add(block)

    def _check_block(self, path: Path, block: int, found: str) -> None:
        known = self._record.blocks[block * layout.BLOCK_DIGITS :][: layout.BLOCK_DIGITS]
        if found != known:
            first = block * layout.BLOCK_BYTES
            last = min(first + layout.BLOCK_BYTES, self._record.bytes) - 1
            raise ArtifactError(
                f"file content is not what was written, in bytes {first} to {last} "
                f"(sha256 {found[:12]}…, the manifest has {known[:12]}…)",
                where=str(path),
                fix=COPY_AGAIN,
            )
