"""Frequency tables: fitted, stored, validated."""

import contextlib

import numpy as np
import pytest

from svd_hybrid.codec.entropy import CLASSES, SYMBOLS, Tables, class_rms
from svd_hybrid.codec.entropy.alphabet import ESCAPE, LARGEST
from svd_hybrid.codec.entropy.tables import expand
from svd_hybrid.errors import ArtifactError


def some_counts(seed, numbers=20000):
    rng = np.random.default_rng(seed)
    counts = np.zeros((CLASSES, SYMBOLS), np.int64)
    for c in range(1, 30):
        values = np.rint(rng.laplace(size=numbers) * min(class_rms(c), 4.0))
        symbols = np.where(np.abs(values) > LARGEST, ESCAPE, values + LARGEST).astype(int)
        counts[c] = np.bincount(symbols, minlength=SYMBOLS)
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_tables_come_back(seed):
    tables = Tables.fit(some_counts(seed))
    data = tables.to_bytes()
    assert Tables.from_bytes(data) == tables
    assert len(data) < 400


def test_default_is_a_few_bytes():
    assert Tables.from_bytes(Tables.DEFAULT.to_bytes()) == Tables.DEFAULT
    assert len(Tables.DEFAULT.to_bytes()) == 6


def test_nothing_counted_is_the_default():
    assert Tables.fit(np.zeros((CLASSES, SYMBOLS), np.int64)) == Tables.DEFAULT


@pytest.mark.parametrize("counts", [np.eye(1, SYMBOLS, k, np.int64) for k in (0, 31, 62, 63)])
def test_odd_counts_make_valid_tables(counts):
    tables = Tables.fit(np.repeat(counts * 10**6, CLASSES, axis=0))
    assert Tables.from_bytes(tables.to_bytes()) == tables
    for c in range(1, CLASSES):
        freqs = expand(tables.row(c))
        assert freqs.sum() == 4096
        assert freqs[ESCAPE] >= 1
        assert freqs.min() >= 0
        assert freqs[LARGEST] >= 1


def test_fitted_tables_are_near_the_entropy_of_their_counts():
    counts = some_counts(0, 200000)[1:30]
    tables = Tables.fit(some_counts(0, 200000))
    share = counts / counts.sum(axis=1, keepdims=True)
    bits = -np.where(counts > 0, counts * np.log2(np.maximum(share, 1e-12)), 0).sum(axis=1)
    from svd_hybrid.codec.entropy import class_shift

    spent = np.array([counts[c - 1] @ (tables.bits[c] - class_shift(c)) for c in range(1, 30)])
    common = bits > 2000
    assert (spent[common] / bits[common]).max() < 1.02
    assert spent.sum() / bits.sum() < 1.003


def test_bits_have_no_gaps():
    bits = Tables.fit(some_counts(1)).bits
    assert bits.shape == (CLASSES, SYMBOLS)
    assert bits[0, LARGEST] == 0
    assert np.isfinite(bits[1:]).all()
    assert (bits[1:] > 0).all()


def test_damaged_tables_are_refused_or_valid():
    data = Tables.fit(some_counts(2)).to_bytes()
    rng = np.random.default_rng(0)
    pieces = [data[:n] for n in range(len(data))] + [data + b"\0"]
    pieces += [rng.bytes(int(rng.integers(0, 300))) for _ in range(1000)]
    for _ in range(1000):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        pieces.append(bytes(damaged))
    for piece in pieces:
        with contextlib.suppress(ArtifactError):
            tables = Tables.from_bytes(piece)
            assert all(expand(tables.row(c)).sum() == 4096 for c in range(1, CLASSES))
            assert all(expand(tables.row(c)).min() >= 0 for c in range(1, CLASSES))


def test_truncated_tables_are_refused():
    data = Tables.fit(some_counts(2)).to_bytes()
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            Tables.from_bytes(data[:length])
