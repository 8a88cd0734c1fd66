"""A second reader, written from the description of the bytes alone, agrees with `decode`."""

import numpy as np
import pytest

from svd_hybrid.codec.entropy import Tables, classify, count, decode, encode
from svd_hybrid.codec.entropy.defaults import default_magnitudes
from tests.codec.entropy.test_slices import gaussian


class Bits:
    def __init__(self, data):
        self.bits = [byte >> j & 1 for byte in data for j in range(8)]
        self.at = 0

    def field(self, width):
        self.at += width
        return sum(bit << j for j, bit in enumerate(self.bits[self.at - width : self.at]))


def unzigzag(z):
    return -(z + 1) // 2 if z % 2 else z // 2


def grid(i):
    return i if i < 16 else (8 + (i - 8) % 8) << (i - 8) // 8


def read_tables(data):
    bits, tables = Bits(data), {}
    index = {grid(i): i for i in range(80)}
    for c in range(1, 44):
        built_in = default_magnitudes(c)
        row = [1, *built_in]
        if bits.field(1):
            m = bits.field(5)
            row, last = [], 0
            d = [0] + [index[f] for f in built_in]
            for k in range(m + 1):
                z = 0
                while bits.field(1):
                    z += 2
                step = unzigzag(z + bits.field(1))
                if k == 0:
                    row.append(grid(step + 1))
                    continue
                expected = -3 if k >= len(d) else d[k] - (d[k - 1] if k > 1 else 0)
                last = step + expected + (last if k > 1 else 0)
                row.append(grid(last))
        freqs = {0: 4096 - row[0] - 2 * sum(row[1:])}
        for k in range(1, len(row)):
            freqs[-k] = freqs[k] = row[k]
        freqs["escape"] = row[0]
        tables[c] = list(freqs.items())
    return tables


def law(b):
    freqs = [1] * 86
    freqs[0] = (0, 64, 512, 1536, 2560, 3328, 3712, 3904)[b & 7]
    left = 4096 - sum(freqs)
    moving = left - left * (4, 12, 20, 28, 36, 44, 52, 60)[b >> 3 & 7] // 64
    down = moving * (13 if b & 64 else 8) // 16
    for mass, side in ((down, -1), (moving - down, 1)):
        for far in range(1, 43):
            part = mass * (3 if b & 128 else 7) // 8
            freqs[43 + side * far] += part
            mass -= part
    freqs[43] += 4096 - sum(freqs)
    return list(enumerate(freqs))


def read_slice(data, shape, tables):
    rows, columns = shape
    place = 0

    def byte():
        nonlocal place
        place += 1
        return data[place - 1]

    def leb():
        value = shift = 0
        while (b := byte()) & 128:
            value |= (b & 127) << shift
            shift += 7
        return value | b << shift

    code, first = byte(), byte()
    row_law = law(byte()) if first & 64 else None
    column_law = law(byte()) if code & 64 else None
    used = rows - (leb() if code & 128 else 0)
    first &= 63
    log = code & 15
    lanes, steps, words = 1, None, None
    if log > 1:
        lanes, steps = 1 << log, leb()
        extra = Bits(data[place : place + lanes // 2])
        extra = [extra.field(4) for _ in range(lanes)]
        place += lanes // 2
        low = Bits(data[place:])
        x = [(1 << 16 + e) + low.field(16 + e) for e in extra]
        place += (low.at + 7) // 8
    else:
        words = leb() if log else None
        size = (code >> 4 & 3) + 1
        x = [int.from_bytes(data[place : place + size], "little")]
        place += size
        words = (len(data) - place) // 2 if words is None else words

    def word():
        return byte() | byte() << 8

    def phase(items, n):
        nonlocal steps, words
        slots = [(s, f, k) for s, f in items for k in range(f)]
        out = []
        for begin in range(0, n, lanes):
            if steps == 0:
                x[:] = [state - 65536 for state in x]
            for lane in range(min(lanes, n - begin)):
                s, f, bias = slots[x[lane] % 4096]
                out.append(s)
                x[lane] = f * (x[lane] // 4096) + bias
                if x[lane] < 65536 and (words if lanes == 1 else steps > 0):
                    x[lane] = x[lane] << 16 | word()
                    words = words - 1 if lanes == 1 else words
            steps = None if steps is None else steps - 1
        return out

    def lines(symbols, last):
        for s in symbols:
            last += s - 43 if s else 0
            yield last if s else None

    a = list(lines(phase(row_law, used), first)) if row_law else [first]
    b = list(lines(phase(column_law, columns), 0)) if column_law else [0] * columns
    of_class = {c: [] for c in range(1, 44)}
    for i, row in enumerate(a):
        for j, column in enumerate(b):
            if row is not None and column is not None:
                of_class[min(max(row + column, 1), 43)].append((i, j))
    symbols = {c: phase(tables[c], len(at)) for c, at in of_class.items() if at}
    table = [64, 192, 576, 640, 640, 512, 512, 320, 160, 96] + [16] * 24
    exponents = phase(list(enumerate(table)), sum(s.count("escape") for s in symbols.values()))
    if steps == 0:
        x[:] = [state - 65536 for state in x]
    assert not any(x)
    assert not words
    raw = Bits(data[place:])
    shifts = {c: max(0, (c - 19) // 2) for c in symbols}
    lows = {c: [raw.field(shifts[c]) for _ in s] for c, s in symbols.items()}
    escaped = iter([unzigzag((1 << e) + raw.field(e) - 1) for e in exponents])
    matrix = np.zeros(shape, np.int64)
    for c, found in symbols.items():
        for at, v, low in zip(of_class[c], found, lows[c], strict=True):
            shifted = next(escaped) if v == "escape" else v
            matrix[at] = (shifted << shifts[c]) + low - (1 << shifts[c]) // 2
    assert len(raw.bits) - raw.at < 8
    return matrix


@pytest.mark.parametrize(
    ("shape", "scale", "column_spread"),
    [
        ((1, 1), 3.0, 0),
        ((30, 40), 0.5, 0),
        ((30, 40), 90.0, 0),
        ((60, 90), 2.0, 1.5),
        ((120, 700), 12.0, 0),
        ((20, 20), 1e8, 0),
    ],
)
def test_a_reader_made_from_the_description_agrees(shape, scale, column_spread):
    matrix = gaussian(*shape, scale, column_spread=column_spread, seed=3)
    matrix[0, 0] += 1
    matrix[3:7] = 0
    matrix[-shape[0] // 5 : -1] = 0
    tables = Tables.fit(count(matrix, classify(matrix, Tables.DEFAULT)))
    data = encode(matrix, tables)
    np.testing.assert_array_equal(read_slice(data, shape, read_tables(tables.to_bytes())), matrix)
    np.testing.assert_array_equal(decode(data, shape, tables)[0], matrix)
