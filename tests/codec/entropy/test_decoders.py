"""A forged stream costs what its bytes cost, not what the symbols it claims would."""

import time

import numpy as np
import pytest

from svd_hybrid.codec.entropy.decoders import LOWEST, LaneDecoder, SingleDecoder
from svd_hybrid.codec.entropy.source import Source
from svd_hybrid.errors import ArtifactError

COUNT = 50_000_000
NO_WORDS = np.zeros(0, np.uint16)


def coder(lanes, state):
    if lanes == 1:
        return SingleDecoder(state, NO_WORDS)
    return LaneDecoder(np.full(lanes, LOWEST + state, np.int64), NO_WORDS, 0)


@pytest.mark.parametrize("lanes", [1, 128])
@pytest.mark.parametrize("in_phrases", [False, True])
@pytest.mark.parametrize("freqs", [(3000, 1096), (1, 4095)])
def test_what_follows_the_words_takes_no_loop(lanes, in_phrases, freqs):
    source = Source(freqs, in_phrases=in_phrases)
    reader = coder(lanes, 60_000)
    start = time.process_time()
    symbols = reader.take(source, COUNT)
    assert time.process_time() - start < 2
    assert len(symbols) == COUNT


@pytest.mark.parametrize("lanes", [1, 128])
def test_a_state_that_stays_above_zero_is_refused(lanes):
    reader = coder(lanes, 5)
    reader.take(Source((3000, 1096)), COUNT)
    with pytest.raises(ArtifactError, match="damaged"):
        reader.finish()


@pytest.mark.parametrize("lanes", [1, 128])
@pytest.mark.parametrize("state", [0, 5, 60_000])
def test_the_symbols_are_those_taken_one_by_one(lanes, state):
    table = Source((3000, 1096)).single
    slots, freqs, biases = table.slots
    expected, x = [], state
    for _ in range(300):
        slot = x & 4095
        expected.append(slots[slot])
        x = int(freqs[slot]) * (x >> 12) + int(biases[slot])
    symbols = coder(lanes, state).take(Source((3000, 1096)), 300 * lanes)
    np.testing.assert_array_equal(symbols.reshape(300, lanes).T, [expected] * lanes)
