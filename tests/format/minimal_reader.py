"""A reader of artifact format version 1, written from FORMAT.md alone with NumPy and zstandard.

It imports nothing of svd_hybrid and is short rather than fast. The test suite compares every bit
that svd_hybrid rebuilds with what this reader makes of the same artifact.

    python minimal_reader.py ARTIFACT BASE.safetensors [TASK]      # prints one digest per tensor
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

Array = np.ndarray[Any, np.dtype[Any]]
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
SIZES |= {"BOOL": 1}
STORED = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
PATH = re.compile(r"(?:basis|coeffs|masks)/[0-9a-f]{64}\.safetensors")
DOCUMENTS = {"config.json", "weights.json", "clusters.json", "README.md"}
DOCUMENTS |= {"diagnostics.json", "diagnostics-tensors.json.zst"}
INDEX = "index.json.zst"


class DamagedError(Exception):
    """Malformed, inconsistent, incomplete or altered."""


class WrongBaseError(Exception):
    """The base is not the one the artifact was made from."""


class UnknownError(Exception):
    """Needs something this reader lacks."""


class UnsafeError(Exception):
    """Names a path outside the format."""


def require(truth: bool, what: str, kind: type[Exception] = DamagedError) -> None:
    if not truth:
        raise kind(what)


# --- section 3: JSON -----------------------------------------------------------------------------


def parse_json(data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), "a key appears twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise DamagedError(name)

    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except ValueError as error:
        raise DamagedError(str(error)) from error


# --- section 7: shards, and the base, which is a safetensors file too -----------------------------


@dataclass
class Entry:
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def seal(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode() + b"\n").hexdigest()


def read_safetensors(data: bytes) -> dict[str, Entry]:
    require(len(data) >= 8, "file is too short")
    start = 8 + int.from_bytes(data[:8], "little")
    require(start <= len(data), "header is cut short")
    header = parse_json(data[8:start])
    entries, spans = {}, []
    for name, record in header.items():
        if name == "__metadata__":
            continue
        begin, end = record["data_offsets"]
        size = math.prod(record["shape"]) * SIZES[record["dtype"]]
        require(0 <= begin <= end and end - begin == size, f"offsets of {name}")
        shape = tuple(record["shape"])
        entries[name] = Entry(record["dtype"], shape, data[start + begin : start + end])
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        require(begin == position, "gap or overlap")
        position = end
    require(position == len(data) - start, "data region is longer than the arrays")
    return entries


# --- section 5: fingerprint ----------------------------------------------------------------------


def fingerprint(entry: Entry) -> str:
    line = f"{entry.dtype} {','.join(str(size) for size in entry.shape)}\n"
    return hashlib.sha256(line.encode("ascii") + entry.data).hexdigest()


# --- section 8: codecs ---------------------------------------------------------------------------

Arrays = Callable[[str], Array]
"""Array name → its slice of one task (or of the shared part), without the axis of slices."""


def unpack(packed: Array, bits: int, count: int) -> Array:
    """Codes of packed rows: (…, bytes) uint8 → (…, count) integers."""
    stream = np.unpackbits(packed, axis=-1, bitorder="little")[..., : count * bits]
    stream = stream.reshape(*packed.shape[:-1], count, bits).astype(np.int64)
    return (stream << np.arange(bits)).sum(axis=-1)


def expect(array: Array, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> Array:
    require(array.dtype in [np.dtype(STORED[d]) for d in dtypes], "array dtype")
    require(array.shape == shape, f"array shape {array.shape}, expected {shape}")
    return array


def scale_of(exponent: Array) -> float:
    e = int(expect(exponent, ("I16",), ()))
    require(-1022 <= e <= 1022, "exponent out of range")
    return math.ldexp(1.0, e)


def to_float32(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def decode(codec: Mapping[str, Any], arrays: Arrays, rows: int, columns: int) -> Array:
    """One slice of a part: float32, or bool."""
    name = codec["name"]
    if name == "raw":
        return expect(arrays("values"), ("F32",), (rows, columns))
    if name == "half":
        values = expect(arrays("values"), ("F16",), (rows, columns)).astype(np.float64)
        return to_float32(values * scale_of(arrays("exponent")))
    if name == "bitmask":
        packed = expect(arrays("bits"), ("U8",), (rows, -(-columns // 8)))
        return unpack(packed, 1, columns).astype(bool)
    if name == "sign":
        lead, length = (rows, columns) if codec["scale"] == "row" else (1, rows * columns)
        negative = unpack(expect(arrays("bits"), ("U8",), (lead, -(-length // 8))), 1, length)
        scale = expect(arrays("scale"), ("F16",), (lead,)).astype(np.float64)
        magnitude = to_float32(scale * scale_of(arrays("exponent")))[:, None]
        return np.where(negative == 1, -magnitude, magnitude).reshape(rows, columns)
    bits, group = codec["bits"], codec["group_size"]
    lead, length = ((rows,), columns) if group else ((), rows * columns)
    size = group or length
    total = None
    for stage in range(codec["stages"]):
        groups = (*lead, -(-length // size))
        codes = arrays(f"stage{stage}.codes")
        codes = unpack(expect(codes, ("U8",), (*lead, -(-length * bits // 8))), bits, length)
        step = expect(arrays(f"stage{stage}.step"), (codec["step"],), groups).astype(np.float64)
        zero = expect(arrays(f"stage{stage}.zero"), ("I8", "I16", "I32"), groups).astype(np.int64)
        which = np.arange(length) // size
        term = (codes - zero[..., which]).astype(np.float64) * step[..., which]
        term = term * scale_of(arrays(f"stage{stage}.exponent"))
        total = term if total is None else total + term
    assert total is not None
    return to_float32(total).reshape(rows, columns)


KINDS = {"bitmask": "?", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
KINDS |= dict.fromkeys(("raw", "half", "residual-affine", "F32"), "<f4")
KINDS |= dict.fromkeys(("sign", "sparse-sign", "zstd-affine", "integers", "trellis"), "<f4")
"""What a codec, or a kind of number, gives."""


def unzstd(frame: bytes, size: int | None) -> bytes:
    """One zstd frame of `size` bytes, or of those it states."""
    try:
        stated = zstandard.frame_content_size(frame)
        require(size is not None or 0 <= stated <= 2**28, "size of the content")
        most = stated if size is None else size
        data = zstandard.ZstdDecompressor().decompress(frame, most, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedError(str(error)) from error
    require(len(data) == most, "size of the content")
    return data


def decode_string(codec: Mapping[str, Any], string: bytes, shape: tuple[int, int]) -> Array:
    """One slice of a part in strings."""
    if codec["name"] == "sparse-sign":
        return sparse_signs(string, shape)
    if codec["name"] == "zstd-affine":
        return zstd_affine(codec["bits"], codec["group_size"], string, shape)
    if codec["name"] in ("integers", "trellis"):
        return integers(codec["rows"], string, shape, trellis=codec["name"] == "trellis")
    dtype = np.dtype(KINDS[codec["number"]])
    count, bits = shape[0] * shape[1], dtype.itemsize * 8
    planes = np.frombuffer(unzstd(b"\x28\xb5\x2f\xfd" + string, count * bits // 8), "u1")
    values = np.zeros(count, f"<u{bits // 8}")
    for plane in planes.reshape(bits // 8, count):
        values = values * values.dtype.type(256 % 2**bits) + plane
    last = values & 1
    values = values >> 1 | last << 31 if codec["number"] == "F32" else values >> 1 ^ -last
    return values.view(dtype).reshape(shape)


def sparse_signs(string: bytes, shape: tuple[int, int]) -> Array:
    require(len(string) >= 9, "no header")
    scale, count, low_bits = struct.unpack("<fIB", string[:9])
    require(math.isfinite(scale) and 0 < count <= math.prod(shape) and low_bits <= 32, "header")
    places = [9, 9 + (count + 7) // 8]
    places.append(places[1] + (count * low_bits + 7) // 8)
    require(places[2] < len(string), "the string ends early")
    octets = np.frombuffer(string, "u1")
    signs = unpack(octets[places[0] : places[1]], 1, count)
    low = unpack(octets[places[1] : places[2]], low_bits, count) if low_bits else signs * 0
    values, position, kept, zeros = np.zeros(math.prod(shape), np.float32), -1, 0, 0
    for bit in np.unpackbits(octets[places[2] :], bitorder="little"):
        if bit == 0:
            zeros += 1
            continue
        require(kept < count, "too many ones")
        position += (zeros << low_bits) + int(low[kept]) + 1
        require(position < values.size, "position outside the slice")
        values[position] = -scale if signs[kept] else scale
        kept, zeros = kept + 1, 0
    require(kept == count and zeros < 8, "unary parts")
    return values.reshape(shape)


def zstd_affine(bits: int, group: int, string: bytes, shape: tuple[int, int]) -> Array:
    require(len(string) >= 2, "no exponent")
    scale = scale_of(np.array(struct.unpack("<h", string[:2])[0], "<i2"))
    size = math.prod(shape)
    groups, per_byte = -(-size // group), 8 // bits
    packed = -(-groups * group // per_byte)
    planes = unzstd(b"\x28\xb5\x2f\xfd" + string[2:], 2 * groups + packed)
    high, low, codes = (
        np.frombuffer(planes[a:b], "u1").astype(np.int64)
        for a, b in ((0, groups), (groups, 2 * groups), (2 * groups, None))
    )
    steps = (high * 256 + low).astype("<u2").view("<f2").astype(np.float64)
    require(bool(np.isfinite(steps).all()), "a step is not finite")
    digits = codes[:, None] >> (np.arange(per_byte) * bits) & (2**bits - 1)
    centred = digits.reshape(-1)[:size] - (2 ** (bits - 1) - 1)
    return to_float32(centred * steps[np.arange(size) // group] * scale).reshape(shape)


# --- section 8.9: integers, and the entropy-coded matrix they are ---------------------------------


def integers(rows: str, string: bytes, shape: tuple[int, int], *, trellis: bool = False) -> Array:
    scale = 1.0
    if rows != "unit":
        require(len(string) > 2, "no integers")
        word = struct.unpack("<H", string[:2])[0] << 16
        scale = float(np.uint32(word).view(np.float32))
        require(0 < scale < math.inf, "scale")
        string = string[2:]
    numbers = entropy_coded(string, shape, trellis)
    if rows == "unit":
        values = np.zeros(shape)
        for row, out in zip(numbers.tolist(), values, strict=True):
            square = sum(k * k for k in row)
            require(square < 2**62, "a row is too large")
            out[:] = np.array(row, np.float64) * (1.0 / math.sqrt(float(square) or 1.0))
    elif rows == "scaled":
        values = numbers * scale
    else:
        values = rotated_back(numbers, scale)
    values = to_float32(values)
    require(bool(np.isfinite(values).all()), "a value leaves float32")
    return values


def rotated_back(numbers: Array, scale: float) -> Array:
    columns = numbers.shape[1]
    sizes = [256] * (columns // 256) + [2**b for b in range(7, -1, -1) if columns % 256 >> b & 1]
    values, begin = np.zeros(numbers.shape), 0
    for size in sizes:
        both = np.arange(size)[:, None] & np.arange(size)
        odd = sum(both >> bit & 1 for bit in range(8)) % 2
        sums = numbers[:, begin : begin + size] @ (1 - 2 * odd)
        values[:, begin : begin + size] = sums * (1.0 / math.sqrt(size) * scale)
        begin += size
    digests = [
        hashlib.sha256(b"svdh-rotation" + struct.pack("<Q", block)).digest()
        for block in range(-(-columns // 256))
    ]
    minus = np.unpackbits(np.frombuffer(b"".join(digests), "u1"), bitorder="little")[:columns]
    return np.where(minus == 1, -values, values)


class Bits:
    """A bit string; fields of it, one after the other."""

    def __init__(self, octets: bytes) -> None:
        self.value, self.size, self.at = int.from_bytes(octets, "little"), 8 * len(octets), 0

    def field(self, width: int) -> int:
        self.at += width
        require(self.at <= self.size, "a bit string ends early")
        return self.value >> (self.at - width) & ((1 << width) - 1)

    def close(self) -> None:
        require(self.size - self.at < 8 and not self.value >> self.at, "filling of a bit string")


CLASSES = """1:4:1; 1:4:1; 1:4:1; 1:4:1; 2:4:1; 4:4:1; 8:4:1; 16:4:1; 32:4:1; 64:4:1; 128:4:1
    256:8:1; 488:24:1; 827:250:1; 896 226:420:1; 896 352 150:900:2; 768 448 224 161:1550:3
    576 448 288 176 218:2100:4; 448 384 288 224 160 112 204:2600:5
    320 288 256 224 192 144 112 336:3000:6"""
EXPONENTS = [64, 192, 576, 640, 640, 512, 512, 320, 160, 96, *[16] * 24]
ESCAPE = 31
Phrase = tuple[int, ...]
Slots = list[tuple[Phrase, int, int]]
"""For each slot of a table: phrase, frequency, slot - start."""


def slots(frequencies: list[tuple[Phrase, int]]) -> Slots:
    """Of phrases and their frequencies, in the order of the slots."""
    return [(phrase, f, offset) for phrase, f in frequencies for offset in range(f)]


@dataclass(frozen=True)
class Source:
    """A single table, and a phrase table with the length of its longest phrase, if there is one."""

    single: Slots
    phrases: Slots = field(default_factory=list)
    longest: int = 0


def single(f: list[int]) -> Slots:
    return slots([((symbol,), frequency) for symbol, frequency in enumerate(f)])


def with_phrases(f: list[int]) -> Source:
    found: list[tuple[int, Phrase, bool]] = [(1 << 40, (), False)]
    while len(found) - 1 + len(f) <= 256 and not all(closed for *_, closed in found):
        at = max((w, -n) for n, (w, _, closed) in enumerate(found) if not closed)[1]
        w, phrase, _ = found[-at]
        if len(phrase) == 64 or w * min(f) // 4096 < 1 << 27:
            found[-at] = (w, phrase, True)
        else:
            del found[-at]
            found += [(w * each // 4096, (*phrase, s), False) for s, each in enumerate(f)]
    found.sort(key=lambda entry: -entry[0])
    frequencies, total, before = [], 0, 0
    for w, *_ in found:
        total += w
        frequencies.append(max(1, (total + (1 << 27)) // (1 << 28) - before))
        before = (total + (1 << 27)) // (1 << 28)
    frequencies[0] += 4096 - sum(frequencies)
    phrases = [phrase for _, phrase, _ in found]
    table = slots(list(zip(phrases, frequencies, strict=True)))
    return Source(single(f), table, max(map(len, phrases)))


@cache
def class_sources(k: int) -> tuple[int, Source, Source, Source]:
    """Reach, clamped, above, excess."""
    rows = CLASSES.replace("\n", ";").split(";")
    f, g, d = rows[k - 1 if k <= 20 else 18 + (k - 21) % 2].split(":")
    magnitudes = [int(each) for each in f.split() for _ in range(2)]
    clamped = with_phrases([4096 - sum(magnitudes), *magnitudes])
    above = with_phrases([4096 - int(g), int(g)])
    return len(magnitudes) // 2, clamped, above, excess_source(int(d))


def excess_source(d: int) -> Source:
    u, excess = 4033, []
    for _ in range(31):
        excess.append(1 + u - u * d // 8)
        u = u * d // 8
    return Source(single([*excess, 32 + u]))


def law_source(b: int) -> Source:
    f = [1] * 86
    f[0] = (0, 64, 512, 1536, 2560, 3328, 3712, 3904)[b % 8]
    left = 4096 - sum(f)
    moving = left - left * (4, 12, 20, 28, 36, 44, 52, 60)[b // 8 % 8] // 64
    down = moving * (13 if b & 64 else 8) // 16
    for side, mass in ((-1, down), (1, moving - down)):
        for far in range(1, 43):
            part = mass * (3 if b & 128 else 7) // 8
            f[43 + side * far] += part
            mass -= part
    f[43] += 4096 - sum(f)
    return Source(single(f))


@dataclass
class Stream:
    """An entropy-coded matrix from its first byte to its last, and the state of every lane."""

    data: bytes
    at: int = 0
    lanes: list[int] = field(default_factory=list)
    steps: int = 0
    words: int = 0

    def octets(self, count: int) -> bytes:
        require(self.at + count <= len(self.data), "a string ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def leb128(self) -> int:
        value = 0
        for place in range(5):
            octet = self.octets(1)[0]
            value |= (octet & 127) << 7 * place
            if octet < 128:
                return value
        raise DamagedError("a number is too long")

    def word(self) -> int:
        return int.from_bytes(self.octets(2), "little")

    def open_lanes(self, log: int) -> None:
        require(7 <= log <= 12, "number of lanes")
        self.steps = self.leb128()
        count = 1 << log
        extra = Bits(self.octets(count // 2))
        widths = [16 + extra.field(4) for _ in range(count)]
        low = Bits(self.octets((sum(widths) + 7) // 8))
        self.lanes = [(1 << width) + low.field(width) for width in widths]
        low.close()

    def phase(self, source: Source, count: int) -> list[int]:
        symbols: list[int] = []
        while source.phrases and count - len(symbols) >= len(self.lanes) * source.longest:
            symbols += self.step(source.phrases, len(self.lanes))
        while count > len(symbols):
            symbols += self.step(source.single, min(len(self.lanes), count - len(symbols)))
        return symbols

    def step(self, table: Slots | list[Slots], events: int) -> list[int]:
        """One event for each lane, under one table or each under its own."""
        symbols: list[int] = []
        several = len(self.lanes) > 1
        if several and self.steps == 0:
            self.lower()
        for lane in range(events):
            x = self.lanes[lane]
            own = table[lane] if isinstance(table[0], list) else table
            phrase, f, offset = own[x % 4096]
            symbols += phrase
            x = f * (x // 4096) + offset
            if x < 65536 and (self.steps if several else self.words) > 0:
                require(several or x > 0, "a state is 0 too early")
                x = 65536 * x + self.word()
                self.words -= 1
            self.lanes[lane] = x
        self.steps -= 1
        return symbols

    def round(self, tables: list[Slots]) -> list[int]:
        """One symbol for each table; the first is lane 0's."""
        symbols: list[int] = []
        while len(symbols) < len(tables):
            now = tables[len(symbols) : len(symbols) + len(self.lanes)]
            symbols += self.step(now, len(now))
        return symbols

    def lower(self) -> None:
        self.lanes = [x - 65536 for x in self.lanes]
        require(min(self.lanes) >= 0, "a state is too small")

    def finish(self) -> Bits:
        """The raw bits."""
        if len(self.lanes) > 1:
            if self.steps == 0:
                self.lower()
            require(self.steps <= 0, "steps")
        else:
            require(self.words == 0, "words are left")
        require(not any(self.lanes), "a state is not 0")
        return Bits(self.data[self.at :])


