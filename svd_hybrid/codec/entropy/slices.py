"""One slice — an int32 matrix — as one byte string, and back.

Head, lane states, words, raw bits. The rANS stream holds, phase by phase: the classes of the rows,
the offsets of the columns, the numbers class by class, and the exponents of the escapes. Raw bits
are the low bits of the numbers, class by class, then those of the escapes. b"" is all zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import CLASSES
from svd_hybrid.codec.entropy.bitstream import BitReader, pack
from svd_hybrid.codec.entropy.class_sources import EXPONENTS
from svd_hybrid.codec.entropy.classes import FARTHEST_OFFSET, ZERO_COLUMN, Classes
from svd_hybrid.codec.entropy.classify import classify
from svd_hybrid.codec.entropy.lines import (
    check_range,
    choose_law,
    law_source,
    line_symbols,
    line_values,
)
from svd_hybrid.codec.entropy.numbers import Numbers, Phases, split_escapes, to_phases
from svd_hybrid.codec.entropy.stream import (
    Head,
    open_stream,
    stream_bits,
    stream_size,
    write_stream,
)
from svd_hybrid.codec.entropy.trellis_numbers import TrellisNumbers, trellis_phases

Matrix = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A slice of which only the stream is yet to be made.

    Args:
        head: what comes before it.
        phases: its symbols; none for a slice of zeros.
        raw: packed bits after it.
    """

    head: Head
    phases: Phases
    raw: bytes

    @property
    def bits(self) -> float:
        """Bits of the slice, without those of head and lanes."""
        return stream_bits(self.phases) + 8.0 * len(self.raw)

    @property
    def size(self) -> float:
        """Bytes of the slice, to about 0.1 % and two bytes."""
        return stream_size(self.phases) + len(self.raw) if self.phases else 0.0

    def written(self) -> bytes:
        """The slice as bytes."""
        return write_stream(self.head, self.phases, self.raw) if self.phases else b""


def encode(matrix: Matrix, classes: Classes | None = None) -> bytes:
    """The slice as bytes.

    Args:
        matrix: (rows, columns) int32.
        classes: what `classify` said; left out, it is asked.
    """
    return prepare(matrix, classes).written()


def prepare(matrix: Matrix, classes: Classes | None = None, *, trellis: bool = False) -> Prepared:
    """The slice as symbols.

    Args:
        matrix: (rows, columns) int32.
        classes: what `classify` said; left out, it is asked.
        trellis: whether numbers are indices along the trellis.
    """
    if not matrix.any():
        return Prepared(Head(0, None, None, 0), [], b"")
    classes = classify(matrix) if classes is None else classes
    values = classes.rows.astype(np.int64)
    used = int(np.flatnonzero(values)[-1]) + 1
    zero = values[:used] == 0
    first = int(values[:used][~zero][0])
    phases: Phases = []
    row_law = column_law = None
    if used > 1:
        symbols = line_symbols(values[:used], zero, first)
        row_law, _ = choose_law(symbols)
        phases.append((law_source(row_law), symbols))
    if classes.columns is not None:
        offsets = classes.columns.astype(np.int64)
        symbols = line_symbols(offsets, offsets == ZERO_COLUMN, 0)
        column_law, _ = choose_law(symbols)
        phases.append((law_source(column_law), symbols))
    raw, escaped = [], []
    for c, where in classes.places(matrix.shape[1]):
        numbers = matrix[where] if classes.columns is None else matrix.ravel()[where]
        parts, low, beyond = (trellis_phases if trellis else to_phases)(numbers.ravel(), c)
        phases += parts
        raw.append(low)
        escaped.append(beyond)
    exponents, low = split_escapes(np.concatenate(escaped))
    phases.append((EXPONENTS, exponents))
    head = Head(first, row_law, column_law, len(values) - used)
    return Prepared(head, phases, pack(np.concatenate([*raw, low])))


def decode(data: bytes, shape: tuple[int, int], *, trellis: bool = False) -> tuple[Matrix, Classes]:
    """The slice and the class of every number.

    Args:
        data: what `encode` returned.
        shape: rows and columns.
        trellis: as it was for `prepare`.

    Returns:
        matrix: (rows, columns) int32; with the trellis what indices stand for, in half steps.
        classes: rows (rows,) uint8; columns (columns,) int8 or None.

    Raises:
        ArtifactError: the bytes are damaged, or belong to another shape.
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
        symbols = coder.take(law_source(head.row_law), used)
        values[:used], zero = line_values(symbols, head.first)
        check_range(values[:used][~zero], 1, CLASSES - 1, "row classes")
    offsets = None
    if head.column_law is not None:
        steps, dead = line_values(coder.take(law_source(head.column_law), columns), 0)
        check_range(steps, -FARTHEST_OFFSET, FARTHEST_OFFSET, "column offsets")
        steps[dead] = ZERO_COLUMN
        offsets = steps.astype(np.int8)
    classes = Classes(values.astype(np.uint8), offsets)
    places = list(classes.places(columns))
    width = columns if offsets is None else 1
    kind = TrellisNumbers if trellis else Numbers
    parts = [kind.take(coder, c, len(where) * width) for c, where in places]
    exponents = coder.take(EXPONENTS, sum(part.escapes for part in parts)).astype(np.int64)
    raw = BitReader(stream.raw())
    lows = [raw.uniform(len(part.clamped), part.shift) for part in parts]
    escaped = (1 << exponents) + raw.fields(exponents)
    raw.close()
    for (_, where), part, low in zip(places, parts, lows, strict=True):
        numbers = part.join(low, escaped[: part.escapes])
        escaped = escaped[part.escapes :]
        if offsets is None:
            out[where] = numbers.reshape(-1, columns)
        else:
            out.reshape(-1)[where] = numbers
    return out, classes
