"""Numbers outside their table: an exponent in the rANS stream and raw bits beside it.

The shifted value v becomes w = zigzag(v) + 1; its exponent is e = floor(log2 w), its raw bits the
e low bits of w. |v| is at most 2**31, so e is at most 33.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.alphabet import ESCAPE, LARGEST, Ints
from svd_hybrid.codec.entropy.bitstream import unzigzag, zigzag
from svd_hybrid.codec.entropy.rans import TOTAL, Table

EXPONENTS = 34
# common: just beyond a short table (2 … 5) or just beyond LARGEST (6 … 8)
_FREQS = [64, 192, 576, 640, 640, 512, 512, 320, 160, 96, *[16] * 23, 16]
EXPONENT_TABLE = Table(np.array(_FREQS, np.int64))
EXPONENT_BITS: NDArray[np.float64] = np.log2(TOTAL / EXPONENT_TABLE.freqs)


def split_escapes(shifted: Ints) -> tuple[NDArray[np.uint8], Ints]:
    """Exponents (n,) uint8 and folded values (n,) int64 whose low bits are stored."""
    folded = zigzag(shifted) + 1
    exponents = np.frexp(folded.astype(np.float64))[1] - 1
    return exponents.astype(np.uint8), folded - (np.int64(1) << exponents.astype(np.int64))


def join_escapes(exponents: NDArray[np.uint8], low: Ints) -> Ints:
    """Undo `split_escapes`."""
    return unzigzag((np.int64(1) << exponents.astype(np.int64)) + low - 1)


def escape_bits(shifted: Ints) -> NDArray[np.float64]:
    """Bits of escaped values beside their escape symbols."""
    exponents, _ = split_escapes(shifted)
    return EXPONENT_BITS[exponents] + exponents


ESCAPE_BITS = escape_bits(np.arange(ESCAPE) - LARGEST)
