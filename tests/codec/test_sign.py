"""`sign`: one bit a scalar and the mean magnitude of its row or slice."""

from __future__ import annotations

import pytest
import torch

from svd_hybrid.codec import SignCodec
from svd_hybrid.errors import ArtifactError

X = torch.tensor([[[1.0, -3.0, 0.0], [0.5, 0.5, -0.5]]])


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_row_is_its_signs_times_its_mean_magnitude():
    arrays = SignCodec("row").encode(X)
    assert arrays["bits"].tolist() == [[[2], [4]]]
    decoded = SignCodec("row").decode(arrays, (1, 2, 3))
    third = float(torch.tensor(4 / 6).half()) * 2  # scaled by 2 before it is rounded
    assert decoded.tolist() == [[[third, -third, third], [0.5, 0.5, -0.5]]]


def test_a_slice_has_one_scale_and_one_long_row_of_bits():
    arrays = SignCodec("slice").encode(X)
    assert {name: tuple(a.shape) for name, a in arrays.items()} == {
        "bits": (1, 1, 1),
        "scale": (1, 1),
        "exponent": (1,),
    }
    assert arrays["bits"].item() == 0b100010
    decoded = SignCodec("slice").decode(arrays, (1, 2, 3))
    assert decoded.abs().unique().tolist() == [float(torch.tensor(5.5 / 6).half())]


@pytest.mark.parametrize("scale", ["row", "slice"])
def test_no_other_scale_has_a_smaller_squared_error(scale):
    x = normal(2, 4, 50, seed=1)
    decoded = SignCodec(scale).decode(SignCodec(scale).encode(x), (2, 4, 50))
    error = (decoded - x).square().sum()
    for factor in (0.99, 1.01):
        assert (decoded * factor - x).square().sum() > error


@pytest.mark.parametrize("scale", ["row", "slice"])
def test_bytes_are_a_bit_a_scalar_and_two_a_scale(scale):
    arrays = SignCodec(scale).encode(normal(3, 5, 21, seed=2))
    size = sum(array.numel() * array.element_size() for array in arrays.values())
    assert size == 3 * (5 * (3 + 2) + 2 if scale == "row" else 14 + 2 + 2)


@pytest.mark.parametrize("scale", ["row", "slice"])
def test_the_number_of_threads_changes_no_bit(scale):
    x = normal(2, 3, 40000, seed=3)
    one = SignCodec(scale).encode(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = SignCodec(scale).encode(x)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[name], several[name]) for name in one)


@pytest.mark.parametrize("config", [{}, {"scale": "tensor"}, {"scale": ["row"]}, {"scale": None}])
def test_illegal_parameters_are_refused(config):
    with pytest.raises(ArtifactError, match="sign"):
        SignCodec.from_config(config)
