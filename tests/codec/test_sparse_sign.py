"""`sparse-sign`: ternary matrices as gaps in Golomb-Rice code and signs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.codec import SparseSignCodec
from svd_hybrid.errors import ArtifactError

CODEC = SparseSignCodec()


def ternary(shape: tuple[int, int], density: float, seed: int, scale: float = 0.25) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    signs = torch.randn(shape, generator=random).sign() * scale
    x = torch.where(torch.rand(shape, generator=random) < density, signs, 0.0)
    x[-1, seed % shape[1]] = -scale
    return x


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    density=st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.97, 1.0]),
    seed=st.integers(0, 999),
)
def test_a_ternary_matrix_comes_back_as_it_is(shape, density, seed):
    x = ternary(shape, density, seed)
    assert torch.equal(CODEC.decode_slice(CODEC.encode_slice(x), shape), x)


def test_other_magnitudes_become_their_mean():
    x = torch.tensor([[0.0, 3.0, 0.0, -1.0]])
    assert CODEC.decode_slice(CODEC.encode_slice(x), (1, 4)).tolist() == [[0.0, 2.0, 0.0, -2.0]]


def test_a_worked_string():
    """Scale 1, 2 kept, 1 low bit, signs 2; gaps 3 and 2: low parts 1 and 0, unary 01 and 01."""
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, -1.0, 0.0]])
    assert CODEC.encode_slice(x).hex() == "0000803f020000000102010a"


@pytest.mark.parametrize("density", [0.002, 0.05, 0.2])
def test_size_is_near_that_of_the_papers_golomb_code(density):
    """1 + bits of an ideal Golomb code per kept scalar, which is within 4 % of the entropy."""
    x = ternary((500, 800), density, 5)
    kept = int(torch.count_nonzero(x))
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    expected = x.numel() * entropy + kept
    assert 8 * len(CODEC.encode_slice(x)) < 1.03 * expected + 100


@pytest.mark.parametrize("scale", [1e-40, 1e-9, 1e9, 2.0**99])
def test_scales_of_any_size(scale):
    x = ternary((4, 30), 0.3, 6, scale)
    assert torch.equal(CODEC.decode_slice(CODEC.encode_slice(x), (4, 30)), x)


def test_decoding_refuses_what_is_not_as_the_format_says():
    shape = (6, 50)
    data = CODEC.encode_slice(ternary(shape, 0.1, 7))
    broken = [
        data[:5],
        data[:9],
        data[:-1],
        data + b"\0",
        data + b"\1",
        data[:4] + (2**31).to_bytes(4, "little") + data[8:],
        data[:4] + bytes(4) + data[8:],
        data[:8] + b"\x21" + data[9:],
        b"\0\0\x80\x7f" + data[4:],
        b"\0\0\xc0\x7f" + data[4:],
    ]
    for damaged in broken:
        with pytest.raises(ArtifactError):
            CODEC.decode_slice(damaged, shape)
    with pytest.raises(ArtifactError, match="outside"):
        CODEC.decode_slice(data, (3, 50))


@given(data=st.binary(min_size=1, max_size=60))
def test_any_bytes_are_decoded_or_refused(data):
    try:
        x = CODEC.decode_slice(data, (4, 9))
    except ArtifactError:
        return
    assert x.shape == (4, 9)
