"""Phrases: every sequence begins with exactly one, and coding in them costs its entropy."""

from itertools import pairwise

import numpy as np
import pytest

from svd_hybrid.codec.entropy.alphabet import CLASSES
from svd_hybrid.codec.entropy.class_sources import above, clamped, class_bits
from svd_hybrid.codec.entropy.phrases import LONGEST, MOST_PHRASES, grow

SOURCES = {f"{f.__name__} {c}": f(c) for f in (clamped, above) for c in (1, 4, 8, *range(10, 21))}


@pytest.mark.parametrize("name", SOURCES)
def test_phrases_are_a_complete_code(name):
    """The shares of the sequences that begin with them add up to all of them, exactly."""
    phrases = SOURCES[name].phrases.phrases
    assert len(set(phrases)) == len(phrases) <= MOST_PHRASES
    assert max(map(len, phrases)) <= LONGEST
    symbols = len(SOURCES[name].bits)
    assert sum(symbols ** (LONGEST - len(phrase)) for phrase in phrases) == symbols**LONGEST
    ordered = sorted(phrases)
    assert not any(b.startswith(a) for a, b in pairwise(ordered))


@pytest.mark.parametrize("name", SOURCES)
def test_phrases_cost_the_entropy_of_their_symbols(name):
    source = SOURCES[name]
    single, table = source.single.freqs / 4096, source.phrases
    assert table.freqs.sum() == 4096
    assert table.freqs.min() >= 1
    shares = np.array([np.prod(single[list(phrase)]) for phrase in table.phrases])
    bits = -shares @ np.log2(table.freqs / 4096)
    length = shares @ np.array([len(phrase) for phrase in table.phrases])
    entropy = -single @ np.log2(single)
    assert shares.sum() == pytest.approx(1)
    assert bits / length < 1.0015 * entropy
    assert length > 1.5


def test_likelier_phrases_come_first():
    single = np.array([3000, 1000, 96]) / 4096
    weights, phrases = grow([3000, 1000, 96])
    assert weights == sorted(weights, reverse=True)
    shares = [np.prod(single[list(phrase)]) for phrase in phrases]
    np.testing.assert_allclose(np.array(weights) / 2**40, shares, rtol=1e-6)


@pytest.mark.parametrize("lanes", [1, 3, 128])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 8191, 8192, 30001])
def test_a_parse_leaves_what_phrases_might_not_fit(lanes, count):
    source = clamped(11)
    rng = np.random.default_rng(count)
    symbols = rng.choice(3, count, p=source.single.freqs / 4096).astype(np.uint8)
    events = source.events(symbols, lanes)
    joined = [b"".join(table.phrases[i] for i in indices) for table, indices in events]
    assert b"".join(joined) == symbols.tobytes()
    left = len(joined[-1])
    assert left < lanes * source.phrases.longest
    assert all(len(indices) % lanes == 0 for _, indices in events[:-1])


def test_prices_have_no_gaps():
    bits = class_bits()
    assert len(bits) == CLASSES
    assert bits[0, 0] == 0
    assert np.isfinite(bits[1:]).all()
    assert (bits[1:] > 0).all()
    assert (np.diff(bits[1:20], axis=1) > -1e-9).all()
