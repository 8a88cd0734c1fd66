"""Masks, one bit a scalar."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.codec import BitmaskCodec


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40)),
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_masks_come_back_exactly(shape, seed, share):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    codec = BitmaskCodec()
    arrays = codec.encode(mask)
    assert {name: tuple(array.shape) for name, array in arrays.items()} == codec.layout(shape)
    decoded = codec.decode(arrays, shape)
    assert decoded.dtype == torch.bool
    assert torch.equal(decoded, mask)


def test_the_first_scalar_is_the_lowest_bit():
    mask = torch.tensor([[[1, 0, 1, 1, 0, 0, 0, 1, 1]]], dtype=torch.bool)
    assert BitmaskCodec().encode(mask)["bits"].tolist() == [[[0b10001101, 1]]]
