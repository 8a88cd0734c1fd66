"""`tucker`: two bases and a core; mixes of tasks, exactness, shapes that do not fit."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.delta.evaluate import Mix, TensorParts, evaluate
from svd_hybrid.delta.expr import Dense, Sum, Tucker, parts_of, renamed, weights_of
from svd_hybrid.delta.serial import expr_from_json, expr_to_json
from svd_hybrid.errors import ArtifactError, VersionError
from svd_hybrid.numerics import reproducible

EXPR = Tucker("left", "core", "right")
TASKS = 3
NAMES = ("left", "core", "right")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parts(
    m: int, n: int, p: int, q: int, stacked: tuple[str, ...] = ("core",), seed: int = 0
) -> TensorParts:
    shapes = {"left": (p, m), "core": (p, q), "right": (q, n)}
    return TensorParts(
        {
            name: normal(*((TASKS,) if name in stacked else ()), *shape, seed=seed + place)
            for place, (name, shape) in enumerate(shapes.items())
        }
    )


def value(source: TensorParts, mix: Mix, shape: tuple[int, int], limbs: int = 1) -> Tensor:
    return evaluate(Tucker(*NAMES, limbs), source, mix, shape).rows(0, shape[0])


def plain(source: TensorParts, task: int) -> Tensor:
    """In float64, with the inner product rounded as the format says."""
    left, core, right = (
        (part[task] if part.ndim == 3 else part).double() for part in source.parts.values()
    )
    return left.T @ core @ right


EVERY_STACKING = [stacked for count in range(4) for stacked in itertools.combinations(NAMES, count)]


@pytest.mark.parametrize("limbs", [1, 2])
@given(m=st.integers(1, 30), n=st.integers(1, 30), p=st.integers(1, 9), q=st.integers(1, 9))
def test_a_task_is_the_product_of_its_three_factors(limbs, m, n, p, q):
    source = parts(m, n, p, q)
    for task in range(TASKS):
        want = plain(source, task)
        got = value(source, Mix({task: 1.0}), (m, n), limbs)
        assert got.dtype == torch.float64
        assert float((got - want).abs().max()) <= 3e-6 * (1 + float(want.abs().max()))


@pytest.mark.parametrize("stacked", EVERY_STACKING, ids="+".join)
def test_a_mix_is_the_sum_of_the_tasks(stacked):
    source, shape = parts(11, 13, 4, 3, stacked), (11, 13)
    mix = Mix({0: 0.5, 1: -1.25, 2: 2.0})
    want = sum(weight * plain(source, task) for task, weight in mix.weights.items())
    assert isinstance(want, Tensor)
    got = value(source, mix, shape)
    assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())


@pytest.mark.parametrize("stacked", [s for s in EVERY_STACKING if len(s) > 1], ids="+".join)
def test_products_of_several_stacked_parts_are_summed_task_by_task(stacked):
    source, shape = parts(11, 13, 4, 3, stacked), (11, 13)
    alone = [value(source, Mix({task: 1.0}), shape) for task in range(TASKS)]
    got = value(source, Mix({0: 0.5, 2: -1.25}), shape)
    assert torch.equal(got, 0.5 * alone[0] + -1.25 * alone[2])


def test_a_shared_product_counts_once_for_every_unit_of_weight():
    source, shape = parts(5, 6, 2, 3, ()), (5, 6)
    once = value(source, Mix({0: 1.0}), shape)
    assert torch.equal(value(source, Mix({0: 0.5, 1: 0.25}), shape), 0.75 * once)
    assert torch.equal(value(source, Mix({}, 3.0), shape), 3.0 * once)


def test_a_stored_merge_has_no_core_of_a_task():
    for stacked in (("core",), ("left", "core")):
        with pytest.raises(ArtifactError, match="no task"):
            value(parts(5, 6, 2, 3, stacked), Mix({}, 1.0), (5, 6))


@pytest.mark.parametrize("limbs", [1, 2])
def test_threads_panels_and_blocks_of_rows_change_no_bit(limbs, monkeypatch):
    shape = (67, 1500)
    source = parts(*shape, 70, 45)
    mix = Mix({0: 0.3, 2: -1.1})
    whole = value(source, mix, shape, limbs)
    before = torch.get_num_threads()
    try:
        for threads, panel, block in ((1, 64, 1), (2, 7, 20), (4, 1000, 66)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(reproducible, "COLUMN_PANEL", panel)
            rows = evaluate(Tucker(*NAMES, limbs), source, mix, shape)
            pieces = [rows.rows(at, min(at + block, 67)) for at in range(0, 67, block)]
            assert torch.equal(torch.cat(pieces), whole)
    finally:
        torch.set_num_threads(before)


def test_two_limbs_keep_what_one_loses():
    left = torch.tensor([[1.0], [1.0]])
    core = torch.tensor([[1.0, 0.0], [0.0, 3 * 2.0**-26]])
    right = torch.tensor([[1.0], [1.0]])
    source = TensorParts({"left": left, "core": core, "right": right})
    assert value(source, Mix({0: 1.0}), (1, 1), 1).item() == 1.0
    assert value(source, Mix({0: 1.0}), (1, 1), 2).item() == 1.0 + 3 * 2.0**-26


WRONG = {
    "left of other rows": ("left", (5, 11)),
    "left of other columns": ("left", (4, 12)),
    "core of other rows": ("core", (5, 3)),
    "core of other columns": ("core", (4, 4)),
    "core turned": ("core", (3, 4)),
    "right of other rows": ("right", (4, 13)),
    "right of other columns": ("right", (3, 12)),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("mix", [Mix({1: 1.0}), Mix({0: 0.5, 1: 0.5})], ids=["task", "mix"])
def test_shapes_that_do_not_fit_are_refused(case, mix):
    name, shape = WRONG[case]
    source = parts(11, 13, 4, 3)
    source.parts = {**source.parts, name: normal(*((TASKS,) if name == "core" else ()), *shape)}
    with pytest.raises(ArtifactError, match="product of parts 'left', 'core', 'right'"):
        value(source, mix, (11, 13))


def test_masks_are_no_factors():
    source = parts(5, 6, 2, 3)
    source.parts = {**source.parts, "right": torch.ones(3, 6, dtype=torch.bool)}
    with pytest.raises(ArtifactError, match="mask"):
        value(source, Mix({0: 1.0}), (5, 6))


def test_an_inner_product_beyond_float32_is_refused():
    big = torch.full((2, 2), 2.0**70)
    source = TensorParts({"left": big, "core": big, "right": big})
    with pytest.raises(ArtifactError, match="float32"):
        value(source, Mix({0: 1.0}), (2, 2))


# --- the record ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limbs", [1, 2])
def test_the_record_survives_json(limbs):
    expr = Sum((Tucker("a", "b", "c", limbs), Dense("d")))
    record = json.loads(json.dumps(expr_to_json(expr)))
    assert expr_from_json(record) == expr
    assert list(parts_of(expr)) == ["a", "b", "c", "d"]
    assert list(parts_of(renamed(expr, "x."))) == ["x.a", "x.b", "x.c", "x.d"]
    assert list(weights_of(expr)) == []


RECORD = {"op": "tucker", "left": "a", "core": "b", "right": "c", "limbs": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"limbs": 3},
        {"limbs": 0},
        {"limbs": True},
        {"limbs": 1.0},
        {"limbs": "1"},
        {"limbs": None},
        {"left": 1},
        {"core": None},
        {"core": ["b"]},
        {"right": {"op": "dense", "part": "c"}},
        {"part": "d"},
    ],
    ids=str,
)
def test_malformed_records_are_refused(change):
    with pytest.raises(ArtifactError):
        expr_from_json(RECORD | change)


@pytest.mark.parametrize("missing", [key for key in RECORD if key != "op"])
def test_records_without_a_key_are_refused(missing):
    with pytest.raises(ArtifactError):
        expr_from_json({key: value for key, value in RECORD.items() if key != missing})


def test_an_operation_of_another_spelling_is_unknown():
    with pytest.raises(VersionError):
        expr_from_json(RECORD | {"op": "Tucker"})
