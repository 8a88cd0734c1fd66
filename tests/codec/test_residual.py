"""What is particular to the multi-stage affine codec."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.codec import ResidualAffineCodec
from svd_hybrid.codec.affine import compute_scale, dequantize, join_groups, quantize, split_groups

SEEDS = st.integers(0, 9999)
BITS = st.integers(1, 8)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def round_trip(codec: ResidualAffineCodec, x: Tensor) -> Tensor:
    return codec.decode(codec.encode(x), tuple(x.shape)).double()


@given(n=st.integers(1, 40), size=st.integers(0, 12), seed=SEEDS)
def test_groups_join_to_the_row_they_were_cut_from(n, size, seed):
    rows = normal(2, 3, n, seed=seed)
    groups = split_groups(rows, size)
    assert groups.shape == (2, 3, -(-n // (size or n)), size or n)
    assert torch.equal(join_groups(groups, n), rows)
    whole = [list(row.split(size or n)) for row in rows.flatten(0, 1)]
    lows = torch.stack([torch.stack([part.min() for part in parts]) for parts in whole])
    assert torch.equal(groups.amin(-1).flatten(0, 1), lows)  # the filling changes no minimum


@given(bits=BITS, seed=SEEDS, offset=st.floats(-100, 100), size=st.floats(1e-3, 1))
def test_one_stage_is_the_asymmetric_formula(bits, seed, offset, size):
    """methods.md §17: s = (2**b - 1) / range, z = -round(s * min), q = round(s * x + z)."""
    x = (offset + size * normal(1, 1, 30, seed=seed)).clamp(-128, 128) / 128
    step, zero = compute_scale(x, bits, torch.float32)
    low, high = float(x.min()), float(x.max())
    scale = (2**bits - 1) / (high - low)
    assert float(step) == pytest.approx(1 / scale)
    codes = quantize(x, step, zero, bits)
    assert int(codes.min()) >= 0
    assert int(codes.max()) <= 2**bits - 1
    error = (dequantize(codes, step, zero) - x).abs().max()
    assert float(error) <= 1 / scale / 2 * (1 + 1e-9)


@given(bits=BITS, seed=SEEDS)
def test_zero_is_exact_where_a_group_straddles_it(bits, seed):
    x = normal(1, 1, 30, seed=seed)
    x[0, 0, 7] = 0
    assert float(round_trip(ResidualAffineCodec(bits), x)[0, 0, 7]) == 0


@pytest.mark.parametrize("values", [(5.0, 6.0), (-6.0, -5.0), (1e6, 1e6 + 1)])
def test_the_zero_point_is_not_clamped_for_values_on_one_side(values):
    """An intermediate revision of the original did clamp it, and [5, 6] decoded to 1."""
    x = torch.tensor(values).reshape(1, 1, 2)
    codec = ResidualAffineCodec(4, 1, 0, "F32")
    largest = float(x.abs().max())
    assert torch.allclose(round_trip(codec, x), x.double(), rtol=0, atol=1 / 30 + 2**-23 * largest)


@given(bits=BITS, seed=SEEDS)
def test_another_stage_never_raises_the_largest_error(bits, seed):
    x = normal(2, 3, 50, seed=seed)
    errors = [
        float((round_trip(ResidualAffineCodec(bits, stages), x) - x).abs().max())
        for stages in (1, 2, 3)
    ]
    rounding = 2.0**-23 * float(x.abs().max())
    assert errors[1] <= errors[0] + rounding
    assert errors[2] <= errors[1] + rounding


@given(bits=st.sampled_from([1, 2, 4]), seed=SEEDS)
def test_two_stages_are_a_little_worse_than_one_of_twice_the_bits(bits, seed):
    """methods.md §20: what stages buy is that the first decodes alone, not accuracy."""
    x = normal(1, 1, 4000, seed=seed)
    two = (round_trip(ResidualAffineCodec(bits, 2, 0, "F32"), x) - x).norm()
    one = (round_trip(ResidualAffineCodec(2 * bits, 1, 0, "F32"), x) - x).norm()
    assert float(two) > 0.9 * float(one)


def test_the_first_stage_decodes_alone():
    x = normal(2, 3, 70, seed=1)
    two = ResidualAffineCodec(3, 2).encode(x)
    one = ResidualAffineCodec(3, 1).encode(x)
    assert all(torch.equal(two[name].double(), array.double()) for name, array in one.items())


@pytest.mark.parametrize(
    ("value", "dtype"), [(1.0, torch.int8), (1000.0, torch.int16), (1e6, torch.int32)]
)
def test_zeros_are_stored_in_the_narrowest_integers_that_hold_them(value, dtype):
    x = torch.tensor([[[value, value + 0.5]]])
    arrays = ResidualAffineCodec(4, 1, 0, "F32").encode(x)
    assert arrays["stage0.zero"].dtype == dtype


def test_a_group_far_smaller_than_its_slice_is_not_flushed():
    """FP16 steps round up to their smallest number, not down to 0."""
    x = torch.cat([torch.ones(1, 1, 64), 1e-6 * normal(1, 1, 64, seed=2).float()], dim=2)
    decoded = round_trip(ResidualAffineCodec(8), x)
    error = float((decoded[..., 64:] - x[..., 64:]).abs().max())
    assert error <= 2.0**-24  # half of the smallest FP16 step of a slice of unit 2
