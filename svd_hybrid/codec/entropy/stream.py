"""The byte string of a slice around its rANS stream: head, lane states, words, raw bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import CLASSES
from svd_hybrid.codec.entropy.bitstream import BitReader, pack, to_bits
from svd_hybrid.codec.entropy.decoders import LOWEST, LaneDecoder, SingleDecoder
from svd_hybrid.codec.entropy.encoders import LaneEncoder, encode_single
from svd_hybrid.codec.entropy.numbers import Phases
from svd_hybrid.errors import ArtifactError

# byte 0 of a slice
LANES = 0x0F  # 0: one lane, no raw bits; 1: one lane, raw bits; 7 … 12: 2**k lanes
STATE_BYTES = 0x30  # one lane: bytes of its state, less one
HAS_COLUMNS = 0x40
HAS_SKIPPED = 0x80
# byte 1
FIRST_CLASS = 0x3F
HAS_ROWS = 0x40

LEAST_LANES_LOG = 7  # below it a loop over single symbols is as fast and has no lanes to pay
MOST_LANES_LOG = 12
LANE_BYTES = 1.4  # what a lane costs
LANE_COST = LANE_BYTES / 0.005  # lanes may cost 0.5 % of a slice
HEAD_BYTES = 4  # of most heads, with what a state is rounded up by


@dataclass(frozen=True, slots=True)
class Head:
    """What a decoder needs before the first symbol.

    first: class of the first row that is not zero; row_law, column_law: laws of `lines`, None for
    a single row or no column offsets; skipped: zero rows at the end.
    """

    first: int
    row_law: int | None
    column_law: int | None
    skipped: int


def write_number(value: int) -> bytes:
    """LEB128: seven bits a byte, lowest first, bit 7 set on all but the last.

    >>> write_number(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@dataclass(slots=True)
class Cursor:
    """A place in a byte string, moving forward."""

    data: bytes
    at: int = 0

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        if self.at + count > len(self.data):
            raise ArtifactError("an entropy-coded slice ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        """The next LEB128 number, of at most five bytes."""
        value = 0
        for place in range(5):
            byte = self.bytes(1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value
        raise ArtifactError("a number of an entropy-coded slice is too long")


def stream_bits(phases: Phases) -> float:
    """What the symbols cost."""
    bits = 0.0
    for source, symbols in phases:
        counts = np.bincount(symbols, minlength=len(source.bits))
        seen = counts > 0
        bits += float(counts[seen] @ source.bits[seen])
    return bits


def lanes_log(bits: float) -> int:
    """log2 of the lanes worth their bytes in a stream of so many bits; 0 for a short one."""
    log = int(np.log2(max(1.0, bits / 8 / LANE_COST)))
    return min(log, MOST_LANES_LOG) if log >= LEAST_LANES_LOG else 0


def stream_size(phases: Phases) -> float:
    """Bytes that the symbols will take with head and lanes, about."""
    bits = stream_bits(phases)
    log = lanes_log(bits)
    return bits / 8 + HEAD_BYTES + (LANE_BYTES * (1 << log) if log else 0)


def write_stream(head: Head, phases: Phases, raw: bytes) -> bytes:
    """All bytes of a slice."""
    log = lanes_log(stream_bits(phases))
    events = [event for source, symbols in phases for event in source.events(symbols, 1 << log)]
    if log:
        encoder = LaneEncoder(1 << log)
        for table, indices in reversed(events):
            encoder.put(table, indices)
        states, words, steps = encoder.finish()
        code = log
        front = write_number(steps)
        extra = np.frexp(states.astype(np.float64))[1].astype(np.int64) - 17
        state = pack(
            np.concatenate([to_bits(extra, 4), to_bits(states - (LOWEST << extra), 16 + extra)])
        )
    else:
        single, words = encode_single(events)
        size = max(1, (single.bit_length() + 7) // 8)
        code = (1 if raw else 0) | (size - 1) << 4
        front = write_number(len(words)) if raw else b""
        state = single.to_bytes(size, "little")
    code |= (HAS_COLUMNS if head.column_law is not None else 0) | (
        HAS_SKIPPED if head.skipped else 0
    )
    out = bytearray([code, head.first | (HAS_ROWS if head.row_law is not None else 0)])
    if head.row_law is not None:
        out.append(head.row_law)
    if head.column_law is not None:
        out.append(head.column_law)
    if head.skipped:
        out += write_number(head.skipped)
    return bytes(out) + front + state + words.astype("<u2").tobytes() + raw


@dataclass(slots=True)
class Stream:
    """An opened slice: its head, the coder to take phases from, and what follows the words."""

    head: Head
    coder: SingleDecoder | LaneDecoder
    rest: bytes

    def raw(self) -> bytes:
        """The raw bits, once every phase is taken; checks how the stream ended."""
        used = self.coder.finish()
        return self.rest[2 * used :]


def open_stream(data: bytes, rows: int) -> Stream:
    """Read everything before the first symbol.

    Raises:
        ArtifactError: too short, or a field out of range.
    """
    cursor = Cursor(data)
    code, second = cursor.bytes(2)
    first = second & FIRST_CLASS
    row_law = cursor.bytes(1)[0] if second & HAS_ROWS else None
    column_law = cursor.bytes(1)[0] if code & HAS_COLUMNS else None
    skipped = cursor.number() if code & HAS_SKIPPED else 0
    if not 0 < first < CLASSES or second > 0x7F or skipped >= rows:
        raise ArtifactError("the head of an entropy-coded slice is damaged")
    if row_law is None and rows - skipped != 1:
        raise ArtifactError("an entropy-coded slice has another number of rows")
    head = Head(first, row_law, column_law, skipped)
    log = code & LANES
    if log >= 2:
        return Stream(head, *_open_lanes(cursor, log, code))
    count = cursor.number() if log else None
    state = int.from_bytes(cursor.bytes(((code & STATE_BYTES) >> 4) + 1), "little")
    rest = data[cursor.at :]
    if count is None:
        if len(rest) % 2:
            raise ArtifactError("an entropy-coded slice ends within a word")
        count = len(rest) // 2
    if 2 * count > len(rest):
        raise ArtifactError("an entropy-coded slice ends too early")
    return Stream(head, SingleDecoder(state, _words(rest[: 2 * count])), rest)


def _open_lanes(cursor: Cursor, log: int, code: int) -> tuple[LaneDecoder, bytes]:
    if not LEAST_LANES_LOG <= log <= MOST_LANES_LOG or code & STATE_BYTES:
        raise ArtifactError("an entropy-coded slice has an unknown layout")
    lanes = 1 << log
    steps = cursor.number()
    extra = BitReader(cursor.bytes(lanes // 2)).uniform(lanes, 4)
    bits = int(extra.sum()) + 16 * lanes
    reader = BitReader(cursor.bytes((bits + 7) // 8))
    states = reader.fields(16 + extra) + (LOWEST << extra)
    reader.close()
    rest = cursor.data[cursor.at :]
    return LaneDecoder(states, _words(rest), steps), rest


def _words(data: bytes) -> NDArray[np.uint16]:
    return np.frombuffer(data, "<u2", count=len(data) // 2).astype(np.uint16)
