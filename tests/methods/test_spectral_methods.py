"""Iso-C, Iso-CTS, TSV-M and TSV-Compress: worked examples, and what must hold for all deltas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.delta.expr import Dense, LowRank
from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.iso_c import ISO_C
from svd_hybrid.methods.iso_cts import ISO_CTS, split
from svd_hybrid.methods.tsv_compress import TSV_COMPRESS
from svd_hybrid.methods.tsv_m import TSV_M
from tests.methods.merging import context, merged, normal, of_rank, relative, result_of, value

B1 = [[2.0, 0, 1], [0, 1, 0], [1, 0, 3], [1, 1, 0]]
B2 = [[0.0, 1, 1], [2, 0, 1], [0, 3, 0], [1, 0, -1]]
B3 = [[1.0, 2, 0], [0, 0, 1], [1, -1, 2], [0, 2, 1]]
SHARED = pytest.mark.parametrize("method", [ISO_C, ISO_CTS, TSV_M], ids=lambda m: m.name)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 14), st.integers(1, 14))
SEEDS = st.integers(0, 999)


# --- worked examples of methods.md §26 -----------------------------------------------------------


def test_iso_c_of_a_two_by_two_matrix():
    found = merged(ISO_C, torch.tensor([[[3.0, 0], [4, 5]]]))
    assert torch.allclose(found, torch.tensor([[4.0, -2], [2, 4]]).double(), atol=1e-6)


@pytest.mark.parametrize("null_space", ["drop", "ref"])
def test_worked_example_of_iso_c(null_space):
    want = [
        [2.4311885, 1.4722608, 0.2606630],
        [3.1641305, -1.4065275, 0.7915773],
        [-0.6753742, 1.1562476, 3.8337967],
        [0.4949389, 3.3377709, -1.1094851],
    ]
    found = merged(ISO_C, torch.tensor([B1, B2, B3]), null_space=null_space)
    assert torch.allclose(found, torch.tensor(want).double(), atol=2e-6)


@pytest.mark.parametrize("variant", ["eigen", "svd"])
def test_worked_example_of_tsv_m(variant):
    want = [
        [1.4772929, 1.8596915, 0.6224894],
        [-2.1185107, 2.2156874, -1.3935697],
        [-0.5163801, 0.7071267, 3.1514135],
        [1.9370377, 0.9081227, -0.2888251],
    ]
    found = merged(TSV_M, torch.tensor([B1, B2, B3]), variant=variant)
    assert torch.allclose(found, torch.tensor(want).double(), atol=5e-6)


@pytest.mark.parametrize("null_space", ["drop", "ref"])
def test_worked_example_of_iso_cts(null_space):
    want = [
        [0.4998664, 2.0994713, 0.1680959],
        [3.2761129, -0.5937266, 0.3441644],
        [-0.1234820, 1.3188136, 2.8169796],
        [0.4864415, 2.1760273, -1.7755494],
    ]
    deltas = torch.tensor([B1, B2])
    found = merged(ISO_CTS, deltas, common_space_fraction=0.4, null_space=null_space)
    assert torch.allclose(found, torch.tensor(want).double(), atol=5e-6)


def test_worked_example_of_tsv_compress():
    want = [
        [1.0986055, 0.0962603, 1.6095093],
        [0.0277804, 0.0024341, 0.0406996],
        [1.7105489, 0.1498791, 2.5060356],
        [0.3448339, 0.0302145, 0.5051980],
    ]
    result = result_of(TSV_COMPRESS, torch.tensor([B1]), rank_fraction=0.34)
    assert torch.allclose(value(result, (4, 3), 0), torch.tensor(want).double(), atol=2e-6)


@pytest.mark.parametrize(
    ("size", "tasks", "fraction", "want"),
    [(768, 8, 0.8, (616, 19)), (768, 14, 0.8, (614, 11)), (768, 20, 0.8, (608, 8))],
)
def test_directions_are_split_as_published(size, tasks, fraction, want):
    assert split(size, tasks, fraction) == want


def test_the_common_space_is_never_negative_unlike_the_published_code():
    assert split(768, 14, 0.0) == (12, 54)


# --- what holds for all --------------------------------------------------------------------------


@SHARED
@given(shape=SHAPES, seed=SEEDS)
def test_permuted_tasks_give_the_same_merge(method, shape, seed):
    deltas = normal(*shape, seed=seed)
    turned = merged(method, deltas.flip(0))
    assert torch.allclose(turned, merged(method, deltas), atol=2e-3 * float(deltas.norm()))


@SHARED
@pytest.mark.parametrize("factor", [1e-20, 0.125, 3e8])
def test_scaling_all_deltas_scales_the_merge(method, factor):
    deltas = normal(3, 12, 9)
    assert relative(merged(method, deltas * factor), factor * merged(method, deltas)) < 1e-5


@SHARED
@pytest.mark.parametrize("null_space", ["drop", "ref"])
def test_zero_deltas_merge_to_zero(method, null_space):
    assert not merged(method, torch.zeros(3, 8, 5), null_space=null_space).any()


@SHARED
def test_one_frozen_task_does_not_disturb_the_others(method):
    deltas = normal(3, 12, 9)
    deltas[1] = 0
    assert torch.isfinite(merged(method, deltas)).all()


def test_tsv_m_of_one_task_is_that_task():
    deltas = normal(1, 7, 9)
    assert relative(merged(TSV_M, deltas), deltas[0]) < 1e-5


def test_iso_c_of_one_task_has_its_directions_and_one_singular_value():
    deltas = normal(1, 9, 6)
    u, s, vh = torch.linalg.svd(deltas[0].double(), full_matrices=False)
    assert relative(merged(ISO_C, deltas), s.mean() * (u @ vh)) < 1e-5


def test_identical_tasks_merge_to_a_multiple_of_one():
    one = normal(1, 12, 12)
    several = one.expand(4, -1, -1).contiguous()
    assert relative(merged(ISO_C, several), 4 * merged(ISO_C, one)) < 1e-4


def test_iso_cts_without_room_for_tasks_is_iso_c():
    deltas = normal(3, 10, 8)
    whole = merged(ISO_CTS, deltas, common_space_fraction=1.0)
    assert relative(whole, merged(ISO_C, deltas)) < 1e-5


@SHARED
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_deltas_of_low_rank_bring_no_noise_directions(method, shape):
    deltas = of_rank(5, 2, *shape)
    found = merged(method, deltas)
    for axis in (0, 1):
        joined = torch.cat(list(deltas if axis == 0 else deltas.mT), dim=1).double()
        u, s, _ = torch.linalg.svd(joined, full_matrices=False)
        space = u[:, s > 1e-5 * s[0]]
        assert space.shape[1] == 10
        one_side = found if axis == 0 else found.T
        assert relative(space @ (space.T @ one_side), one_side) < 1e-5
    noise = normal(2, *shape, seed=9) * deltas.abs().mean() * 2**-24
    assert relative(merged(method, deltas + noise), found) < 1e-4


@SHARED
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_the_rounding_of_checkpoints_is_no_direction_either(method, shape):
    base = normal(*shape, seed=7)
    deltas = 0.01 * of_rank(5, 2, *shape)
    rounded = (base + deltas) - base
    assert relative(rounded, deltas) > 1e-7
    ctx = replace(context(rounded), base=base)
    found = merged(method, rounded, ctx=ctx)
    assert int((torch.linalg.svdvals(found) > 1e-5 * torch.linalg.svdvals(found)[0]).sum()) == 10
    assert relative(found, merged(method, deltas)) < 1e-3


@SHARED
def test_deltas_of_low_rank_merge_to_factors(method):
    result = result_of(method, of_rank(2, 2, 30, 40))
    assert isinstance(result.merged, LowRank)
    assert sum(part.numel() for part in result.parts.values()) < 30 * 40


@SHARED
def test_vectors_excluded_names_and_convolutions_are_averaged(method):
    deltas = normal(3, 8, 6)
    excluded = merged(method, deltas, ctx=context(deltas, "text_projection"))
    assert relative(excluded, deltas.mean(0)) < 1e-6
    for shape in [(), (5,), (6, 3, 2, 2)]:
        stack = normal(3, *shape)
        assert relative(merged(method, stack), stack.mean(0)) < 1e-6


@SHARED
def test_convolutions_can_be_merged_as_matrices(method):
    stack = normal(3, 6, 3, 2, 2)
    flat = merged(method, stack.flatten(2)).reshape(6, 3, 2, 2)
    assert relative(merged(method, stack, conv="matricize"), flat) < 1e-6


@SHARED
def test_float64_deltas_stay_float64(method):
    deltas = normal(2, 9, 7).double()
    result = result_of(method, deltas)
    assert all(part.dtype == torch.float64 for part in result.parts.values())
    assert relative(value(result, (9, 7)), merged(method, deltas.float())) < 1e-5


@pytest.mark.parametrize("null_space", ["drop", "ref"])
def test_the_mean_singular_value_can_leave_out_the_zero_ones(null_space):
    deltas = of_rank(2, 1, 10, 10)
    over_all = merged(ISO_C, deltas)
    over_rank = merged(ISO_C, deltas, sigma_mean_over="rank")
    assert relative(over_rank, 5 * over_all) < 1e-5


def test_tsv_m_without_orthogonalising_is_the_sum_of_truncations():
    deltas = normal(2, 9, 8)
    u, s, vh = torch.linalg.svd(deltas.double(), full_matrices=False)
    want = ((u[:, :, :4] * s[:, None, :4]) @ vh[:, :4]).sum(0)
    assert relative(merged(TSV_M, deltas, orthogonalize=False), want) < 1e-5


@given(shape=SHAPES, seed=SEEDS)
def test_truncated_tasks_are_best_approximations(shape, seed):
    deltas = normal(*shape, seed=seed)
    result = result_of(TSV_COMPRESS, deltas, energy=0.8)
    for task, delta in enumerate(deltas):
        s = torch.linalg.svdvals(delta.double())
        rest = value(result, shape[1:], task) - delta
        assert rest.norm().square() <= (0.2 + 1e-5) * s.square().sum()


def test_truncated_tasks_are_stored_as_factors_only_where_that_is_smaller():
    deltas = normal(4, 20, 30)
    assert isinstance(result_of(TSV_COMPRESS, deltas).task, LowRank)
    assert isinstance(result_of(TSV_COMPRESS, deltas, rank_fraction=1.0).task, Dense)
    assert isinstance(result_of(TSV_COMPRESS, normal(4, 20)).task, Dense)


def test_a_merge_of_truncated_tasks_is_their_sum():
    deltas = normal(3, 20, 30)
    result = result_of(TSV_COMPRESS, deltas)
    tasks: list[Tensor] = [value(result, (20, 30), task) for task in range(3)]
    assert relative(value(result, (20, 30)), sum(tasks, start=torch.zeros(()))) < 1e-6


def test_rank_cap_caps_the_energy_rule():
    result = result_of(TSV_COMPRESS, normal(2, 20, 30), energy=1.0, rank_cap=3)
    assert result.parts["coeff_left"].shape == (2, 3, 20)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (ISO_C, {"null_space": "fill"}),
        (ISO_C, {"scaling": float("nan")}),
        (ISO_CTS, {"common_space_fraction": 1.5}),
        (TSV_M, {"rank_fraction": 0.0}),
        (TSV_COMPRESS, {"energy": 2.0}),
        (TSV_COMPRESS, {"rank_cap": -1}),
    ],
)
def test_illegal_parameters_are_refused(method, values):
    with pytest.raises(ParameterError):
        method.params(**values)
