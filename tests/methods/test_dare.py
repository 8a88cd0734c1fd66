"""DARE: masks that depend on names only, rescales, and the merges after the drop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.dare import DARE_LINEAR, DARE_TIES, DareLinearParams, DareTiesParams
from svd_hybrid.methods.steps.dropping import DropParams, dropped
from svd_hybrid.methods.ties import TIES
from svd_hybrid.numerics import blocks
from tests.methods.streams import Stream, merged, random_stacks, stream_of

BOTH = pytest.mark.parametrize("method", [DARE_LINEAR, DARE_TIES], ids=lambda m: m.name)


@BOTH
def test_masks_depend_on_seed_and_names_not_on_order_or_neighbours(method):
    stream = stream_of(random_stacks(0))
    got = merged(method, stream)
    backwards = Stream(stream.items[::-1])
    alone = Stream(stream.items[1:2])
    for other in (merged(method, backwards), merged(method, alone)):
        assert all(torch.equal(other[name], got[name]) for name in other)
    assert any(not torch.equal(x, got[name]) for name, x in merged(method, stream, seed=1).items())


def test_a_task_keeps_its_mask_when_tasks_are_permuted():
    stacks = random_stacks(1)
    stream = stream_of(stacks)
    order = [2, 0, 1]
    turned = Stream(
        [(x[order], replace(ctx, tasks=tuple(ctx.tasks[i] for i in order))) for x, ctx in stream]
    )
    for (x, ctx), (y, other) in zip(stream, turned, strict=True):
        assert torch.equal(dropped(x, DropParams(), ctx)[order], dropped(y, DropParams(), other))


def test_block_size_changes_no_mask(monkeypatch):
    stream = stream_of(random_stacks(1))
    before = merged(DARE_LINEAR, stream)
    monkeypatch.setattr(blocks, "CHUNK", 3)
    after = merged(DARE_LINEAR, stream)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_drop_is_unbiased_and_keeps_its_share(density):
    deltas = torch.ones(2, 100_000)
    _, ctx = stream_of({"x": deltas}).items[0]
    sparse = dropped(deltas, DropParams(density=density), ctx)
    share = sparse.count_nonzero(1) / 100_000
    assert share.tolist() == pytest.approx([density, density], abs=0.01)
    assert sparse.mean(1).tolist() == pytest.approx([1.0, 1.0], rel=0.03)
    assert set(sparse.unique().tolist()) == {0.0, float(torch.tensor(1.0) / density)}


@BOTH
def test_the_edges_of_density(method):
    stacks = random_stacks(2, tasks=1)
    stream = stream_of(stacks)
    for rescale in ("none", "inverse_density", "l1_match"):
        whole = merged(method, stream, density=1.0, rescale=rescale)
        assert all(torch.equal(whole[name], stacks[name][0].double()) for name in stacks)
        empty = merged(method, stream, density=0.0, rescale=rescale)
        assert not any(delta.any() for delta in empty.values())


def test_given_masks_are_applied_and_rescaled():
    deltas = torch.tensor([[1.0, -2.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    masks = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    stream = stream_of({"x": deltas}, masks={"x": masks}, weights=(1.0, 0.5))
    assert merged(DARE_LINEAR, stream, density=0.25)["x"].tolist() == [4.0, -8.0, 4.0, 4.0]
    l1 = merged(DARE_LINEAR, stream, rescale="l1_match")["x"].tolist()
    assert l1 == [2.0, -4.0, 2.0, 2.0]
    average = merged(DARE_LINEAR, stream, rescale="none", merge="average")["x"]
    assert average.tolist() == pytest.approx([1 / 1.5, -2 / 1.5, 1 / 1.5, 1 / 1.5])


def test_l1_match_leaves_a_delta_alone_that_vanishes():
    deltas = torch.zeros(2, 4)
    deltas[1, 0] = 1.0
    masks = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.bool)
    stream = stream_of({"x": deltas}, masks={"x": masks})
    assert not merged(DARE_LINEAR, stream, rescale="l1_match")["x"].any()


@settings(max_examples=20)
@given(st.integers(0, 30), st.sampled_from(["global", "tensor", "row"]), st.booleans())
def test_dare_ties_is_ties_of_the_dropped_deltas(seed, scope, extra_trim):
    stream = stream_of(random_stacks(seed))
    sparse = {ctx.name: dropped(x, DropParams(), ctx) for x, ctx in stream}
    after = {"trim_scope": scope, "zero_sign": "majority"}
    got = merged(DARE_TIES, stream, extra_trim=extra_trim, trim_density=0.3, **after)
    expected = merged(TIES, stream_of(sparse), density=0.3 if extra_trim else 1.0, **after)
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_densities_of_single_tasks_belong_to_the_drop():
    deltas = torch.ones(2, 10_000)
    stream = stream_of({"x": deltas}, densities=(0.1, 1.0), weights=(1.0, 0.0))
    kept = merged(DARE_LINEAR, stream, rescale="none")["x"]
    assert int(kept.sum()) == pytest.approx(1000, abs=150)
    stream = stream_of({"x": deltas}, densities=(0.1, 1.0))
    assert merged(DARE_TIES, stream, extra_trim=True, trim_density=1.0)["x"].all()


def test_scaling_depends_on_the_merge_unless_set():
    assert (DareLinearParams().scaling, DareLinearParams(merge="average").scaling) == (0.3, 1.0)
    assert (DareTiesParams().scaling, DareTiesParams(merge_func="sum").scaling) == (1.0, 0.5)
    assert DareTiesParams(scaling=0.1).scaling == 0.1


@pytest.mark.parametrize("params", [DareLinearParams, DareTiesParams])
@pytest.mark.parametrize("values", [{"density": 1.1}, {"rescale": "l2"}, {"seed": -1}])
def test_parameters_outside_their_range_are_refused(params, values):
    with pytest.raises(ParameterError, match=next(iter(values))):
        params(**values)
