"""zstd frames (RFC 8878): one way out, and a way in that never gives more than was asked for."""

from __future__ import annotations

import zstandard

from svd_hybrid.errors import ArtifactError

MAGIC = b"\x28\xb5\x2f\xfd"
"""What every frame begins with; left out where the format says so."""


MOST_RATIO = 2**15
"""A block of at most 2**17 bytes takes at least four."""


def compress(data: bytes, level: int, *, with_size: bool = True) -> bytes:
    """One frame without checksum: digests cover what is stored.

    Args:
        data: what to compress.
        level: 1..22, zstd's.
        with_size: whether the frame says how long `data` is.
    """
    return zstandard.ZstdCompressor(
        level=level, write_content_size=with_size, write_checksum=False
    ).compress(data)


def decompress_exactly(frame: bytes, size: int) -> bytes:
    """What one frame holds, when that is `size` bytes.

    Raises:
        ArtifactError: the frame is damaged, holds another number of bytes, or is followed by more.
    """
    if size > MOST_RATIO * len(frame):
        raise ArtifactError(f"{len(frame)} compressed bytes cannot hold {size} bytes")
    stated = _stated_size(frame)
    if stated not in (None, size):
        raise ArtifactError(f"compressed data states {stated} bytes, the format asks for {size}")
    data = _decompress(frame, size)
    if len(data) != size:
        raise ArtifactError(f"compressed data has {len(data)} bytes, the format asks for {size}")
    return data


def decompress_stated(frame: bytes, most: int) -> bytes:
    """What one frame holds, which must say how much that is.

    Raises:
        ArtifactError: the frame is damaged or followed by more, says nothing, or more than `most`.
    """
    stated = _stated_size(frame)
    if stated is None or stated > min(most, MOST_RATIO * len(frame)):
        raise ArtifactError(f"compressed data must state a size of at most {most} bytes")
    return _decompress(frame, stated)


def _stated_size(frame: bytes) -> int | None:
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"compressed data is damaged: {error}") from error
    return None if size < 0 else size


def _decompress(frame: bytes, size: int) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=max(size, 1), allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ArtifactError(f"compressed data is damaged: {error}") from error
