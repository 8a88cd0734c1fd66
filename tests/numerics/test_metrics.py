"""Running error sums, and the one-thread block."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.numerics.metrics import ErrorSums
from svd_hybrid.numerics.threads import one_thread


def pair(seed: int, count: int = 40) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=random, dtype=torch.float64)
    return x, x * 0.9 + 0.1 * torch.randn(count, generator=random, dtype=torch.float64)


def sums_of(*blocks: tuple[Tensor, Tensor]) -> ErrorSums:
    sums = ErrorSums()
    for original, rebuilt in blocks:
        sums.add(original, rebuilt)
    return sums


@given(seed=st.integers(0, 999), cut=st.integers(0, 40))
def test_blocks_merge_to_the_sums_of_the_whole(seed, cut):
    x, y = pair(seed)
    whole = sums_of((x, y)).as_json()
    merged = sums_of((x[:cut], y[:cut]))
    merged.merge(sums_of((x[cut:], y[cut:])))
    for found in (sums_of((x[:cut], y[:cut]), (x[cut:], y[cut:])), merged):
        assert found.as_json() == pytest.approx(whole)


@given(seed=st.integers(0, 999))
def test_sums_give_the_norms_they_are_named_after(seed):
    x, y = pair(seed)
    facts = sums_of((x, y)).as_json()
    assert facts["absolute_error"] == pytest.approx(float((y - x).norm()))
    assert facts["relative_error"] == pytest.approx(float((y - x).norm() / x.norm()))
    assert facts["max_absolute_error"] == float((y - x).abs().max())
    assert facts["mean_absolute_error"] == pytest.approx(float((y - x).abs().mean()))
    assert facts["original_norm"] == pytest.approx(float(x.norm()))
    assert facts["reconstructed_norm"] == pytest.approx(float(y.norm()))
    assert math.hypot(facts["shrink"], facts["noise"]) == pytest.approx(facts["relative_error"])


def test_lost_signal_is_shrink_and_added_noise_is_noise():
    x = torch.tensor([3.0, 0.0])
    assert sums_of((x, 0.5 * x)).as_json()["shrink"] == 0.5
    assert sums_of((x, 0.5 * x)).as_json()["noise"] == 0
    added = sums_of((x, torch.tensor([3.0, 1.5]))).as_json()
    assert (added["shrink"], added["noise"]) == (0.0, 0.5)


def test_nothing_rebuilt_from_nothing_is_no_error_and_something_has_no_ratio():
    zero = torch.zeros(3)
    assert sums_of((zero, zero)).relative_error == 0
    assert sums_of((zero, zero + 1)).relative_error is None
    assert sums_of((zero, zero + 1)).shrink is None
    assert ErrorSums().relative_error == 0
    assert ErrorSums().as_json()["mean_absolute_error"] == 0


def test_empty_blocks_count_nothing():
    assert sums_of((torch.zeros(0), torch.zeros(0))) == ErrorSums()


def test_one_thread_restores_the_count_even_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def fail_inside() -> None:
        with one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError("inside")

    try:
        with pytest.raises(RuntimeError, match="inside"):
            fail_inside()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
