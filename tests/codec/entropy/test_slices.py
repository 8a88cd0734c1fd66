"""Slices come back exactly, cost what entropy says, and damage is an ArtifactError."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from svd_hybrid.codec.entropy import Classes, classify, decode, encode
from svd_hybrid.codec.entropy.alphabet import class_shift, split
from svd_hybrid.errors import ArtifactError

LOW, HIGH = -(2**31), 2**31 - 1


def gaussian(rows, columns, scale, *, spread=0.6, column_spread=0.0, seed=0):
    """Rounded normal numbers; rows sorted by falling scale."""
    rng = np.random.default_rng(seed)
    row = np.sort(np.exp(rng.normal(0, spread, (rows, 1))), axis=0)[::-1] * scale
    column = np.exp(rng.normal(0, column_spread, (1, columns)))
    numbers = np.rint(rng.normal(size=(rows, columns)) * row * column)
    return np.clip(numbers, LOW, HIGH).astype(np.int32)


def entropy_bits(matrix, classes):
    """Empirical entropy given the classes, raw low bits included."""
    bits = 0.0
    for c, where in classes.places(matrix.shape[1]):
        numbers = split(matrix[where] if classes.columns is None else matrix.ravel()[where], c)[0]
        counts = np.unique(numbers, return_counts=True)[1]
        bits += counts @ np.log2(numbers.size / counts) + numbers.size * class_shift(c)
    return bits


def check(matrix):
    data = encode(matrix)
    decoded, classes = decode(data, matrix.shape)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, matrix)
    chosen = classify(matrix)
    np.testing.assert_array_equal(classes.rows, chosen.rows)
    assert (classes.columns is None) == (chosen.columns is None or not data)
    assert encode(matrix) == data
    return data


INTEGERS = st.one_of(
    st.integers(-2, 2), st.integers(-40, 40), st.integers(LOW, HIGH), st.sampled_from([LOW, HIGH])
)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.int32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=INTEGERS,
        fill=st.just(0),
    )
)
def test_any_small_matrix_comes_back(matrix):
    check(matrix)


@pytest.mark.parametrize("shape", [(1, 1), (1, 777), (777, 1), (13, 17), (3, 4097), (4099, 3)])
@pytest.mark.parametrize("scale", [0.05, 0.5, 2.0, 50.0, 1e5, 5e8])
def test_shapes_and_scales_come_back(shape, scale):
    matrix = gaussian(*shape, scale)
    check(matrix)
    matrix[::3] = 0
    check(matrix)


def test_all_zero_is_no_bytes():
    assert encode(np.zeros((5, 7), np.int32)) == b""
    decoded, classes = decode(b"", (5, 7))
    assert not decoded.any()
    assert not classes.rows.any()


@pytest.mark.parametrize("value", [1, -1, 32, LOW, HIGH])
@pytest.mark.parametrize("place", [(0, 0), (99, 63), (41, 7)])
def test_one_number_costs_a_few_bytes(value, place):
    matrix = np.zeros((100, 64), np.int32)
    matrix[place] = value
    assert len(check(matrix)) <= 12 + 4 * (abs(value) > 1)


def test_extremes_side_by_side():
    matrix = np.full((40, 50), LOW, np.int32)
    matrix[::2] = HIGH
    check(matrix)


def test_unsorted_zero_rows_and_columns():
    rng = np.random.default_rng(1)
    matrix = gaussian(300, 80, 1.0)
    matrix = matrix[rng.permutation(300)]
    matrix[rng.random(300) < 0.7] = 0
    matrix[:, rng.random(80) < 0.5] = 0
    check(matrix)


def test_column_offsets_are_used_where_they_pay():
    matrix = gaussian(400, 300, 2.0, column_spread=1.0)
    classes = classify(matrix)
    assert classes.columns is not None
    plain = Classes(classify(matrix[:, :1]).rows)
    assert plain.columns is None
    assert len(check(matrix)) < len(encode(matrix, Classes(row_classes(matrix))))
    assert classify(gaussian(400, 300, 2.0)).columns is None


def row_classes(matrix):
    """Classes from the rms of the rows alone."""
    rms = np.sqrt((matrix.astype(float) ** 2).mean(axis=1))
    return np.clip(np.rint(2 * np.log2(np.maximum(rms, 1e-3))) + 15, 1, 43).astype(np.uint8)


@pytest.mark.parametrize(("scale", "bits"), [(0.95, 2.1), (0.47, 1.24), (0.27, 0.55), (0.12, 0.1)])
def test_size_is_near_entropy(scale, bits):
    matrix = gaussian(500, 2000, scale)
    classes = classify(matrix)
    wanted = entropy_bits(matrix, classes)
    assert wanted / matrix.size == pytest.approx(bits, rel=0.35)
    assert 8 * len(check(matrix)) < 1.025 * wanted


def test_given_classes_are_kept():
    matrix = gaussian(30, 40, 1.0)
    classes = Classes(row_classes(matrix), (np.arange(40) % 3 - 1).astype(np.int8))
    decoded, same = decode(encode(matrix, classes), matrix.shape)
    np.testing.assert_array_equal(decoded, matrix)
    np.testing.assert_array_equal(same.rows, classes.rows)
    np.testing.assert_array_equal(same.columns, classes.columns)


def survives(data, shape):
    """Decode damaged bytes: the right shape or an ArtifactError, nothing else."""
    with contextlib.suppress(ArtifactError):
        matrix, classes = decode(data, shape)
        assert matrix.shape == shape
        assert classes.rows.shape == shape[:1]
        return True
    return False


DAMAGED = {
    "one lane": gaussian(20, 30, 0.8),
    "raw bits": gaussian(20, 30, 80.0),
    "columns": gaussian(60, 40, 2.0, column_spread=1.2),
    "lanes": gaussian(120, 1500, 3.0),
    "single": np.array([[3]], np.int32),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_truncation_is_refused(name):
    """But for chance, where one lane has no raw bits: shards have digests for what is left."""
    matrix = DAMAGED[name]
    data = encode(matrix)
    lengths = range(1, len(data)) if len(data) < 2000 else range(1, len(data), 997)
    passed = sum(survives(data[:length], matrix.shape) for length in lengths)
    assert passed <= (len(data) // 20 if name == "one lane" else 0)
    assert not survives(data + b"\0\0", matrix.shape)


@pytest.mark.parametrize("name", DAMAGED)
def test_flipped_bytes_do_no_harm(name):
    matrix = DAMAGED[name]
    data = encode(matrix)
    rng = np.random.default_rng(0)
    for turn in range(600 if len(data) < 5000 else 60):
        damaged = bytearray(data)
        place = rng.integers(min(len(data), 12 if turn % 2 else len(data)))
        damaged[place] ^= int(rng.integers(1, 256))
        survives(bytes(damaged), matrix.shape)


def test_garbage_does_no_harm():
    rng = np.random.default_rng(0)
    for _ in range(1500):
        survives(rng.bytes(int(rng.integers(1, 200))), (9, 11))
    for _ in range(40):
        survives(rng.bytes(5000), (90, 110))


def test_other_shapes_are_refused_or_harmless():
    matrix = gaussian(20, 30, 0.8)
    data = encode(matrix)
    for shape in [(1, 1), (20, 29), (20, 31), (19, 30), (21, 30), (1, 600)]:
        survives(data, shape)
