"""`integers`: numbers with a scale, rotated rows, rows of norm 1; and what it refuses."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.codec import IntegersCodec, codec_from_json, codec_to_json
from svd_hybrid.codec.entropy import encode
from svd_hybrid.codec.integers import ROWS, stored_scale, unit_rows
from svd_hybrid.errors import ArtifactError, ParameterError
from svd_hybrid.numerics.hadamard import rotate
from tests.format import minimal_reader

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 70))
SCALE = 0.0123
EACH_KIND = pytest.mark.parametrize("rows", ROWS)


def integers(shape: tuple[int, int], size: float, seed: int) -> Tensor:
    """(m, n) int32, rows of several scales, the last one all zero."""
    random = torch.Generator().manual_seed(seed)
    scales = size * 2.0 ** -torch.arange(shape[0], dtype=torch.float64)[:, None]
    numbers = (torch.randn(shape, generator=random, dtype=torch.float64) * scales).round()
    if shape[0] > 1:
        numbers[-1] = 0
    return numbers.to(torch.int32)


def meaning(rows: str, numbers: Tensor, scale: float) -> Tensor:
    """What the integers stand for, in plain float64."""
    wide = numbers.to(torch.float64)
    if rows == "unit":
        norms = wide.square().sum(1, keepdim=True).sqrt()
        return wide / torch.where(norms == 0, 1.0, norms)
    return wide * stored_scale(scale)


# --- what comes back -----------------------------------------------------------------------------


@EACH_KIND
@given(shape=SHAPES, size=st.sampled_from([0.3, 4.0, 300.0, 1e6]), seed=st.integers(0, 99))
def test_integers_come_back_as_what_they_stand_for(rows, shape, size, seed):
    numbers = integers(shape, size, seed)
    numbers[0, 0] += 1
    codec = IntegersCodec(rows)
    string = codec.pack(numbers, SCALE)
    decoded = codec.decode_slice(string, shape) if string else torch.zeros(shape)
    assert decoded.dtype == torch.float32
    want = meaning(rows, numbers, SCALE)
    got = decoded.double()
    if rows == "rotated":  # rotated forth again they are the integers themselves
        got = rotate(got)
        assert torch.equal((got / stored_scale(SCALE)).round().to(torch.int32), numbers)
    spread = want.square().sum(1, keepdim=True).sqrt() if rows == "rotated" else want.abs()
    assert bool(((got - want).abs() <= 2.0**-22 * spread + 1e-30).all())


@EACH_KIND
@given(shape=SHAPES, size=st.sampled_from([0.3, 4.0, 300.0]), seed=st.integers(0, 99))
def test_the_independent_reader_agrees(rows, shape, size, seed):
    numbers = integers(shape, size, seed)
    numbers[0, 0] += 1
    codec = IntegersCodec(rows)
    string = codec.pack(numbers, SCALE)
    if string:
        record = codec_to_json(codec)
        theirs = minimal_reader.decode_string(record, string, shape)
        assert torch.equal(codec.decode_slice(string, shape), torch.from_numpy(theirs))


@EACH_KIND
@pytest.mark.parametrize("shape", [(300, 500), (64, 2048)])
def test_many_lanes_come_back(rows, shape):
    """Strings long enough for lanes, and wide ones with several blocks of a rotation."""
    numbers = integers(shape, 40.0, 1)
    numbers[:, :] = numbers[0].roll(3)
    numbers[1:] += integers((shape[0] - 1, shape[1]), 9.0, 2)
    codec = IntegersCodec(rows)
    string = codec.pack(numbers, SCALE)
    log = string[0 if rows == "unit" else 2] & 15
    assert log >= 7
    theirs = minimal_reader.decode_string(codec_to_json(codec), string, shape)
    assert torch.equal(codec.decode_slice(string, shape), torch.from_numpy(theirs))


@EACH_KIND
def test_encoding_floats_keeps_twenty_bits(rows):
    x = torch.randn((7, 90), generator=torch.Generator().manual_seed(1))
    x /= x.norm(dim=1, keepdim=True)
    codec = IntegersCodec(rows)
    decoded = codec.decode_slice(codec.encode_slice(x), (7, 90))
    assert float((decoded - x).abs().max()) < 2.0**-19


@EACH_KIND
def test_zeros_are_the_empty_string(rows):
    codec = IntegersCodec(rows)
    assert codec.encode_slice(torch.zeros(3, 9)) == b""
    assert codec.pack(torch.zeros(3, 9, dtype=torch.int32), 0.5) == b""


@pytest.mark.parametrize("step", [0.02, 0.3, 1.0])
def test_rounding_to_a_step_errs_by_at_most_half_of_it(step):
    x = torch.randn((40, 60), generator=torch.Generator().manual_seed(2))
    scale = stored_scale(step)
    codec = IntegersCodec("scaled")
    decoded = codec.decode_slice(codec.pack((x / scale).round(), scale), (40, 60))
    assert float((decoded - x).abs().max()) <= scale / 2 * (1 + 1e-6)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0, 60.0])
def test_size_is_the_entropy_of_the_integers(sigma):
    numbers = torch.randn((200, 300), generator=torch.Generator().manual_seed(3)) * sigma
    whole = numbers.round().to(torch.int32)
    shares = np.unique(whole.numpy(), return_counts=True)[1] / whole.numel()
    entropy = -float((shares * np.log2(shares)).sum())
    bits = 8 * len(IntegersCodec("scaled").pack(whole, 1.0)) / whole.numel()
    # tables are for scales that vary by 0.3 within a row, which one of a single scale pays for
    assert entropy - 0.01 < bits < 1.03 * entropy + 0.03


def test_unit_rows_have_norm_one_whatever_their_size():
    numbers = integers((10, 300), 1e6, 4)
    norms = unit_rows(numbers).double().norm(dim=1)
    assert bool(((norms - 1).abs() < 1e-6)[:-1].all())
    assert float(norms[-1]) == 0.0
    assert torch.equal(unit_rows(7 * numbers[:4]), unit_rows(numbers[:4]))


@pytest.mark.parametrize("scale", [1e-37, 1e-9, 1.0, 1e9, 1e36])
def test_scales_are_stored_with_eight_bits(scale):
    stored = stored_scale(scale)
    assert stored == stored_scale(stored)
    assert abs(stored - scale) <= 2.0**-8 * scale
    (word,) = struct.unpack("<H", IntegersCodec("scaled").pack(torch.tensor([[1]]), scale)[:2])
    assert float(torch.tensor([word << 16], dtype=torch.int32).view(torch.float32)) == stored


@EACH_KIND
def test_the_number_of_threads_changes_no_byte(rows):
    x = torch.randn((120, 700), generator=torch.Generator().manual_seed(5))
    codec = IntegersCodec(rows)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            string = codec.encode_slice(x)
            found.append((string, codec.decode_slice(string, (120, 700))))
    finally:
        torch.set_num_threads(before)
    assert all(string == found[0][0] for string, _ in found)
    assert all(torch.equal(values, found[0][1]) for _, values in found)


# --- what is refused -----------------------------------------------------------------------------


def attempt(codec: IntegersCodec, data: bytes, shape: tuple[int, int]) -> Tensor | None:
    """What comes back, None when it is refused as damaged; nothing else may happen."""
    with contextlib.suppress(ArtifactError):
        return codec.decode_slice(data, shape)
    return None


@EACH_KIND
def test_every_truncation_is_refused(rows):
    codec, numbers = IntegersCodec(rows), integers((9, 40), 30.0, 6)
    string = codec.pack(numbers, SCALE)
    assert all(attempt(codec, string[:end], (9, 40)) is None for end in range(1, len(string)))
    assert attempt(codec, string + b"\0", (9, 40)) is None


@EACH_KIND
@pytest.mark.parametrize("size", [0.7, 5.0, 3000.0])
def test_flipped_bits_are_refused_or_give_numbers(rows, size):
    """Digests (FORMAT.md §12) catch what decodes all the same."""
    codec, numbers = IntegersCodec(rows), integers((9, 40), size, 7)
    numbers[0, 0] += 1
    string = codec.pack(numbers, SCALE)
    for bit in range(8 * len(string)):
        damaged = bytearray(string)
        damaged[bit // 8] ^= 1 << bit % 8
        found = attempt(codec, bytes(damaged), (9, 40))
        assert found is None or (found.shape == (9, 40) and bool(torch.isfinite(found).all()))


@EACH_KIND
@given(data=st.binary(min_size=1, max_size=60))
def test_noise_is_refused_or_gives_numbers_as_the_independent_reader_does(rows, data):
    codec, shape = IntegersCodec(rows), (4, 9)
    found = attempt(codec, data, shape)
    theirs = None
    with contextlib.suppress(minimal_reader.DamagedError):
        theirs = minimal_reader.decode_string(codec_to_json(codec), data, shape)
    assert (found is None) == (theirs is None)
    if found is not None and theirs is not None:
        assert torch.equal(found, torch.from_numpy(theirs))


@EACH_KIND
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), size=st.sampled_from([0.7, 5.0, 3000.0]))
def test_both_readers_refuse_the_same_damage(rows, at, bit, size):
    codec, shape = IntegersCodec(rows), (9, 21)
    numbers = integers(shape, size, 8)
    numbers[0, 0] += 1
    damaged = bytearray(codec.pack(numbers, SCALE))
    damaged[at % len(damaged)] ^= 1 << bit
    found = attempt(codec, bytes(damaged), shape)
    theirs = None
    with contextlib.suppress(minimal_reader.DamagedError):
        theirs = minimal_reader.decode_string(codec_to_json(codec), bytes(damaged), shape)
    assert (found is None) == (theirs is None)
    if found is not None and theirs is not None:
        assert torch.equal(found, torch.from_numpy(theirs))


@pytest.mark.parametrize("word", [0x0000, 0x8000, 0x7F80, 0x7FC0, 0xBF80, 0xFF80])
def test_scales_that_are_no_positive_number_are_refused(word):
    string = IntegersCodec("scaled").pack(torch.tensor([[1, 2]]), 1.0)
    with pytest.raises(ArtifactError, match="scale"):
        IntegersCodec("scaled").decode_slice(struct.pack("<H", word) + string[2:], (1, 2))


@pytest.mark.parametrize("rows", ["scaled", "rotated"])
def test_numbers_beyond_float32_are_refused(rows):
    numbers = np.array([[2**31 - 1, -(2**31)]], np.int32)
    huge = struct.pack("<H", 0x7F7F) + encode(numbers)
    with pytest.raises(ArtifactError, match="float32"):
        IntegersCodec(rows).decode_slice(huge, (1, 2))


@EACH_KIND
def test_the_largest_integers_are_exact(rows):
    """Magnitudes of 2**31 have no positive counterpart in 32 bits, and squares near 2**62."""
    numbers = np.array([[-(2**31), 0, 5, 1]], np.int32)
    string = (b"" if rows == "unit" else struct.pack("<H", 0x3F80)) + encode(numbers)
    codec = IntegersCodec(rows)
    if rows == "unit":
        with pytest.raises(ArtifactError, match="norm 1"):
            codec.decode_slice(string, (1, 4))
        with pytest.raises(minimal_reader.DamagedError):
            minimal_reader.decode_string(codec_to_json(codec), string, (1, 4))
        return
    theirs = minimal_reader.decode_string(codec_to_json(codec), string, (1, 4))
    assert torch.equal(codec.decode_slice(string, (1, 4)), torch.from_numpy(theirs))


@pytest.mark.parametrize(("count", "refused"), [(15, False), (16, True), (64, True), (1000, True)])
def test_rows_whose_squares_leave_64_bits_are_refused(count, refused):
    """16 · (2**29)**2 = 2**62."""
    numbers = torch.full((1, count), 2**29, dtype=torch.int32)
    if refused:
        with pytest.raises(ArtifactError, match="norm 1"):
            unit_rows(numbers)
    else:
        assert torch.allclose(unit_rows(numbers), torch.tensor(1 / math.sqrt(count)))


@pytest.mark.parametrize(
    "config", [{}, {"rows": "turned"}, {"rows": None}, {"rows": "unit", "x": 1}, {"rows": ["unit"]}]
)
def test_unknown_parameters_are_refused(config):
    with pytest.raises(ArtifactError, match="integers"):
        codec_from_json({"name": "integers", "version": 1} | config)


def test_a_caller_is_told_the_choices():
    unknown: Any = "turned"
    with pytest.raises(ParameterError, match="turned"):
        IntegersCodec(unknown)


@EACH_KIND
def test_the_record_names_the_rows(rows):
    codec = IntegersCodec(rows)
    record = codec_to_json(codec)
    assert record == {"name": "integers", "version": 1, "rows": rows}
    assert codec_from_json(record) == codec
