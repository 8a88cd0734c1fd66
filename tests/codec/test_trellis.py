"""`trellis`: what is searched comes back, in fewer bits than plain rounding; what it refuses."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.codec import TrellisCodec, codec_from_json, codec_to_json
from svd_hybrid.codec.entropy import Classes, decode, prepare
from svd_hybrid.codec.entropy.alphabet import CLASSES
from svd_hybrid.codec.entropy.tables import TOTAL
from svd_hybrid.codec.entropy.trellis_laws import TRELLIS_LAWS
from svd_hybrid.codec.entropy.trellis_paths import NEXT
from svd_hybrid.codec.entropy.trellis_search import PRICE, search
from svd_hybrid.codec.entropy.trellis_sources import index_bits, indices, trellis_law
from svd_hybrid.codec.integers import scale_bits
from svd_hybrid.codec.trellis import ROWS, Searched, searched
from svd_hybrid.compress.profiles.auto.coded_rest import plain_rest
from svd_hybrid.compress.profiles.auto.trellis_rest import relative_noise
from svd_hybrid.errors import ArtifactError, ParameterError
from tests.format import minimal_reader

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 70))
EACH_KIND = pytest.mark.parametrize("rows", ROWS)
SCALE = 0.5


def normal(shape: tuple[int, int], size: float, seed: int) -> Tensor:
    """(m, n), rows of several scales, the last one all zero."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random) * size
    x *= 2.0 ** -torch.arange(shape[0])[:, None].clamp_max(20)
    if shape[0] > 1:
        x[-1] = 0
    return x


def string_of(found: Searched) -> bytes:
    written = found.prepared.written()
    return scale_bits(SCALE) + written if written else b""


def attempt(codec: TrellisCodec, data: bytes, shape: tuple[int, int]) -> Tensor | None:
    """What comes back, None when it is refused as damaged; nothing else may happen."""
    with contextlib.suppress(ArtifactError):
        return codec.decode_slice(data, shape)
    return None


def both_read_alike(codec: TrellisCodec, data: bytes, shape: tuple[int, int]) -> None:
    found, theirs = attempt(codec, data, shape), None
    with contextlib.suppress(minimal_reader.DamagedError):
        theirs = minimal_reader.decode_string(codec_to_json(codec), data, shape)
    assert (found is None) == (theirs is None)
    if found is not None and theirs is not None:
        assert torch.equal(found, torch.from_numpy(theirs))


# --- what comes back -----------------------------------------------------------------------------


@EACH_KIND
@given(
    shape=SHAPES,
    size=st.sampled_from([0.5, 3.0, 40.0, 1e6]),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 99),
)
def test_what_was_chosen_comes_back(rows, shape, size, zeros, seed):
    x = normal(shape, size, seed)
    x[torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < zeros] = 0
    found = searched(x)
    string = string_of(found)
    assert bool(string) == bool(found.halves.any())
    if string:
        plain = TrellisCodec("scaled").decode_slice(string, shape)
        assert torch.equal(plain, (found.halves * SCALE).float())
        both_read_alike(TrellisCodec(rows), string, shape)


@given(shape=SHAPES, seed=st.integers(0, 99), size=st.sampled_from([2.0, 60.0, 1e5]))
def test_without_a_price_every_number_is_within_a_step(shape, seed, size):
    x = normal(shape, size, seed)
    assert bool(((searched(x, price=0.0).halves - x).abs() <= 2.0).all())


@EACH_KIND
@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_a_matrix_is_kept_to_21_bits(rows, factor):
    x = normal((7, 300), factor, 3)
    codec = TrellisCodec(rows)
    error = (codec.decode_slice(codec.encode_slice(x), (7, 300)) - x).abs().max()
    assert float(error / x.abs().max()) < 4e-6


@pytest.mark.parametrize("shape", [(1, 1), (1, 129), (129, 1), (3, 1000)])
def test_edges(shape):
    """Constants, one number alone, duplicate rows, columns of differing scale."""
    spike = torch.zeros(shape)
    spike[-1, -1] = -1e5
    wavy = normal(shape, 5.0, 1) * 2.0 ** (torch.arange(shape[1]) % 7)
    for x in (torch.full(shape, 3.0), spike, wavy, torch.ones(shape) * wavy[:1]):
        found = searched(x)
        assert torch.equal(
            TrellisCodec().decode_slice(string_of(found), shape), found.halves * SCALE
        )


def test_many_lanes_read_as_the_independent_reader_does():
    x = torch.randn((96, 1500), generator=torch.Generator().manual_seed(5)) * 6
    x[40:] *= 0.3
    string = string_of(searched(x))
    assert len(string) > 40_000
    assert string[2] & 15 >= 7
    both_read_alike(TrellisCodec(), string, (96, 1500))


