"""One slice — an int32 matrix — as one byte string, and back.

Head, lane states, words, raw bits. The rANS stream holds, phase by phase: the classes of the rows,
the offsets of the columns, the numbers class by class, and the exponents of the escapes. Raw bits
are the low bits of the numbers, class by class, then those of the escapes. b"" is all zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import (
    CLASSES,
    ESCAPE,
    LARGEST,
    SYMBOLS,
    Ints,
    class_shift,
    join,
    split,
)
from svd_hybrid.codec.entropy.bitstream import BitReader, pack, to_bits
from svd_hybrid.codec.entropy.classes import FARTHEST_OFFSET, ZERO_COLUMN, Classes
from svd_hybrid.codec.entropy.classify import classify
from svd_hybrid.codec.entropy.escapes import (
    EXPONENT_TABLE,
    escape_bits,
    join_escapes,
    split_escapes,
)
from svd_hybrid.codec.entropy.lines import (
    check_range,
    choose_law,
    law_table,
    line_symbols,
    line_values,
)
from svd_hybrid.codec.entropy.stream import Head, Phases, open_stream, write_stream
from svd_hybrid.codec.entropy.tables import Tables
from svd_hybrid.errors import ArtifactError

Matrix = NDArray[np.int32]
Symbols = NDArray[np.uint8]


def encode(matrix: Matrix, tables: Tables, classes: Classes | None = None) -> bytes:
    """The slice as bytes.

    Args:
        matrix: (rows, columns) int32.
        tables: the artifact's frequency tables.
        classes: what `classify` said; left out, it is asked.
    """
    if not matrix.any():
        return b""
    classes = classify(matrix, tables) if classes is None else classes
    values = classes.rows.astype(np.int64)
    used = int(np.flatnonzero(values)[-1]) + 1
    zero = values[:used] == 0
    first = int(values[:used][~zero][0])
    phases: Phases = []
    row_law = column_law = 0
    if used > 1:
        symbols = line_symbols(values[:used], zero, first)
        row_law, _ = choose_law(symbols)
        phases.append((law_table(row_law), symbols))
    if classes.columns is not None:
        offsets = classes.columns.astype(np.int64)
        symbols = line_symbols(offsets, offsets == ZERO_COLUMN, 0)
        column_law, _ = choose_law(symbols)
        phases.append((law_table(column_law), symbols))
    low_bits, escaped = [], []
    for c, numbers in numbers_by_class(matrix, classes):
        shifted, low = split(numbers, c)
        symbols = to_symbols(shifted)
        symbols[tables.table(c).freqs[symbols] == 0] = ESCAPE
        escaped.append(shifted[symbols == ESCAPE])
        phases.append((tables.table(c), symbols))
        if class_shift(c):
            low_bits.append(to_bits(low, class_shift(c)))
    exponents, low = split_escapes(np.concatenate(escaped))
    if len(exponents):
        phases.append((EXPONENT_TABLE, exponents))
        low_bits.append(to_bits(low, exponents.astype(np.int64)))
    raw = pack(np.concatenate([np.zeros(0, np.uint8), *low_bits]))
    head = Head(
        first,
        row_law if used > 1 else None,
        column_law if classes.columns is not None else None,
        len(values) - used,
    )
    return write_stream(head, phases, raw)


def decode(data: bytes, shape: tuple[int, int], tables: Tables) -> tuple[Matrix, Classes]:
    """The slice and the class of every number.

    Args:
        data: what `encode` returned.
        shape: rows and columns.
        tables: the tables it was encoded with.

    Returns:
        matrix: (rows, columns) int32.
        classes: rows (rows,) uint8; columns (columns,) int8 or None.

    Raises:
        ArtifactError: the bytes are damaged, or belong to another shape or other tables.
    """
    rows, columns = shape
    out = np.zeros(shape, np.int32)
    values = np.zeros(rows, np.int64)
    if not data:
        return out, Classes(values.astype(np.uint8))
    stream = open_stream(data, rows)
    head, coder = stream.head, stream.coder
    used = rows - head.skipped
    if head.row_law is None:
        values[:used] = head.first
    else:
        symbols = coder.take(law_table(head.row_law), used)
        values[:used], zero = line_values(symbols, head.first)
        check_range(values[:used][~zero], 1, CLASSES - 1, "row classes")
    offsets = None
    if head.column_law is not None:
        steps, dead = line_values(coder.take(law_table(head.column_law), columns), 0)
        check_range(steps, -FARTHEST_OFFSET, FARTHEST_OFFSET, "column offsets")
        steps[dead] = ZERO_COLUMN
        offsets = steps.astype(np.int8)
    classes = Classes(values.astype(np.uint8), offsets)
    places = list(classes.places(columns))
    width = columns if offsets is None else 1
    parts = [coder.take(tables.table(c), len(where) * width) for c, where in places]
    escapes = sum(int(np.count_nonzero(part == ESCAPE)) for part in parts)
    exponents = coder.take(EXPONENT_TABLE, escapes)
    raw = BitReader(stream.raw())
    lows = [
        raw.uniform(len(part), class_shift(c)) for (c, _), part in zip(places, parts, strict=True)
    ]
    escaped = join_escapes(exponents, raw.fields(exponents.astype(np.int64)))
    raw.close()
    for (c, where), part, low in zip(places, parts, lows, strict=True):
        numbers = from_symbols(part, low, c, escaped)
        escaped = escaped[np.count_nonzero(part == ESCAPE) :]
        if offsets is None:
            out[where] = numbers.reshape(-1, columns)
        else:
            out.reshape(-1)[where] = numbers
    return out, classes


def from_symbols(symbols: Symbols, low: Ints, c: int, escaped: Ints) -> Matrix:
    """Numbers of one class from symbols, low bits and the escaped values still to come."""
    if not class_shift(c) and not (symbols == ESCAPE).any():
        numbers: Matrix = symbols.astype(np.int32)
        numbers -= LARGEST
        return numbers
    shifted = symbols.astype(np.int64) - LARGEST
    at = np.flatnonzero(symbols == ESCAPE)
    shifted[at] = escaped[: len(at)]
    wide = join(shifted, low, c)
    if (wide != wide.astype(np.int32)).any():
        raise ArtifactError("a number of a slice is outside int32", fix="fetch the artifact anew")
    return wide.astype(np.int32)


def numbers_by_class(matrix: Matrix, classes: Classes) -> list[tuple[int, Matrix]]:
    """Each class above 0 that occurs, ascending, and its numbers (n,) in row-major order."""
    places = classes.places(matrix.shape[1])
    if classes.columns is None:
        return [(c, matrix[where].ravel()) for c, where in places]
    return [(c, matrix.ravel()[where]) for c, where in places]


def to_symbols(shifted: Ints) -> Symbols:
    """(n,) uint8 symbols: the shifted value + LARGEST, or ESCAPE beyond the alphabet."""
    symbols = shifted + LARGEST
    symbols[symbols.view(np.uint64) > 2 * LARGEST] = ESCAPE  # below 0 is large without a sign
    return symbols.astype(np.uint8)


def count(matrix: Matrix, classes: Classes) -> Ints:
    """(CLASSES, SYMBOLS) int64: how often each symbol occurs in each class; for `Tables.fit`."""
    counts = np.zeros((CLASSES, SYMBOLS), np.int64)
    for c, numbers in numbers_by_class(matrix, classes):
        counts[c] = np.bincount(to_symbols(split(numbers, c)[0]), minlength=SYMBOLS)
    return counts


def cost(matrix: Matrix, classes: Classes, tables: Tables) -> float:
    """Bits of `encode(matrix, tables, classes)`, within about 1 %, without encoding."""
    bits = 0.0
    for c, numbers in numbers_by_class(matrix, classes):
        shifted, _ = split(numbers, c)
        symbols = to_symbols(shifted)
        bits += tables.bits[c][symbols].sum()
        beyond = shifted[symbols == ESCAPE]
        if len(beyond):
            bits += (escape_bits(beyond)).sum()
            bits -= len(beyond) * (tables.bits[c][ESCAPE] - tables.escape_symbol_bits(c))
    return bits + side_bits(classes) if bits else 0.0


def side_bits(classes: Classes) -> float:
    """Bits of head, classes and lane states, about."""
    values = classes.rows.astype(np.int64)
    live = np.flatnonzero(values)
    if not len(live):
        return 0.0
    values = values[: live[-1] + 1]
    bits = choose_law(line_symbols(values, values == 0, int(values[live[0]])))[1]
    if classes.columns is not None:
        offsets = classes.columns.astype(np.int64)
        bits += choose_law(line_symbols(offsets, offsets == ZERO_COLUMN, 0))[1] + 8
    return bits + 28.0
