"""`zstd-affine`: groupwise symmetric codes, packed and compressed."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.codec import ZstdAffineCodec, zstd_affine
from svd_hybrid.errors import ArtifactError, ParameterError

BITS = pytest.mark.parametrize("bits", range(2, 9))


def normal(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def coded(codec: ZstdAffineCodec, x: torch.Tensor) -> torch.Tensor:
    return codec.decode_slice(codec.encode_slice(x), (x.shape[0], x.shape[1]))


def group_maxima(x: torch.Tensor, size: int) -> torch.Tensor:
    """The largest magnitude of the group each scalar is in."""
    flat = x.double().flatten().abs()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)
    return padded.amax(1, keepdim=True).expand_as(padded).flatten()[: flat.numel()].reshape(x.shape)


@BITS
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    group=st.sampled_from([1, 3, 7, 64]),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-40, 1e-30, 1e-9, 1.0, 1e9, 2.0**97]),
)
def test_error_is_at_most_half_a_step(bits, shape, group, seed, scale):
    """Steps are rounded upwards; with 2 and 3 bits a group may be cut off at REACH."""
    x = normal(*shape, seed=seed, scale=scale).clamp(-4 * scale, 4 * scale)
    codec = ZstdAffineCodec(bits, group)
    decoded = coded(codec, x)
    assert torch.isfinite(decoded).all()
    largest, levels = group_maxima(x, group), 2 ** (bits - 1) - 1
    step = (largest / levels) * (1 + 2.0**-10) + 2.0**-24 * 2 * float(x.abs().max())
    bound = 0.501 * step + 2.0**-149
    if bits in zstd_affine.REACH:
        bound = torch.maximum(bound, 0.5 * largest)
    assert ((decoded.double() - x.double()).abs() <= bound).all()


@BITS
@pytest.mark.parametrize("group", [1, 5, 64])
def test_the_size_of_working_blocks_changes_no_bit(bits, group, monkeypatch):
    x = normal(7, 33, seed=4)
    codec = ZstdAffineCodec(bits, group)
    data = codec.encode_slice(x)
    decoded = coded(codec, x)
    for size in (1, 100):
        monkeypatch.setattr(zstd_affine, "BLOCK_SCALARS", size)
        assert codec.encode_slice(x) == data
        assert torch.equal(codec.decode_slice(data, (7, 33)), decoded)


@BITS
def test_one_number_among_zeros_is_kept_and_so_are_the_zeros(bits):
    x = torch.zeros(20, 30)
    x[11, 4] = -0.37
    decoded = coded(ZstdAffineCodec(bits), x)
    assert int(torch.count_nonzero(decoded)) == 1
    assert float(decoded[11, 4]) == pytest.approx(-0.37, rel=1e-3)


def test_a_worked_string():
    """Exponent 1; the step 3.5 / 3 / 2 rounded up is 0x38ab; codes 3 -1 0 as digits 6 2 3 3."""
    data = ZstdAffineCodec(3, 4).encode_slice(torch.tensor([[1.75, -0.5, 0.1]]))
    assert struct.unpack("<h", data[:2]) == (1,)
    plain = zstd_affine.decompress_exactly(zstd_affine.MAGIC + data[2:], 4)
    step = int.from_bytes(plain[:2], "big")
    assert np.array([step], np.uint16).view(np.float16)[0] >= 1.75 / 2 / 3 * 0.8
    assert list(plain[2:]) == [6 | 2 << 3, 3 | 3 << 3]


@pytest.mark.parametrize("exponent", [-60, -3, 5, 90])
def test_codes_do_not_depend_on_the_power_of_two_the_numbers_are_scaled_by(exponent):
    x = normal(5, 77, seed=6)
    codec = ZstdAffineCodec(4, 16)
    assert torch.equal(coded(codec, x * 2.0**exponent), coded(codec, x) * 2.0**exponent)


def test_strides_and_float_types_do_not_matter():
    x = normal(9, 40, seed=7).half()
    codec = ZstdAffineCodec(4)
    assert codec.encode_slice(x.double()) == codec.encode_slice(x)
    assert codec.encode_slice(x.T.contiguous().T) == codec.encode_slice(x)


def test_decoding_refuses_what_is_not_as_the_format_says():
    codec = ZstdAffineCodec(4, 16)
    data = codec.encode_slice(normal(4, 20, seed=8))
    for damaged in (data[:1], data[:-1], data + b"\0", b"\xff\x03" + data[2:], data[:2] + b"\0"):
        with pytest.raises(ArtifactError):
            codec.decode_slice(damaged, (4, 20))
    with pytest.raises(ArtifactError, match="bytes"):
        codec.decode_slice(data, (4, 40))
    infinite = bytes([0x7C] * 5 + [0] * 5 + [0x77] * 40)
    frame = zstd_affine.compress(infinite, 1, with_size=False).removeprefix(zstd_affine.MAGIC)
    with pytest.raises(ArtifactError, match="step is not finite"):
        codec.decode_slice(b"\0\0" + frame, (4, 20))


def test_parameters_out_of_range_are_refused():
    for bits, group in ((1, 64), (9, 64), (4, 0), (4, 2**20 + 1)):
        with pytest.raises(ParameterError):
            ZstdAffineCodec(bits, group)
        with pytest.raises(ArtifactError):
            ZstdAffineCodec.from_config({"bits": bits, "group_size": group})


def test_a_hundred_megabytes_a_second_and_thread():
    """Several times that on an idle core, so a busy machine does not matter."""
    x = normal(1024, 4096, seed=9, scale=1e-3)
    codec = ZstdAffineCodec(4)
    best = float("inf")
    for _ in range(5):
        start = time.thread_time()
        codec.encode_slice(x)
        best = min(best, time.thread_time() - start)
    assert x.numel() * 4 / best > 100e6
