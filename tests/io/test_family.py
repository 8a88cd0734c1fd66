"""Base and tasks are compared before anything is computed; every opt-in does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from svd_hybrid.errors import FamilyError, StorageError, UsageError
from svd_hybrid.io.family import Family, FamilyPolicy, open_family
from tests.families import write_family
from tests.io.checkpoints import random_state, same, write

BASE = random_state(0, bias=(3,), head=(4, 3), weight=(3, 2)) | {"steps": torch.tensor([7])}
TUNED = {name: t + 1 if t.is_floating_point() else t for name, t in BASE.items()}


def make(tmp_path: Path, tasks: dict[str, dict[str, Tensor]], base=None, **policy) -> Family:
    paths = {task: write(tmp_path / f"{task}.safetensors", s) for task, s in tasks.items()}
    base_path = write(tmp_path / "base.safetensors", BASE if base is None else base)
    return open_family(base_path, paths, FamilyPolicy(**policy))


def without(*names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in TUNED.items() if name not in names}


def test_deltas_are_task_minus_base_in_task_order(tmp_path):
    other = {n: t - 2 if t.is_floating_point() else t for n, t in BASE.items()}
    family = make(tmp_path, {"zeta": TUNED, "alpha": other})
    assert family.task_names == ["zeta", "alpha"]
    stack = family.stack("weight")
    assert same(stack.base, BASE["weight"])
    assert same(stack.deltas[0], TUNED["weight"] - BASE["weight"])
    assert same(stack.deltas[1], other["weight"] - BASE["weight"])
    assert stack.changed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_deltas_of_half_types_are_formed_in_float32(tmp_path, dtype, base_dtype):
    base = {"w": torch.tensor([1000.0, 1.0]).to(base_dtype)}
    task = {"w": torch.tensor([1000.5, 1.0078125]).to(dtype)}
    deltas = make(tmp_path, {"a": task}, base).stack("w").deltas
    assert same(deltas[0], task["w"].float() - base["w"].float())


def test_deltas_of_float64_stay_float64(tmp_path):
    base = {"w": torch.tensor([1.0], dtype=torch.float64)}
    task = {"w": torch.tensor([1.0 + 2.0**-40], dtype=torch.float64)}
    assert make(tmp_path, {"a": task}, base).stack("w").deltas.tolist() == [[2.0**-40]]


def test_containers_may_differ_between_base_and_tasks(tmp_path):
    paths = {"a": write(tmp_path / "a.pt", TUNED), "b": write(tmp_path / "b.safetensors", TUNED)}
    family = open_family(write(tmp_path / "base.bin", BASE), paths, FamilyPolicy())
    deltas = family.stack("head").deltas
    assert same(deltas[0], deltas[1])


def test_scalars_and_empty_tensors_have_deltas_too(tmp_path):
    base = {"logit_scale": torch.tensor(2.0), "empty": torch.zeros(0, 3)}
    task = {"logit_scale": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    family = make(tmp_path, {"a": task, "b": task}, base)
    assert family.stack("logit_scale").deltas.tolist() == [0.5, 0.5]
    assert family.stack("empty").deltas.shape == (2, 0, 3)


# --- integers ------------------------------------------------------------------------------------


def test_integers_keep_the_base_value_and_a_difference_is_noted(tmp_path):
    family = make(tmp_path, {"a": TUNED, "b": TUNED | {"steps": torch.tensor([9])}})
    stack = family.stack("steps")
    assert stack.deltas is None
    assert stack.base.tolist() == [7]
    assert any("'steps'" in line for line in family.all_notes())


@pytest.mark.parametrize(
    "steps", [torch.tensor([7], dtype=torch.int32), torch.tensor([7.5]), torch.tensor([True])]
)
def test_an_integer_of_another_dtype_in_a_task_is_no_obstacle(tmp_path, steps):
    family = make(tmp_path, {"a": TUNED | {"steps": steps}})
    assert family.stack("steps").deltas is None


def test_equal_integers_are_not_worth_a_note(tmp_path):
    family = make(tmp_path, {"a": TUNED})
    family.stack("steps")
    assert family.all_notes() == []


# --- refusals ------------------------------------------------------------------------------------


def test_every_problem_is_listed_with_task_and_tensor(tmp_path):
    tasks = {
        "a": without("head"),
        "b": TUNED | {"probe": torch.zeros(2)},
        "c": TUNED | {"weight": torch.zeros(3, 9)},
        "d": TUNED | {"bias": torch.zeros(3, dtype=torch.int64)},
    }
    with pytest.raises(FamilyError, match="tasks and base disagree") as caught:
        make(tmp_path, tasks)
    for said in (
        "task 'a' lacks 'head'",
        "task 'b' has 'probe', which the base lacks",
        "task 'c': 'weight' is [3, 9], the base has [3, 2]",
        "task 'd': 'bias' is I64, the base has F32",
    ):
        assert said in caught.value.what
    assert "--on-missing" in caught.value.fix
    assert caught.value.where.endswith("base.safetensors")


def test_a_hundred_problems_are_counted_and_fit_a_screen(tmp_path):
    names = {f"vision_model.encoder.layers.{i}.self_attn.k_proj.weight": (2, 2) for i in range(100)}
    with pytest.raises(FamilyError) as caught:
        make(tmp_path, {"a": {"text": torch.zeros(1)}}, random_state(0, **names))
    assert len(caught.value.what) < 400
    assert "task 'a' lacks 'vision_model.encoder.layers.0." in caught.value.what
    assert "more" in caught.value.what


def test_a_long_name_is_shown_even_when_nothing_else_fits(tmp_path):
    name = "layer." * 60 + "weight"
    with pytest.raises(FamilyError) as caught:
        make(tmp_path, {"a": {}, "b": {}}, {name: torch.zeros(1)})
    assert name in caught.value.what
    assert f"lacks '{name[:60]}" in str(caught.value)
    assert f"{name[-60:]}'; and 1 more" in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_task_and_tensor(tmp_path, bad):
    broken = TUNED | {"head": TUNED["head"].clone()}
    broken["head"][1, 2] = bad
    family = make(tmp_path, {"good": TUNED, "bad": broken})
    family.stack("weight")
    with pytest.raises(FamilyError, match="task 'bad' holds 1 NaN or infinite") as caught:
        family.stack("head")
    assert "'head'" in caught.value.where
    assert "bad.safetensors" in caught.value.where


def test_nan_in_the_base_is_refused_even_under_zero(tmp_path):
    base = BASE | {"bias": torch.tensor([1.0, float("nan"), 2.0])}
    family = make(tmp_path, {"a": TUNED}, base, nonfinite="zero")
    with pytest.raises(FamilyError, match="base holds NaN") as caught:
        family.stack("bias")
    assert "'bias'" in caught.value.where


def test_overflow_of_the_difference_is_refused(tmp_path):
    base = {"w": torch.tensor([-3e38])}
    with pytest.raises(FamilyError, match="task 'a'"):
        make(tmp_path, {"a": {"w": torch.tensor([3e38])}}, base).stack("w")


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["cars", "Cars"], "'cars' and 'Cars' differ only in case"),
        (["euro-sat", "euro_sat"], "differ only"),
        ([""], "empty or not printable"),
        ([" cars"], "empty or not printable"),
        (["ca\nrs"], "empty or not printable"),
        ([], "no task given"),
    ],
)
def test_task_names_must_be_distinct_and_printable(tmp_path, tasks, said):
    path = write(tmp_path / "t.safetensors", TUNED)
    base = write(tmp_path / "base.safetensors", BASE)
    with pytest.raises(UsageError, match=said):
        open_family(base, dict.fromkeys(tasks, path), FamilyPolicy())


def test_a_base_without_tensors_is_refused(tmp_path):
    with pytest.raises(FamilyError, match="base holds no tensors"):
        make(tmp_path, {"a": {}}, {})


def test_a_dtype_svdh_cannot_read_is_named(tmp_path):
    base = {"w": torch.zeros(2).to(torch.float8_e4m3fn)}
    with pytest.raises(FamilyError, match="cannot read: 'w'"):
        make(tmp_path, {"a": base}, base)
    with pytest.raises(FamilyError, match="'w' is F8_E4M3, the base has F32"):
        make(tmp_path, {"a": base}, {"w": torch.zeros(2)})


def test_a_missing_task_checkpoint_is_named(tmp_path):
    base = write(tmp_path / "base.safetensors", BASE)
    with pytest.raises(StorageError, match="does not exist") as caught:
        open_family(base, {"a": tmp_path / "a.pt"}, FamilyPolicy())
    assert caught.value.where.endswith("a.pt")


# --- opt-ins -------------------------------------------------------------------------------------


def test_skip_keeps_the_base_value_for_all_tasks(tmp_path):
    family = make(tmp_path, {"a": without("head"), "b": TUNED}, on_missing="skip")
    assert not family.has_deltas("head")
    assert family.stack("head").deltas is None
    assert family.stack("weight").deltas.shape == (2, 3, 2)


def test_zero_counts_as_unchanged_for_that_task_alone(tmp_path):
    family = make(tmp_path, {"a": without("head"), "b": TUNED}, on_missing="zero")
    deltas = family.stack("head").deltas
    assert not deltas[0].any()
    assert same(deltas[1], TUNED["head"] - BASE["head"])


def test_a_missing_integer_is_an_error_by_default_and_no_matter_otherwise(tmp_path):
    with pytest.raises(FamilyError, match="lacks 'steps'"):
        make(tmp_path, {"a": without("steps")})
    for policy in ("skip", "zero"):
        family = make(tmp_path, {"a": without("steps")}, on_missing=policy)
        assert family.stack("steps").deltas is None


def test_ignored_extras_are_noted(tmp_path):
    family = make(tmp_path, {"a": TUNED | {"probe": torch.zeros(2)}}, on_extra="ignore")
    assert "probe" not in family.base.infos
    assert any("'probe'" in line and "'a'" in line for line in family.all_notes())


def test_skipped_shapes_keep_the_base_value(tmp_path):
    task = TUNED | {"head": torch.zeros(9, 3)}
    family = make(tmp_path, {"a": task, "b": TUNED}, on_shape_mismatch="skip")
    assert family.stack("head").deltas is None


def test_crop_takes_the_leading_rows_and_columns(tmp_path):
    larger = torch.arange(30, dtype=torch.float32).reshape(6, 5)
    family = make(tmp_path, {"a": TUNED | {"head": larger}}, on_shape_mismatch="crop")
    assert same(family.stack("head").deltas[0], larger[:4, :3] - BASE["head"])


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (12,), (4, 3, 1)])
def test_crop_refuses_what_does_not_cover_the_base(tmp_path, shape):
    with pytest.raises(FamilyError, match="'head' is"):
        make(tmp_path, {"a": TUNED | {"head": torch.zeros(shape)}}, on_shape_mismatch="crop")


def test_zeroed_nonfinite_values_are_counted_and_noted(tmp_path):
    broken = TUNED | {"bias": torch.tensor([float("nan"), 5.0, float("inf")])}
    family = make(tmp_path, {"a": broken}, nonfinite="zero")
    stack = family.stack("bias")
    assert stack.deltas[0].tolist() == [0.0, float(5.0 - BASE["bias"][1]), 0.0]
    assert any("2 non-finite values of 'bias' in task 'a'" in n for n in family.all_notes())


def test_tied_weights_are_twins_only_when_every_task_agrees(tmp_path):
    base = {"embed": torch.ones(2, 2), "lm_head": torch.ones(2, 2)}
    tied = {"embed": torch.zeros(2, 2), "lm_head": torch.zeros(2, 2)}
    untied = {"embed": torch.zeros(2, 2), "lm_head": torch.ones(2, 2)}
    assert make(tmp_path, {"a": tied}, base).same_everywhere("embed", "lm_head")
    family = make(tmp_path, {"a": tied, "b": untied}, base)
    assert not family.same_everywhere("embed", "lm_head")
    half = {"embed": torch.zeros(2, 2)}
    family = make(tmp_path, {"a": tied, "b": half}, base, on_missing="zero")
    assert not family.same_everywhere("embed", "lm_head")


def test_a_recycled_stack_gives_its_memory_to_the_next_one_that_fits(tmp_path):
    shapes = {"a": (8, 8), "b": (4, 4), "c": (9, 9)}
    files = write_family(tmp_path, shapes, seed=2)
    family = open_family(files.base, files.tasks, FamilyPolicy())
    first = family.stack("a").deltas
    address = first.data_ptr()
    family.recycle(first)
    second = family.stack("b").deltas
    assert second.data_ptr() == address
    family.recycle(second)
    again = family.stack("a").deltas  # the whole memory is there again, not only b's share of it
    assert again.data_ptr() == address
    family.recycle(again)
    for name in ("c", "b", "a"):  # c does not fit; each is right whatever lay there before
        stack = family.stack(name).deltas
        assert torch.equal(stack.double(), files.deltas(name))
        family.recycle(stack)