# --- how good it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "least"), [(2.2, 0.06), (1.4, 0.06), (1.0, 0.05), (0.6, 0.03)])
def test_gaussian_numbers_take_fewer_bits_than_plain_rounding(step, least):
    random = torch.Generator().manual_seed(2)
    x = torch.randn((300, 400), generator=random)
    x *= torch.exp(0.3 * torch.randn((300, 1), generator=random))
    found = searched(x / (step / 2))
    noise, plain_step = relative_noise(found.halves, x), step
    for _ in range(6):
        numbers = (x / plain_step).round()
        plain_step *= (noise / relative_noise(numbers, x)) ** 0.4
    numbers = (x / plain_step).round()
    assert relative_noise(numbers, x) == pytest.approx(noise, rel=0.01)
    assert found.prepared.bits < (1 - least) * plain_rest(numbers, 1.0).prepared.bits
    assert found.prepared.bits / 8 == pytest.approx(len(found.prepared.written()), rel=0.01)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), count=st.integers(1, 4), size=st.sampled_from([1.0, 3.0]))
def test_no_other_path_is_cheaper(seed, count, size):
    """Against every sequence of indices near the values."""
    values = np.random.default_rng(seed).normal(0, size, (1, count)).astype(np.float32)
    classes = Classes(np.array([15], np.uint8))
    chosen, _ = search(values, classes)
    near = range(-2 - int(np.abs(values).max()), 3 + int(np.abs(values).max()))
    costs: dict[tuple[int, tuple[int, ...]], float] = {(0, ()): 0.0}
    for value in values[0].tolist():
        further: dict[tuple[int, tuple[int, ...]], float] = {}
        for (state, path), cost in costs.items():
            for k in near:
                half = 2 * k - int(np.sign(k)) * (state & 1)
                bits = index_bits()[15, state & 1, min(abs(k), 32)]
                after = int(NEXT[state, min(abs(k), trellis_law(15).reach) & 1])
                total = cost + (value - half) ** 2 + PRICE * float(bits)
                further[after, (*path, k)] = total
        costs = dict(sorted(further.items(), key=lambda item: item[1])[:400])
    (_, least), total = min(costs.items(), key=lambda item: item[1])
    mine = next((cost for (_, path), cost in costs.items() if path == tuple(chosen[0])), None)
    assert tuple(chosen[0]) == least or mine == pytest.approx(total, rel=1e-4)


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", range(1, CLASSES))
def test_tables_are_whole(c):
    pair = indices(c).pair
    assert (pair.freqs > 0).all()
    assert pair.freqs.reshape(2, -1).sum(axis=1).tolist() == [TOTAL, TOTAL]
    assert len(pair.slots[0]) == 2 * TOTAL
    assert trellis_law(c) is TRELLIS_LAWS[min(c, 20) - 1]


def test_every_state_is_reached_by_two_ways():
    assert np.bincount(NEXT.ravel()).tolist() == [2] * 8


# --- what is refused -----------------------------------------------------------------------------


@EACH_KIND
def test_truncations_are_refused(rows):
    """All but one in a hundred, which end in state 0 by chance: digests catch it."""
    codec, string = TrellisCodec(rows), string_of(searched(normal((9, 40), 30.0, 6)))
    read = [attempt(codec, string[:end], (9, 40)) for end in range(1, len(string))]
    assert sum(found is not None for found in read) <= len(string) / 100
    assert attempt(codec, string + b"\0", (9, 40)) is None


@EACH_KIND
@pytest.mark.parametrize("size", [2.0, 3000.0])
def test_both_readers_refuse_the_same_damage(rows, size):
    codec, string = TrellisCodec(rows), string_of(searched(normal((9, 21), size, 8)))
    for bit in range(0, 8 * len(string), 3):
        damaged = bytearray(string)
        damaged[bit // 8] ^= 1 << bit % 8
        both_read_alike(codec, bytes(damaged), (9, 21))


@EACH_KIND
@given(data=st.binary(min_size=1, max_size=60))
def test_noise_is_refused_or_gives_numbers_as_the_independent_reader_does(rows, data):
    both_read_alike(TrellisCodec(rows), data, (4, 9))


def test_a_doubled_index_beyond_32_bits_is_refused():
    matrix = np.array([[2**30, 5]], np.int32)
    string = prepare(matrix, Classes(np.array([20], np.uint8)), trellis=True).written()
    with pytest.raises(ArtifactError, match="int32"):
        decode(string, (1, 2), trellis=True)


@pytest.mark.parametrize("word", [0x0000, 0x7F80, 0xBF80])
def test_scales_that_are_no_positive_number_are_refused(word):
    string = string_of(searched(normal((2, 9), 9.0, 1)))
    with pytest.raises(ArtifactError, match="scale"):
        TrellisCodec().decode_slice(struct.pack("<H", word) + string[2:], (2, 9))


def test_parameters():
    assert codec_from_json(codec_to_json(TrellisCodec("rotated"))) == TrellisCodec("rotated")
    with pytest.raises(ParameterError, match="rows"):
        TrellisCodec("unit")  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="rows"):
        TrellisCodec.from_config({"rows": "unit"})