def lines(symbols: list[int], last: int, least: int, most: int) -> list[int | None]:
    """Classes of rows or offsets of columns; None for zeros."""
    found: list[int | None] = []
    for symbol in symbols:
        last += symbol - 43 if symbol else 0
        require(not symbol or least <= last <= most, "a class or an offset is out of range")
        found.append(last if symbol else None)
    return found


def entropy_coded(data: bytes, shape: tuple[int, int], trellis: bool = False) -> Array:
    """The matrix, 64-bit integers that fit 32 bits."""
    rows, columns = shape
    stream = Stream(data)
    code, first = stream.octets(2)
    row_law = stream.octets(1)[0] if first & 64 else None
    column_law = stream.octets(1)[0] if code & 64 else None
    skipped = stream.leb128() if code & 128 else 0
    require(0 < first % 64 <= 43 and first < 128 and skipped < rows, "head of a string")
    used, first, log = rows - skipped, first % 64, code % 16
    require(row_law is not None or used == 1, "another number of rows")
    if log > 1:
        require(not code & 48, "head of a string")
        stream.open_lanes(log)
    else:
        words = stream.leb128() if log else None
        stream.lanes = [int.from_bytes(stream.octets((code >> 4 & 3) + 1), "little")]
        left = len(data) - stream.at
        require(words is not None or left % 2 == 0, "half a word")
        stream.words = left // 2 if words is None else words
        require(2 * stream.words <= left, "a string ends early")
    a: list[int | None] = [first]
    if row_law is not None:
        a = lines(stream.phase(law_source(row_law), used), first, 1, 43)
    offsets: list[int | None] = [0] * columns
    if column_law is not None:
        offsets = lines(stream.phase(law_source(column_law), columns), 0, -20, 20)
    of_class: dict[int, list[tuple[int, int]]] = {}
    for i, row in enumerate(a):
        for j, column in enumerate(offsets):
            if row is not None and column is not None:
                of_class.setdefault(min(max(row + column, 1), 43), []).append((i, j))
    numbers: list[tuple[int, tuple[int, int], int]] = []
    escapes: list[int] = []
    odd: list[int] = []
    for k, places in sorted(of_class.items()):
        if trellis:
            reach, tables, above, excess = trellis_sources(k)
            symbols, quantisers = along_paths(stream, tables, len(places))
            odd += quantisers
        else:
            reach, clamped, above, excess = class_sources(k)
            symbols = stream.phase(clamped, len(places))
        values = [(-1) ** s * ((s + 1) // 2) for s in symbols]
        ends = [n for n, v in enumerate(values) if abs(v) == reach]
        further = [n for n, more in zip(ends, stream.phase(above, len(ends)), strict=True) if more]
        for n, e in zip(further, stream.phase(excess, len(further)), strict=True):
            if e == ESCAPE:
                escapes.append(len(numbers) + n)
            values[n] += (1 + e) * (1 if values[n] > 0 else -1)
        numbers += [(k, place, v) for place, v in zip(places, values, strict=True)]
    exponents = stream.phase(Source(single(EXPONENTS)), len(escapes))
    raw = stream.finish()
    low = [0 if trellis else raw.field(max(0, (k - 19) // 2)) for k, *_ in numbers]
    for n, x in zip(escapes, exponents, strict=True):
        k, place, v = numbers[n]
        w = (1 << x) + raw.field(x)
        numbers[n] = k, place, v + (w - 1) * (1 if v > 0 else -1)
    raw.close()
    matrix = np.zeros(shape, np.int64)
    for (_, place, k), quantiser in zip(numbers if trellis else [], odd, strict=True):
        matrix[place] = 2 * k - quantiser * ((k > 0) - (k < 0))
    for (k, place, v), bits in zip([] if trellis else numbers, low, strict=not trellis):
        shift = max(0, (k - 19) // 2)
        matrix[place] = (v << shift) + bits - (1 << shift) // 2
    require(bool((matrix == matrix.astype(np.int32)).all()), "an integer beyond 32 bits")
    return matrix


# --- section 8.10: trellis ------------------------------------------------------------------------

TRELLIS_CLASSES = """1 1:41:1
256 16
1 1:41:1
1479 1
2 1:4:1
1530 16
23 1:89:1
1672 48
223 6 1:247:1
1777 101 3
674 70 9:634:1
1712 224 30
895 202 37 8:717:1
1431 458 95 21
866 376 130 43 12 6:1268:3
1061 602 243 77 26 11
746 440 232 109 47 23 10 8:1856:4
780 590 351 167 75 35 15 11
574 429 293 187 113 66 38 21 12 6 7:2310:4
560 500 373 245 151 87 52 29 15 8 13
426 355 287 218 162 119 83 56 39 26 17 35:2736:5
393 385 330 269 194 145 100 70 52 32 23 45
312 277 253 211 181 146 120 93 69 54 44 35 24 20 53:3098:6
283 285 263 235 204 170 134 105 88 66 51 38 30 23 66"""
"""Classes 9 … 20: f0 : g : d, and f1 in a line of its own."""
AFTER = ((0, 5, 1, 6, 2, 4, 3, 7), (2, 7, 3, 4, 0, 6, 1, 5))


@cache
def trellis_sources(k: int) -> tuple[int, list[Slots], Source, Source]:
    """Reach, clamped of either quantiser, above, excess."""
    row = 2 * (min(max(k, 9), 20) - 9)
    one, two = TRELLIS_CLASSES.splitlines()[row : row + 2]
    f0, g, d = one.split(":")
    clamped = []
    for f in (f0, two):
        magnitudes = [int(each) for each in f.split() for _ in range(2)]
        clamped.append(single([4096 - sum(magnitudes), *magnitudes]))
    return (
        len(two.split()),
        clamped,
        with_phrases([4096 - int(g), int(g)]),
        excess_source(int(d)),
    )


def along_paths(stream: Stream, clamped: list[Slots], count: int) -> tuple[list[int], list[int]]:
    """Clamped symbols of a class, and the quantiser of each number."""
    paths = -(-count // 128)
    symbols: list[int] = []
    quantisers: list[int] = []
    states = [0] * paths
    while len(symbols) < count:
        states = states[: count - len(symbols)]
        quantisers += [s % 2 for s in states]
        found = stream.round([clamped[s % 2] for s in states])
        symbols += found
        states = [AFTER[(y + 1) // 2 % 2][s] for s, y in zip(states, found, strict=True)]
    return symbols, quantisers


PARAMETERS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "raw": {},
    "half": {},
    "bitmask": {},
    "residual-affine": {
        "bits": lambda x: type(x) is int and 1 <= x <= 8,
        "stages": lambda x: type(x) is int and 1 <= x <= 16,
        "group_size": lambda x: type(x) is int and 0 <= x <= 1048576,
        "step": lambda x: x in ("F16", "F32"),
    },
    "zstd-planes": {"number": lambda x: x in ("F32", "I16", "I32", "I64")},
    "sign": {"scale": lambda x: x in ("row", "slice")},
    "sparse-sign": {},
    "zstd-affine": {
        "bits": lambda x: type(x) is int and 2 <= x <= 8,
        "group_size": lambda x: type(x) is int and 1 <= x <= 1048576,
    },
    "integers": {"rows": lambda x: x in ("scaled", "rotated", "unit")},
    "trellis": {"rows": lambda x: x in ("scaled", "rotated")},
}


def check_codec(codec: Mapping[str, Any]) -> None:
    known = codec.get("name") in PARAMETERS and codec.get("version") == 1
    require(known, f"codec {codec.get('name')} version {codec.get('version')}", UnknownError)
    rules = PARAMETERS[codec["name"]]
    require(set(codec) == {"name", "version", *rules}, "codec parameters")
    require(all(rule(codec[key]) for key, rule in rules.items()), "codec parameters")


# --- section 9: expressions ----------------------------------------------------------------------


class Parts:
    """The parts of one tensor, and the selection they are read for."""

    def __init__(
        self,
        records: Mapping[str, Any],
        read: Callable[[str, int], Array],
        weights: Mapping[int, float],
        shared: float | None = None,
        base: Entry | None = None,
    ) -> None:
        self.records = records
        self.read = read
        self.base = base
        self.weights = weights
        self.total = math.fsum(weights.values()) if shared is None else shared

    def selecting(self, weights: Mapping[int, float]) -> Parts:
        return Parts(self.records, self.read, weights, base=self.base)

    def stacked(self, part: str) -> bool:
        require(part in self.records, f"part {part} is not stored")
        return bool(self.records[part]["stacked"])

    def record(self, part: str, shape: tuple[int, int]) -> Any:
        require(part in self.records, f"part {part} is not stored")
        record = self.records[part]
        require((record["rows"], record["columns"]) == shape, f"part {part} does not fit")
        return record

    def leaf(self, part: str, shape: tuple[int, int]) -> tuple[Array, bool]:
        """Float32 numbers, and whether the part is stacked."""
        stacked = self.record(part, shape)["stacked"]
        if not stacked:
            values = self.read(part, 0)
            require(values.dtype == np.float32, f"part {part} is no part of numbers")
            return values, False
        total = None
        for task in sorted(self.weights):
            values = self.read(part, task)
            require(values.dtype == np.float32, f"part {part} is no part of numbers")
            term = values.astype(np.float64) * self.weights[task]
            total = term if total is None else total + term
        require(total is not None, f"part {part} is stacked, but no task is selected")
        assert total is not None
        mixed = to_float32(total)
        require(bool(np.isfinite(mixed).all()), f"part {part} leaves float32")
        return mixed, True

    def mask(self, part: str, shape: tuple[int, int], inside: bool) -> Array:
        stacked = self.record(part, shape)["stacked"]
        values = self.read(part, next(iter(self.weights)) if stacked else 0)
        require(values.dtype == bool, f"part {part} is no mask")
        return values == inside

    def exact(self, part: str, dtype: Any, task: int, shape: tuple[int, int]) -> Entry:
        """The tensor of one task."""
        self.record(part, shape)
        require(dtype in PATTERNS, "dtype of an exact task")
        base = self.base
        require(base is not None, "no base")
        assert base is not None
        require(matrix_view(base.shape) == shape, "exact is evaluated for the whole tensor")
        integers = self.read(part, task)
        require(integers.dtype.str == f"<i{SIZES[dtype]}", f"part {part} holds other integers")
        return Entry(dtype, base.shape, restore(integers.reshape(-1), base, dtype))


KEYS = {
    "dense": {"part"},
    "exact": {"part", "dtype"},
    "low-rank": {"left", "right", "limbs"},
    "tucker": {"left", "core", "right", "limbs"},
    "masked": {"mask", "inside", "inner"},
    "scattered": {"mask", "inside", "inner"},
    "flat": {"inner"},
    "scale": {"factor", "inner"},
    "weighted": {"weights", "inner"},
    "sum": {"terms"},
}


def evaluate(node: Any, parts: Parts, shape: tuple[int, int], depth: int = 0) -> Array:
    """The delta, float64."""
    require(isinstance(node, dict) and isinstance(node.get("op"), str), "no operation")
    op = node["op"]
    require(op in KEYS, f"operation {op}", UnknownError)
    require(set(node) == {"op", *KEYS[op]}, f"keys of {op}")
    require(depth <= 16, "nested too deep")

    def inner(wanted: tuple[int, int]) -> Array:
        return evaluate(node["inner"], parts, wanted, depth + 1)

    single = list(parts.weights.values()) == [1.0] and parts.total == 1.0
    if task_by_task(node, parts) and not single:
        require(bool(parts.weights), "a value per task, but no task is selected")
        delta = np.zeros(shape)
        for index, task in enumerate(sorted(parts.weights)):
            value = evaluate(node, parts.selecting({task: 1.0}), shape, depth)
            term = value * parts.weights[task]
            delta = term if index == 0 else delta + term
        return delta
    if op == "dense":
        values, stacked = parts.leaf(node["part"], shape)
        wide = values.astype(np.float64)
        return wide if stacked else wide * parts.total
    if op == "exact":
        require(parts.stacked(node["part"]), "an exact part is shared")
        (task,) = parts.weights
        tuned = parts.exact(node["part"], node["dtype"], task, shape)
        assert parts.base is not None
        return (to_float64(tuned) - to_float64(parts.base)).reshape(shape)
    if op == "low-rank":
        require(type(node["limbs"]) is int and node["limbs"] in (1, 2), "limbs")
        require(node["left"] in parts.records, "left is not stored")
        rank = parts.records[node["left"]]["rows"]
        left, left_stacked = parts.leaf(node["left"], (rank, shape[0]))
        right, right_stacked = parts.leaf(node["right"], (rank, shape[1]))
        delta = exact_product(left, right, node["limbs"])
        return delta if left_stacked or right_stacked else delta * parts.total
    if op == "tucker":
        require(type(node["limbs"]) is int and node["limbs"] in (1, 2), "limbs")
        require(node["core"] in parts.records, "core is not stored")
        core = parts.records[node["core"]]
        wanted = ((core["rows"], shape[0]), (core["rows"], core["columns"]))
        left, left_stacked = parts.leaf(node["left"], wanted[0])
        middle, middle_stacked = parts.leaf(node["core"], wanted[1])
        right, right_stacked = parts.leaf(node["right"], (core["columns"], shape[1]))
        product = to_float32(exact_product(middle.T, right, node["limbs"]))
        require(bool(np.isfinite(product).all()), "core · right leaves float32")
        delta = exact_product(left, product, node["limbs"])
        stacked = left_stacked or middle_stacked or right_stacked
        return delta if stacked else delta * parts.total
    if op in ("masked", "scattered"):
        require(type(node["inside"]) is bool, "inside")
        selected = parts.mask(node["mask"], shape, node["inside"])
        delta = np.zeros(shape)
        if op == "masked":
            delta[selected] = inner(shape)[selected]
        else:
            delta[selected] = inner((int(selected.sum()), 1))[:, 0]
        return delta
    if op == "flat":
        return inner((shape[0] * shape[1], 1)).reshape(shape)
    if op == "scale":
        factor = node["factor"]
        require(type(factor) in (int, float) and math.isfinite(factor), "factor")
        return inner(shape) * float(factor)
    if op == "weighted":
        require(isinstance(node["weights"], list), "weights")
        given = [(t, float(w) * parts.total) for t, w in enumerate(node["weights"]) if w != 0]
        if not given:
            return np.zeros(shape)
        return evaluate(node["inner"], parts.selecting(dict(given)), shape, depth + 1)
    require(isinstance(node["terms"], list), "terms")
    delta = np.zeros(shape)
    for index, term in enumerate(node["terms"]):
        value = evaluate(term, parts, shape, depth + 1)
        delta = value if index == 0 else delta + value
    return delta


def task_by_task(node: Mapping[str, Any], parts: Parts) -> bool:
    if node["op"] in ("masked", "scattered"):
        return parts.stacked(node["mask"])
    if node["op"] == "exact":
        return True
    leaves = {"low-rank": ("left", "right"), "tucker": ("left", "core", "right")}
    return sum(parts.stacked(node[key]) for key in leaves.get(node["op"], ())) > 1


def exponents_above(x: Array) -> Array:
    """E of the largest magnitude of each column."""
    return np.frexp(np.abs(x.astype(np.float64)).max(axis=0))[1].astype(np.int64)


def exact_product(left: Array, right: Array, limbs: int) -> Array:
    """Leftᵀ · right; in integers, so that there is nothing to believe about float summation."""
    rank = left.shape[0]
    bits = min(24, (53 - (rank - 1).bit_length()) // 2)
    e, f = exponents_above(left), exponents_above(right)

    def grids(x: Array, exponents: Array) -> tuple[Array, Array]:
        scaled = np.ldexp(x.astype(np.float64), bits - exponents)
        first = np.rint(scaled)
        second = np.rint((scaled - first) * 2.0**bits)
        return first.astype(np.int64), second.astype(np.int64)

    (a0, a1), (b0, b1) = grids(left, e), grids(right, f)
    product = (a0.T @ b0).astype(np.float64)
    if limbs == 2:
        product = product + (a0.T @ b1 + a1.T @ b0).astype(np.float64) * 2.0**-bits
    return np.ldexp(product, e[:, None] + f[None, :] - 2 * bits)


# --- section 10: selections ----------------------------------------------------------------------


@dataclass
class Selection:
    ordinary: dict[int, float]
    buffer: dict[int, float]
    blend: bool
    merge: str | None = None
    shared: float | None = None
    dtype: str | None = None
    task: int | None = None

    def expression(self, owner: Mapping[str, Any]) -> Any:
        if self.merge is None:
            task = owner.get("task")
            return owner.get("blend", task) if self.blend else task
        entry = owner.get("merges", {}).get(self.merge, {})
        return entry.get("merged" if self.shared is not None else "task")


def select(
    manifest: Mapping[str, Any],
    task: str | None = None,
    weights: Mapping[str, float] | None = None,
    merge: str | None = None,
) -> Selection:
    tasks, merges = manifest["tasks"], manifest["merges"]
    source, gains, dtype = None, [1.0] * len(tasks), None
    if task is not None or weights is not None:
        source = task_source(manifest, merge)
        gains = merges[source].get("task_gains", gains) if source else gains
    if task is not None:
        index = tasks.index(task)
        gain = {index: gains[index]}
        return Selection(gain, {index: 1.0}, blend=False, merge=source, task=index)
    if weights is not None:
        require(set(weights) == set(tasks), "weights name other tasks")
        given, scaling = [float(weights[name]) for name in tasks], 1.0
    else:
        record = merges[merge or manifest["default_merge"]]
        dtype = record.get("dtype")
        if record["kind"] == "stored":
            name = merge or manifest["default_merge"]
            scaling = float(record["scaling"])
            return Selection({}, {}, blend=False, merge=name, shared=scaling, dtype=dtype)
        given, scaling = [float(w) for w in record["weights"]], float(record["scaling"])
    total = math.fsum(given)
    average = [w / total if total else 1.0 / len(given) for w in given]
    return Selection(
        {t: w * scaling * gains[t] for t, w in enumerate(given) if w * scaling != 0},
        {t: w for t, w in enumerate(average) if w != 0},
        blend=True,
        merge=source,
        dtype=dtype,
    )


def task_source(manifest: Mapping[str, Any], merge: str | None) -> str | None:
    if merge is None and manifest.get("holds_tasks", True):
        return None
    merges = manifest["merges"]
    names = [manifest["default_merge"], *sorted(merges)] if merge is None else [merge]
    found = [name for name in names if merges[name].get("tasks")]
    require(bool(found), "no single task is stored")
    return found[0]


# --- section 11: the last step -------------------------------------------------------------------

FLOATS = ("F64", "F32", "F16", "BF16")
SIGNIFICAND = {"F16": (11, -14, 16), "BF16": (8, -126, 128), "F32": (24, -126, 128)}
"""Bits of the significand, smallest normal exponent, first power of two out of range."""


def to_float64(entry: Entry) -> Array:
    if entry.dtype == "BF16":
        words = np.frombuffer(entry.data, "<u2").astype(np.uint32) << 16
        return words.view(np.float32).astype(np.float64)
    formats = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    return np.frombuffer(entry.data, formats[entry.dtype]).astype(np.float64)


def round_to(x: Array, dtype: str) -> bytes:
    """Each number rounded once to `dtype`, nearest even; refuses what is out of range."""
    require(bool(np.isfinite(x).all()), "result is not finite")
    rounded = nearest(x, dtype)
    require(bool(np.isfinite(rounded).all()), f"result is beyond {dtype}")
    return pack(rounded, dtype)


def nearest(x: Array, dtype: str) -> Array:
    """The nearest numbers of `dtype`, infinite where that is beyond it; float64."""
    if dtype == "F64":
        return x
    digits, smallest, limit = SIGNIFICAND[dtype]
    exponent = np.maximum(np.frexp(x)[1] - 1, smallest)
    unit = np.ldexp(1.0, exponent - (digits - 1))
    rounded = np.rint(x / unit) * unit  # x / unit and the product are exact
    return np.where(np.abs(rounded) < 2.0**limit, rounded, np.copysign(np.inf, rounded))


def pack(rounded: Array, dtype: str) -> bytes:
    """Numbers that `dtype` holds, as it holds them."""
    if dtype == "F64":
        return rounded.astype("<f8").tobytes()
    if dtype == "F16":
        return rounded.astype("<f2").tobytes()
    narrow = rounded.astype("<f4")
    if dtype == "F32":
        return narrow.tobytes()
    return (narrow.view("<u4") >> 16).astype("<u2").tobytes()


def last_step(base: Array, delta: Array, dtype: str, *, variance: bool) -> bytes:
    y = np.where(delta == 0, base, base + delta)
    if variance:
        y = np.where(y < 0, 0.0, y)
    return round_to(y, dtype)


# --- section 9, exact tasks -----------------------------------------------------------------------

PATTERNS = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}
"""Dtypes of an exact task, and the bits of their mantissas."""


def restore(integers: Array, base: Entry, dtype: str) -> bytes:
    """The bits of a task, from differences of patterns in the order of the format."""
    data = base.data if base.dtype == dtype else pack(nearest(to_float64(base), dtype), dtype)
    bits = SIZES[dtype] * 8
    patterns = np.frombuffer(data, f"<i{SIZES[dtype]}").copy()
    largest = 2 ** (bits - 1 - PATTERNS[dtype]) - 1
    exponents = (patterns >> PATTERNS[dtype]).astype(np.int64) & largest
    for start in range(0, len(patterns), 2**22):
        block = slice(start, start + 2**22)
        order = start + np.argsort(-exponents[block], kind="stable")
        ranks = flip(patterns[order], bits) + integers[block]
        patterns[order] = flip(ranks, bits)
    return patterns.tobytes()


def flip(patterns: Array, bits: int) -> Array:
    """All bits but the sign of negative integers turned round."""
    return np.where(patterns < 0, patterns ^ patterns.dtype.type(2 ** (bits - 1) - 1), patterns)


def matrix_view(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


# --- section 12: reading -------------------------------------------------------------------------


class Artifact:
    """An artifact directory, opened and checked as far as its manifest goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = parse_json((folder / "manifest.json").read_bytes())
        require(self.manifest.get("format") == "svdh-artifact", "no svdh manifest")
        require(self.manifest.get("format_version") == 1, "format version", UnknownError)
        require(self.manifest.get("checksum") == seal(self.manifest), "checksum")
        for codec in self.manifest["codecs"]:
            check_codec(codec)
        self.files = self.manifest["files"]
        self.tensors = self.manifest.get("tensors") or self.read_index()
        names = [tensor["name"] for tensor in self.tensors]
        require(names == sorted(set(names)), "tensors out of order")
        self.ordinals = {name: index for index, name in enumerate(names)}
        for file in self.manifest["files"]:
            known = file["path"] in {INDEX, *DOCUMENTS} or PATH.fullmatch(file["path"])
            require(bool(known), file["path"], UnsafeError)
        self.arrays: dict[str, Entry] = {}
        self.streams: dict[int, bytes] = {}
        for ordinal, file in enumerate(self.files):
            if PATH.fullmatch(file["path"]):
                self.add_shard(ordinal, file)
        self.strings = self.find_strings()

    def read_file(self, file: Mapping[str, Any]) -> bytes:
        data = (self.folder / file["path"]).read_bytes()
        require(len(data) == file["bytes"], f"size of {file['path']}")
        require(hashlib.sha256(data).hexdigest() == file["sha256"], f"content of {file['path']}")
        blocks = [data[begin : begin + 2**16] for begin in range(0, len(data), 2**16)]
        blocks = "".join(hashlib.sha256(block).hexdigest()[:32] for block in blocks)
        require(file.get("blocks", blocks) == blocks, f"blocks of {file['path']}")
        return data

    def read_index(self) -> Any:
        found = [file for file in self.files if file["path"] == INDEX]
        require(len(found) == 1, "no index")
        record = parse_json(unzstd(self.read_file(found[0]), None))
        require({"tensors"} <= set(record) <= {"tensors", "rebuilt"}, "fields of the index")
        self.manifest["rebuilt"] = record.get("rebuilt", {})
        return record["tensors"]

    def add_shard(self, ordinal: int, file: Mapping[str, Any]) -> None:
        for name, entry in read_safetensors(self.read_file(file)).items():
            if name == "streams":
                require(entry.dtype == "U8" and len(entry.shape) == 1, "streams are bytes")
                self.streams[ordinal] = entry.data
                continue
            require(name not in self.arrays, f"array {name} is stored twice")
            self.arrays[name] = entry

    def find_strings(self) -> dict[tuple[int, str, int], bytes]:
        """The string of every slice, by tensor ordinal, part and slice; section 7."""
        strings, ends, owners = {}, dict.fromkeys(self.streams, 0), {}
        for ordinal, tensor in enumerate(self.tensors):
            for name, part in sorted(tensor.get("parts", {}).items()):
                for index, length in enumerate(part.get("lengths", [])):
                    shard = part["shards"][index]
                    strings[ordinal, name, index] = b""
                    if length:
                        require(shard in ends, "a string lies in no shard")
                        owner = index if part["stacked"] else None
                        require(owners.setdefault(shard, owner) == owner, "a shard of two tasks")
                        begin, ends[shard] = ends[shard], ends[shard] + length
                        strings[ordinal, name, index] = self.streams[shard][begin : ends[shard]]
        same = all(end == len(self.streams[shard]) for shard, end in ends.items())
        require(same, "strings do not fill a shard")
        return strings

    def part(self, ordinal: int, part: str, task: int) -> Array:
        """One slice of a part, decoded."""
        record = self.tensors[ordinal]["parts"][part]
        codec = self.manifest["codecs"][record["codec"]]
        shape = (record["rows"], record["columns"])
        slices = len(self.manifest["tasks"]) if record["stacked"] else 1
        slices = len(record.get("lengths", [])) or record.get("slices", slices)
        if task >= slices:
            return np.zeros(shape, KINDS[codec.get("number", codec["name"])])
        if "lengths" in record:
            string = self.strings[ordinal, part, task]
            kind = KINDS[codec.get("number", codec["name"])]
            return decode_string(codec, string, shape) if string else np.zeros(shape, kind)

        def array(name: str) -> Array:
            full = f"t{ordinal:05d}.{part}.{name}"
            require(full in self.arrays, f"array {full} is missing")
            entry = self.arrays[full]
            require(entry.dtype in STORED, f"dtype of {full}")
            require(entry.shape[:1] == (slices,), f"slices of {full}")
            return np.frombuffer(entry.data, STORED[entry.dtype]).reshape(entry.shape)[task]

        return decode(codec, array, *shape)

    def rebuild(
        self, base: Mapping[str, Entry], selection: Selection
    ) -> Iterator[tuple[str, Entry]]:
        """Every tensor of the result, by ascending name."""
        require(set(base) == set(self.ordinals), "tensors of the base", WrongBaseError)
        for record in self.tensors:
            entry = base[record["name"]]
            fits = (entry.dtype, list(entry.shape)) == (record["dtype"], record["shape"])
            require(fits, f"base tensor {record['name']}", WrongBaseError)
        for record in self.tensors:
            entry = base[record["name"]]
            same = fingerprint(entry) == record["sha256"]
            require(same, f"base tensor {record['name']}", WrongBaseError)
            yield record["name"], self.tensor(record, entry, selection)

    def tensor(self, record: Mapping[str, Any], base: Entry, selection: Selection) -> Entry:
        ordinal = self.ordinals[record.get("alias", record["name"])]
        owner = self.tensors[ordinal]
        expression = selection.expression(owner)
        buffer = bool(record.get("buffer"))
        weights = selection.buffer if buffer else selection.ordinary
        shared = 1.0 if buffer and selection.shared is not None else selection.shared
        kept = expression is None or not (weights or shared)
        dtype = selection.dtype if selection.dtype and base.dtype in FLOATS else base.dtype
        if kept and dtype == base.dtype:
            return base
        rows, columns = matrix_view(base.shape)
        parts = Parts(
            owner.get("parts", {}), lambda p, t: self.part(ordinal, p, t), weights, shared, base
        )
        single = selection.task is not None and weights == {selection.task: 1.0}
        if single and not kept and expression.get("op") == "exact":
            task = selection.task
            assert task is not None
            return parts.exact(expression["part"], expression["dtype"], task, (rows, columns))
        delta = np.zeros(rows * columns)
        if not kept:
            delta = evaluate(expression, parts, (rows, columns)).reshape(-1)
        variance = buffer and record["name"].endswith("running_var")
        data = last_step(to_float64(base), delta, dtype, variance=variance)
        return Entry(dtype, base.shape, data)


def main(argv: list[str]) -> None:
    artifact = Artifact(Path(argv[0]))
    base = read_safetensors(Path(argv[1]).read_bytes())
    selection = select(artifact.manifest, task=argv[2] if len(argv) > 2 else None)
    for name, entry in artifact.rebuild(base, selection):
        print(fingerprint(entry), name)


if __name__ == "__main__":
    main(sys.argv[1:])
