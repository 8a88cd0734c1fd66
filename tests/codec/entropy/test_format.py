"""The reader that was written from FORMAT.md alone agrees with `decode`."""

import numpy as np
import pytest

from svd_hybrid.codec.entropy import decode, encode
from svd_hybrid.codec.entropy.alphabet import CLASSES
from svd_hybrid.codec.entropy.class_sources import above, clamped, excess
from tests.codec.entropy.test_slices import gaussian
from tests.format.minimal_reader import class_sources, entropy_coded


@pytest.mark.parametrize(
    ("shape", "scale", "column_spread"),
    [
        ((1, 1), 3.0, 0),
        ((30, 40), 0.5, 0),
        ((30, 90), 0.06, 0),
        ((30, 40), 90.0, 0),
        ((60, 90), 2.0, 1.5),
        ((120, 700), 12.0, 0),
        ((300, 700), 0.6, 0),
        ((20, 20), 1e8, 0),
    ],
)
def test_a_reader_made_from_the_description_agrees(shape, scale, column_spread):
    matrix = gaussian(*shape, scale, column_spread=column_spread, seed=3)
    matrix[0, 0] += 1
    matrix[3:7] = 0
    matrix[-shape[0] // 5 : -1] = 0
    data = encode(matrix)
    np.testing.assert_array_equal(entropy_coded(data, shape), matrix)
    np.testing.assert_array_equal(decode(data, shape)[0], matrix)


def rows(table):
    """Phrase, frequency and slot - start by slot, of the coder's own table."""
    pairs = zip(table.phrases, table.freqs.tolist(), strict=True)
    return [(tuple(phrase), freq, bias) for phrase, freq in pairs for bias in range(freq)]


@pytest.mark.parametrize("c", range(1, CLASSES))
def test_tables_are_those_of_the_description(c):
    reach, *theirs = class_sources(c)
    assert len(clamped(c).bits) == 2 * reach + 1
    for ours, source in zip((clamped(c), above(c), excess(c)), theirs, strict=True):
        assert rows(ours.single) == source.single
        assert (rows(ours.phrases) if ours.phrases else []) == source.phrases
