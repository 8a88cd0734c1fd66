"""Levels and cuts against sorting, and trimmed stacks against masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from svd_hybrid.numerics import magnitudes
from svd_hybrid.numerics.magnitudes import kth_largest, levels_of_stream
from svd_hybrid.numerics.trim import ALL_TIES, Cut, Trim, cut_of, cuts_of_stream, kept, kept_of_rows
from svd_hybrid.numerics.trimmed import ByCut, ByMask, trimmed_by

COARSE = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
)
RANK_RULES = ["exact", "threshold", "threshold-k", "threshold-drop", "above-drop"]


def vector(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 1e-3


@pytest.mark.parametrize("size", [1, 2, 1000, 200_000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.999, 1.0])
def test_kth_largest_is_that_of_sorting(size, share):
    values = vector(size)
    rank = min(size, 1 + int(share * size))
    level = kth_largest(values, rank)
    assert level.value == values.abs().sort(descending=True).values[rank - 1]
    assert level.equal == int((values.abs() == level.value).sum())
    assert level.missing == rank - int((values.abs() > level.value).sum())


@pytest.mark.parametrize("kind", ["constant", "sorted", "two values", "mostly zero", "periodic"])
def test_kth_largest_needs_no_luck_with_its_sample(kind):
    size = 300_000
    values = {
        "constant": torch.full((size,), -2.0),
        "sorted": torch.arange(size).float(),
        "two values": (torch.arange(size) % 2 + 1).float(),
        "mostly zero": torch.where(torch.arange(size) < 10, 1.0, 0.0),
        "periodic": (torch.arange(size) % 768).float(),
    }[kind]
    for rank in (1, 5, size // 5, size // 2, size):
        level = kth_largest(values, rank)
        assert level.value == values.abs().sort(descending=True).values[rank - 1]
        assert level.missing == rank - int((values.abs() > level.value).sum())


def test_a_missed_bracket_falls_back_to_a_partition(monkeypatch):
    monkeypatch.setattr(magnitudes, "SPREAD", -1.0)
    values = vector(200_000)
    expected = values.abs().sort(descending=True).values[39_999]
    assert kth_largest(values, 40_000).value == expected


@given(COARSE, st.data())
def test_a_stream_has_the_level_of_the_whole(array, data):
    values = torch.from_numpy(array)
    rank = data.draw(st.integers(1, len(array)))
    at = data.draw(st.integers(0, len(array)))
    pieces = [(values[None, :at], None), (values[None, at:], None)]
    assert levels_of_stream(pieces, [rank]) == [kth_largest(values, rank)]


@given(COARSE, st.floats(0.01, 1.0), st.sampled_from(RANK_RULES))
def test_what_each_rule_keeps(array, density, rule):
    values = torch.from_numpy(array)
    n, magnitude = len(array), np.abs(array)
    ascending = np.sort(magnitude)
    count, dropped = int(n * density), int(n * round(1 - density, 12))
    if density == 1.0:
        expected = np.ones(n, bool)
    elif rule == "exact":
        expected = np.zeros(n, bool)
        expected[np.argsort(-magnitude, kind="stable")[:count]] = True
    elif rule == "threshold":
        expected = magnitude >= ascending[n - count - 1]
    elif rule == "threshold-k":
        expected = magnitude >= (ascending[n - count] if count else math.inf)
    elif not dropped:
        expected = np.ones(n, bool)
    else:
        level = ascending[dropped - 1]
        expected = magnitude >= level if rule == "threshold-drop" else magnitude > level
    assert kept(values, cut_of(values, Trim(rule, density))).tolist() == expected.tolist()
    rows = torch.stack([values, values.flip(0)])
    by_rows = kept_of_rows(rows, Trim(rule, density))
    assert by_rows[0].tolist() == expected.tolist()
    assert by_rows[1].tolist() == kept(rows[1], cut_of(rows[1], Trim(rule, density))).tolist()
    cut = cuts_of_stream([(values[None], None)], [Trim(rule, density)], n)[0]
    assert kept(values, cut).tolist() == expected.tolist()


@given(COARSE, st.floats(0.01, 0.99))
def test_a_norm_share_is_reached_with_the_fewest(array, share):
    values = torch.from_numpy(array)
    mask = kept(values, cut_of(values, Trim("norm-share", share)))
    squares = values.double().square()
    total = float(squares.sum())
    if not total:
        assert not mask.any()
        return
    descending = squares.sort(descending=True).values.cumsum(0)
    needed = int((descending < share * total * (1 - 1e-12)).sum()) + 1
    assert int(mask.sum()) == needed
    assert squares[mask].min() >= squares[~mask].max() if needed < len(values) else True


def test_a_norm_share_of_one_keeps_all_and_its_fault_keeps_the_last():
    values = torch.tensor([3.0, 1.0, 2.0, 0.5])
    assert kept(values, cut_of(values, Trim("norm-share", 1.0))).all()
    faulty = kept(values, cut_of(values, Trim("norm-share-last", 0.8)))
    assert faulty.tolist() == [True, False, True, True]


def test_deviations_are_unbiased_and_from_the_mean():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert kept(values, cut_of(values, Trim("std", 1.0))).tolist() == [False, False, False, True]
    assert not kept(values[:1], cut_of(values[:1], Trim("std", 0.0))).any()


def test_drop_rates_are_read_as_written():
    values = torch.arange(1, 101).float()
    mask = kept(values, cut_of(values, Trim("above-drop", 1 - 0.29)))
    assert int(mask.sum()) == 100 - int(100 * 0.29)


@given(
    COARSE, st.sampled_from([0.0, 0.5, 1.0, 3.0, math.inf]), st.sampled_from([0, 1, 2, ALL_TIES])
)
def test_a_stack_by_cut_is_a_stack_by_mask(array, level, ties):
    values = torch.from_numpy(array)[None]
    cut = Cut(level, 0 if math.isinf(level) else ties)
    by_cut, mask = trimmed_by(values, [cut]), kept(values[0], cut)
    assert isinstance(by_cut, ByCut)
    by_mask = ByMask(values, mask[None], [False])
    half = values.shape[1] // 2
    for start, stop in ((0, half), (half, values.shape[1])):
        assert torch.equal(by_cut.columns(start, stop).clone(), by_mask.columns(start, stop))


def test_float64_is_ranked_by_its_rounding_and_kept_as_it_is():
    values = torch.tensor([1.0 + 1e-12, 1.0, 0.5, 2.0], dtype=torch.float64)
    cut = cut_of(values, Trim("exact", 0.5))
    block = trimmed_by(values[None], [cut]).columns(0, 4)
    assert block.tolist() == [[1.0 + 1e-12, 0.0, 0.0, 2.0]]
