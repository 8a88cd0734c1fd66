"""The alternating low-rank + sparse decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.numerics.lowrank_sparse import (
    Budget,
    decompose,
    smallest,
    sparsified,
    weighted_error,
)

W = torch.tensor([[2.0, 1, 0, -1], [1, 3, 1, 0], [0, 1, -2, 4]])
SCALE = torch.tensor([4.0, 1, 0.25, 1]).sqrt()


@pytest.mark.parametrize(
    ("rounds", "refit", "want"),
    [(1, False, 2.0166742), (2, False, 1.4956943), (10, False, 1.4493264), (10, True, 1.4476569)],
)
def test_worked_example(rounds, refit, want):
    """Of methods.md §26."""
    budget = Budget(0.9, 0.75)
    assert budget.rank(3, 4) == 1
    assert int(4 * budget.zeros) == 3
    found = decompose(W, SCALE, budget, rounds, refit=refit)
    assert weighted_error(W, found, SCALE) ** 0.5 == pytest.approx(want, rel=1e-6)


def test_sparse_part_of_the_worked_example():
    found = decompose(W, SCALE, Budget(0.9, 0.75), 10, refit=False)
    want = torch.zeros(3, 4)
    want[0, 1], want[1, 1], want[2, 3] = -1.8116075, 1.6538226, 4.0924379
    assert torch.allclose(found.sparse, want, atol=1e-5)


@given(
    values=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4),
    count=st.integers(0, 6),
)
def test_smallest_is_the_head_of_a_stable_sort(values, count):
    numbers = torch.tensor(values, dtype=torch.float32)
    want = torch.zeros_like(numbers, dtype=torch.bool)
    want.scatter_(1, numbers.argsort(dim=1, stable=True)[:, :count], True)
    assert torch.equal(smallest(numbers, count), want)


@pytest.mark.parametrize("scope", ["row", "global"])
def test_the_sparse_part_keeps_its_share(scope):
    x = normal(10, 20)
    kept = sparsified(x, Budget(0.5, 0.5, scope))
    assert int(kept.count_nonzero()) == 10 * 20 * 0.25
    if scope == "row":
        assert (kept.count_nonzero(dim=1) == 5).all()
    assert kept[kept != 0].abs().min() >= 0.5 * x[kept == 0].abs().max() or scope == "row"


def test_a_pattern_keeps_n_of_every_m_columns():
    budget = Budget(1.0, 0.25, pattern=(2, 4))
    kept = sparsified(normal(5, 10), budget)
    groups = [kept[:, start : start + 4].count_nonzero(dim=1) for start in (0, 4, 8)]
    assert all((count == 2).all() for count in groups)
    assert budget.rank(60, 60) == int(0.25 * (0.5 / 0.75) * 60 * 60 / 120)


@pytest.mark.parametrize("scope", ["row", "global"])
def test_more_rounds_and_a_refit_never_hurt(scope):
    x = normal(20, 30)
    budget = Budget(0.6, 0.5, scope)
    made = [decompose(x, None, budget, rounds, refit=False) for rounds in (1, 3, 9)]
    errors = [weighted_error(x, found, None) for found in made]
    assert errors == sorted(errors, reverse=True)
    assert weighted_error(x, decompose(x, None, budget, 9, refit=True), None) <= errors[-1]


def test_scalars_count_what_is_stored():
    found = decompose(normal(20, 30), None, Budget(0.5, 0.5), 2, refit=True)
    assert found.scalars == 3 * (20 + 30) + 20 * 8


def test_zeros_decompose_to_zeros():
    assert not decompose(torch.zeros(4, 5), None, Budget(0.9, 0.75), 2, refit=True).whole.any()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
