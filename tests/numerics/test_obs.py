"""Saliency, sequential pruning with compensation, drawing, and statistics of inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.numerics import obs
from svd_hybrid.numerics.moments import InputMoments, mean_variance

GRAM = torch.tensor([[4.0, 1], [1, 2]])
W = torch.tensor([[1.0, 1.5]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("score", "want"),
    [
        ("obs", [3.5, 3.9375]),
        ("obs_seq", [3.5, 4.5]),
        ("obs_squared", [12.25, 6.890625]),
        ("wanda", [2.0, 1.5 * 2**0.5]),
        ("magnitude", [1.0, 1.5]),
    ],
)
def test_worked_saliency(score, want):
    """Of methods.md §26."""
    found = obs.scores(W, score, obs.prepared(GRAM, 1e-12))
    assert torch.allclose(found, torch.tensor([want]).double(), rtol=1e-6)


def test_the_remaining_entry_makes_up_for_the_pruned_one():
    hessian = obs.prepared(GRAM, 1e-12)
    pruned = obs.prune(W, hessian, torch.tensor([[True, False]]), 128)
    assert torch.allclose(pruned, torch.tensor([[0.0, 2.0]]))
    change = (pruned - W).double()
    assert float(change @ GRAM.double() @ change.T) / 2 == pytest.approx(1.75, rel=1e-6)


def test_preparing_leaves_the_gram_matrix_alone_and_repairs_dead_inputs():
    gram = torch.diag(torch.tensor([2.0, 0.0, 1.0]))
    before = gram.clone()
    hessian = obs.prepared(gram, 0.01)
    assert torch.equal(gram, before)
    assert hessian.dead.tolist() == [False, True, False]
    assert torch.allclose(obs.prepared(before.diagonal(), 0.01).factor, hessian.factor)
    assert obs.scores(torch.ones(1, 3), "obs", hessian)[0, 1] == 0
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert obs.prune(torch.ones(1, 3), hessian, nothing, 2).tolist() == [[1, 0, 1]]
    assert obs.prune(torch.ones(1, 3), hessian, nothing, 2, zero_dead=False).sum() == 3


@given(block=st.integers(1, 9), seed=st.integers(0, 99))
def test_block_size_does_not_matter_for_a_given_selection(block, seed):
    x, w = normal(30, 8, seed=seed), normal(5, 8, seed=seed + 1)
    hessian = obs.prepared(x.T @ x, 0.01)
    pruned = normal(5, 8, seed=seed + 2) > 0
    one = obs.prune(w, hessian, pruned, 8)
    assert torch.allclose(obs.prune(w, hessian, pruned, block), one, atol=1e-5)


def test_compensation_lowers_the_error_of_the_outputs():
    x = normal(200, 24) @ normal(24, 24, seed=1)
    w = normal(16, 24, seed=2)
    hessian = obs.prepared(x.T @ x, 0.01)
    made = obs.prune(w, hessian, obs.below_threshold(0.5), 8)
    plain = w.masked_fill(made == 0, 0.0)
    assert float((x @ (made - w).T).norm()) < 0.8 * float((x @ (plain - w).T).norm())


def test_a_grid_holds_zero_and_its_rounding_is_made_up_for():
    w = normal(6, 8)
    grid = obs.RowGrid.of(w, 4)
    assert not grid(torch.zeros(6)).any()
    hessian = obs.prepared(torch.eye(8), 0.01)
    nothing = torch.zeros(6, 8, dtype=torch.bool)
    stored = obs.prune(w, hessian, nothing, 8, rounding=grid)
    assert ((stored - w).abs() <= grid.scale[:, None] / 2 * 1.001).all()
    assert not obs.RowGrid.of(torch.zeros(2, 3), 4)(torch.zeros(2)).any()


@given(
    scores=st.lists(st.sampled_from([0.0, 1e-6, 0.5, 1.0, 4.0, 1e6]), min_size=1, max_size=20),
    density=st.floats(0.05, 1.0),
)
def test_chances_have_the_density_as_mean_and_follow_the_score(scores, density):
    scored = torch.tensor(scores, dtype=torch.float64)
    chance = obs.keep_probabilities(scored, density)
    assert ((chance >= 0) & (chance <= 1)).all()
    assert ((chance > 0) == (scored > 0)).all()
    reachable = min(density, float((scored > 0).double().mean()))
    assert float(chance.mean()) == pytest.approx(reachable, rel=1e-9)
    order = scored.argsort(stable=True)
    assert (chance[order].diff() >= -1e-12).all()


@given(cut=st.integers(1, 11), kind=st.sampled_from(["moment", "gram"]))
def test_moments_do_not_depend_on_batches(cut, kind):
    x = normal(12, 5)
    whole, parts = InputMoments(kind), InputMoments(kind)
    whole.add(x.reshape(3, 4, 5))
    parts.add(x[:cut])
    parts.add(x[cut:])
    assert torch.allclose(whole.mean, parts.mean)
    want = x.T @ x / 12
    assert torch.allclose(whole.mean, want if kind == "gram" else want.diagonal(), atol=1e-6)


def test_sequences_are_the_first_axis_of_three_and_one_otherwise():
    moments = InputMoments("moment", count="sequence")
    moments.add(torch.ones(2, 7, 3))
    moments.add(torch.ones(5, 3))
    assert moments.samples == 3
    assert torch.allclose(moments.mean, torch.full((3,), 19 / 3))


def test_no_inputs_give_no_moments():
    with pytest.raises(ValueError, match="no inputs"):
        _ = InputMoments("moment").mean


def test_variance_ignores_the_mean_of_the_inputs():
    x = normal(6, 2, 4)
    assert torch.allclose(mean_variance([x]), mean_variance([x + 100]), atol=1e-4)
