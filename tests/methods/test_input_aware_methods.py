"""Scale-SVD, Iso-IASAD, and TIES and DARE by importance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from svd_hybrid.delta.expr import Dense, Sum
from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.iso_c import ISO_C
from svd_hybrid.methods.iso_cts import ISO_CTS
from svd_hybrid.methods.iso_iasad import ISO_IASAD
from svd_hybrid.methods.scale_svd import SCALE_SVD, ScaleSvdParams, selected
from svd_hybrid.methods.sparsegpt import SPARSEGPT_DARE, SPARSEGPT_TIES
from svd_hybrid.methods.steps.budgets import Choice, allocate
from svd_hybrid.methods.steps.decomposition import budget_of, decompose_one
from tests.methods.merging import context, merged, normal, relative, result_of, value
from tests.methods.streams import stream_of

DECOMPOSITIONS = pytest.mark.parametrize("method", [SCALE_SVD, ISO_IASAD], ids=lambda m: m.name)
IMPORTANCE = pytest.mark.parametrize(
    "method", [SPARSEGPT_TIES, SPARSEGPT_DARE], ids=lambda m: m.name
)


def moments(deltas, seed=5):
    """Per task positive second moments of the columns."""
    return [row.abs() + 0.1 for row in normal(len(deltas), deltas.shape[-1], seed=seed)]


def grams(deltas, seed=6):
    """Per task the Gram matrix of 50 inputs."""
    inputs = normal(len(deltas), 50, deltas.shape[-1], seed=seed)
    return list(inputs.mT @ inputs)


# --- Scale-SVD -----------------------------------------------------------------------------------


def test_parts_of_scale_svd_evaluate_to_its_decomposition():
    deltas = normal(3, 40, 60)
    ctx = context(deltas, statistics=moments(deltas))
    params = {"sparsity": 0.5, "rank_ratio": 0.5, "num_iters": 2}
    result = result_of(SCALE_SVD, deltas, ctx=ctx, **params)
    assert isinstance(result.task, Sum)
    small = sum(
        part.numel() * (1 / 32 if part.dtype == torch.bool else 1) for part in result.parts.values()
    )
    assert small < deltas.numel()
    tasks = [value(result, (40, 60), task) for task in range(3)]
    for task, (delta, moment) in enumerate(zip(deltas, ctx.statistics, strict=True)):
        alone = context(delta[None], statistics=[moment])
        assert relative(tasks[task], merged(SCALE_SVD, delta[None], ctx=alone, **params)) < 1e-6
    assert relative(value(result, (40, 60)), sum(tasks)) < 1e-6


def test_small_savings_are_stored_whole():
    deltas = normal(2, 6, 5)
    result = result_of(SCALE_SVD, deltas, input_scaling=False, sparsity=0.0)
    assert isinstance(result.task, Dense)


def test_vectors_and_excluded_names_are_kept_as_they_are():
    for name, deltas in (
        ("fc.bias", normal(2, 7)),
        ("text_projection", normal(2, 7, 6)),
        ("conv", normal(2, 4, 3, 2, 2)),
    ):
        result = result_of(SCALE_SVD, deltas, ctx=context(deltas, name))
        assert torch.equal(value(result, deltas.shape[1:], 1), deltas[1].double())


def test_masks_are_filled_up_to_equal_counts():
    sparse = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert selected(sparse, 3).tolist() == [[True, True], [True, False]]


@DECOMPOSITIONS
def test_missing_or_unusable_statistics_are_refused(method):
    deltas = normal(2, 8, 6)
    bad = [None, [torch.zeros(6)] * 2, [torch.ones(5)] * 2, [torch.full((6,), torch.nan)] * 2]
    for statistics in bad:
        with pytest.raises(ParameterError):
            result_of(method, deltas, ctx=context(deltas, statistics=statistics))


@DECOMPOSITIONS
def test_equal_moments_are_no_moments(method):
    deltas = normal(2, 12, 10)
    ctx = context(deltas, statistics=[torch.full((10,), 3.0)] * 2)
    assert (
        relative(merged(method, deltas, ctx=ctx), merged(method, deltas, input_scaling=False))
        < 1e-4
    )


@DECOMPOSITIONS
def test_a_dead_input_gives_finite_numbers(method):
    deltas = normal(2, 12, 10)
    found = moments(deltas)
    found[0][3] = 0
    for floor in ("relative", "absolute"):
        made = merged(method, deltas, ctx=context(deltas, statistics=found), floor=floor)
        assert torch.isfinite(made).all()


def test_matrices_stored_as_inputs_by_outputs_are_turned():
    deltas = normal(2, 8, 12)
    turned = deltas.mT.contiguous()
    found = moments(deltas)
    want = merged(SCALE_SVD, deltas, ctx=context(deltas, statistics=found))
    made = merged(SCALE_SVD, turned, ctx=context(turned, statistics=found), transposed=("fc.*",))
    assert relative(made.T, want) < 1e-5


def test_query_key_and_value_can_be_decomposed_one_by_one():
    deltas = normal(1, 36, 12)
    options = {"input_scaling": False, "split_qkv": True, "sparsity": 0.5}
    whole = merged(SCALE_SVD, deltas, ctx=context(deltas, "attn.in_proj_weight"), **options)
    for start in (0, 12, 24):
        block = deltas[:, start : start + 12]
        alone = merged(SCALE_SVD, block, ctx=context(block, "q"), **options)
        assert relative(whole[start : start + 12], alone) < 1e-5


# --- budgets -------------------------------------------------------------------------------------


def test_steps_are_taken_by_what_they_are_worth_within_the_budget():
    useful = Choice("a", (0.5, 1.0), (5, 10), (9.0, 0.0))
    useless = Choice("b", (0.5, 1.0), (5, 10), (9.0, 8.0))
    assert allocate([useless, useful], 15.0) == {"b": [0.5], "a": [1.0]}
    assert allocate([useless, useful], 20.0) == {"b": [1.0], "a": [1.0]}
    assert allocate([useless, useful], 14.0) == {"b": [0.5], "a": [0.5]}
    assert allocate([], 1.0) == {}


@DECOMPOSITIONS
def test_adaptive_budgets_lower_the_total_error_within_the_same_budget(method):
    quiet, loud = 0.01 * normal(2, 12, 10), normal(2, 12, 10, seed=3)
    tensors = {"loud.weight": loud, "quiet.weight": quiet, "quiet.bias": normal(2, 3)}
    stream = stream_of(tensors)
    options = {"sparsity": 0.5, "num_iters": 2, "input_scaling": False, "adaptive": True}
    params = method.params(**options)
    kept = method.scan(stream, params)
    assert set(kept) == {"loud.weight", "quiet.weight"}
    assert min(kept["loud.weight"]) > max(kept["quiet.weight"])
    assert method.scan(stream, replace(params, adaptive=False)) is None
    ctx = replace(context(loud, "loud.weight"), scan=kept)
    even = merged(method, loud, **(options | {"adaptive": False}))
    if method is SCALE_SVD:
        better = merged(method, loud, ctx=ctx, **options)
        assert float((better - loud.sum(0)).norm()) < float((even - loud.sum(0)).norm())


def test_a_decomposition_of_everything_is_exact():
    params = ScaleSvdParams(sparsity=0.0, rank_ratio=1.0, input_scaling=False)
    delta = normal(20, 4)
    found = decompose_one(delta, None, budget_of(params, 2.0), params, context(delta[None], "fc"))
    assert relative(found.whole, delta) < 1e-5


# --- Iso-IASAD -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "method"), [("iso-c", ISO_C), ("iso-cts", ISO_CTS)])
def test_exact_approximations_make_iasad_its_base_method(base, method):
    deltas = normal(3, 12, 9)
    exact = {"sparsity": 0.0, "rank_ratio": 0.0, "input_scaling": False, "merge_rule": base}
    for mode in ("right", "whole"):
        found = merged(ISO_IASAD, deltas, mode=mode, **exact)
        assert relative(found, merged(method, deltas)) < 1e-4


def test_legacy_mode_loses_what_the_tasks_share():
    shared = normal(12, 9)
    deltas = shared + 0.01 * normal(3, 12, 9, seed=1)
    options = {"input_scaling": False, "sparsity": 0.5}
    right = merged(ISO_IASAD, deltas, **options)
    legacy = merged(ISO_IASAD, deltas, mode="legacy", **options)
    assert float(legacy.norm()) < 0.05 * float(right.norm())


def test_iasad_of_vectors_is_their_mean():
    deltas = normal(3, 7)
    assert relative(merged(ISO_IASAD, deltas), deltas.mean(0)) < 1e-6


# --- importance ----------------------------------------------------------------------------------


@IMPORTANCE
@pytest.mark.parametrize("score", ["obs", "obs_seq", "wanda", "magnitude", "obs_squared"])
@pytest.mark.parametrize("scope", ["tensor", "row", "block"])
@pytest.mark.parametrize("compensate", [False, True])
def test_density_is_the_share_that_survives(method, score, scope, compensate):
    deltas = normal(1, 20, 30)
    ctx = context(deltas, statistics=grams(deltas))
    found = merged(
        method,
        deltas,
        ctx=ctx,
        density=0.3,
        score=score,
        scope=scope,
        compensate=compensate,
        blocksize=10,
    )
    share = float((found != 0).double().mean())
    assert share == pytest.approx(0.3, abs=0.04)
    if not compensate:
        assert torch.equal(found[found != 0], deltas[0].double()[found != 0])


@IMPORTANCE
def test_full_density_prunes_nothing(method):
    deltas = normal(1, 6, 8)
    for score in ("obs", "obs_seq"):
        ctx = context(deltas, statistics=grams(deltas))
        found = merged(method, deltas, ctx=ctx, density=1.0, score=score, compensate=True)
        assert torch.equal(found, deltas[0].double())


@IMPORTANCE
@pytest.mark.parametrize("shape", [(), (9,), (8, 5), (4, 3, 2, 2)])
def test_tensors_without_statistics_are_merged_by_magnitude_or_left_at_the_base(method, shape):
    deltas = normal(2, *shape)
    found = merged(method, deltas, density=0.5)
    assert found.any() or not shape
    assert not merged(method, deltas, density=0.5, others="base").any()


def test_dare_sums_and_ties_averages_what_agrees():
    deltas = torch.tensor([[[4.0, 1.0, -2.0]], [[2.0, 1.0, 3.0]]])
    assert merged(SPARSEGPT_DARE, deltas, density=1.0).tolist() == [[6, 2, 1]]
    assert merged(SPARSEGPT_TIES, deltas, density=1.0).tolist() == [[3, 1, 3]]


@IMPORTANCE
def test_importance_of_turned_matrices_is_turned(method):
    deltas = normal(2, 8, 12)
    turned = deltas.mT.contiguous()
    found = grams(deltas)
    want = merged(method, deltas, ctx=context(deltas, statistics=found))
    made = merged(method, turned, ctx=context(turned, statistics=found), transposed=("fc.*",))
    assert torch.equal(made.T, want)
    with pytest.raises(ParameterError, match="inputs for"):
        merged(method, turned, ctx=context(turned, statistics=found))


def test_patterns_keep_n_of_every_m_columns():
    deltas = normal(1, 6, 16)
    ctx = context(deltas, statistics=grams(deltas))
    found = merged(SPARSEGPT_DARE, deltas, ctx=ctx, score="obs_seq", pattern="1:4")
    assert (found.reshape(6, 4, 4).count_nonzero(dim=2) == 1).all()


def test_draws_are_unbiased_repeatable_and_do_not_depend_on_order():
    deltas = normal(1, 10, 10)
    ctx = context(deltas, statistics=grams(deltas))
    options = {"selection": "sample", "density": 0.4}
    draws = [merged(SPARSEGPT_DARE, deltas, ctx=ctx, seed=seed, **options) for seed in range(400)]
    assert torch.equal(draws[0], merged(SPARSEGPT_DARE, deltas, ctx=ctx, seed=0, **options))
    assert relative(torch.stack(draws).mean(0), deltas[0]) < 0.1
    share = torch.stack(draws).count_nonzero() / 400 / 100
    assert float(share) == pytest.approx(0.4, abs=0.01)


def test_rescaling_divides_by_the_density_or_by_what_was_kept():
    deltas = normal(1, 10, 10)
    plain = merged(SPARSEGPT_DARE, deltas, density=0.25)
    for rescale in ("density", "kept"):
        made = merged(SPARSEGPT_DARE, deltas, density=0.25, rescale=rescale)
        assert relative(made, 4 * plain) < 1e-6


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (SCALE_SVD, {"sparsity": 1.0}),
        (SCALE_SVD, {"rank_ratio": 1.5}),
        (SCALE_SVD, {"num_iters": 0}),
        (SCALE_SVD, {"pattern": "4:2"}),
        (ISO_IASAD, {"common_space_fraction": -0.1}),
        (ISO_IASAD, {"mode": "wrong"}),
        (SPARSEGPT_TIES, {"density": 0.0}),
        (SPARSEGPT_TIES, {"percdamp": 0.0}),
        (SPARSEGPT_TIES, {"blocksize": 0}),
        (SPARSEGPT_TIES, {"pattern": "2:4"}),
        (SPARSEGPT_DARE, {"selection": "sample", "score": "obs_seq"}),
    ],
)
def test_illegal_parameters_are_refused(method, values):
    with pytest.raises(ParameterError):
        method.params(**values)
