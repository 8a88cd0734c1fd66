"""Every kind of tensor a checkpoint holds: integers, scalars, half types, ties, buffers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from svd_hybrid import Artifact, reload
from svd_hybrid.io.tensors import DTYPES
from tests.families import (
    UNQUANTISED,
    FamilyFiles,
    State,
    deltas_of,
    load_state,
    pack,
    relative_error,
    weights_of,
    write_family,
    write_states,
)
from tests.format.families import read_record
from tests.numerics.oracle import rounded

TASKS = ("ant", "bee", "cat")
SELECTIONS = ({}, {"task": "bee"}, {"weights": {"ant": 0.5, "bee": 2.0, "cat": -1.0}})


def states_of(family: FamilyFiles) -> tuple[State, dict[str, State]]:
    return load_state(family.base), {task: load_state(p) for task, p in family.tasks.items()}


def with_tensor(tmp_path, name: str, base: Tensor, tuned: list[Tensor]) -> FamilyFiles:
    """A small family in which `name` has exactly these values."""
    start, tasks = states_of(write_family(tmp_path / "plain", tasks=TASKS, seed=11))
    for state, tensor in zip((start, *tasks.values()), (base, *tuned), strict=True):
        state[name] = tensor
    return write_states(tmp_path / "family", start, tasks)


def facts_of(artifact: Artifact) -> dict[str, dict[str, object]]:
    return artifact.diagnostics()["per_parameter"]


# --- integers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["I64", "I32", "I16", "I8", "U8", "BOOL"])
def test_tensors_that_are_not_floats_come_back_as_the_base_has_them(tmp_path, dtype):
    base = torch.arange(6).reshape(2, 3).to(DTYPES[dtype])
    tuned = [base, torch.zeros_like(base), base]  # one task disagrees
    family = with_tensor(tmp_path, "position_ids", base, tuned)
    artifact = pack(family, tmp_path / "artifact")
    for selection in SELECTIONS:
        for dtype_wanted in (None, "F16"):
            rebuilt = weights_of(artifact, family, dtype=dtype_wanted, **selection)
            assert torch.equal(rebuilt["position_ids"], base)
            assert rebuilt["position_ids"].dtype == base.dtype
    assert "position_ids" not in facts_of(artifact)
    notes = json.loads((artifact.path / "diagnostics.json").read_text())["notes"]
    assert any("position_ids" in note for note in notes)


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["auto", "tasks"])
@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 1), (7,), (5, 1), (1, 5), (3, 4, 5), (2, 3, 2, 2), (2, 1, 3, 1, 2)]
)
def test_every_shape_is_rebuilt(tmp_path, shape, basis):
    family = write_family(tmp_path, {"t": shape, "other": (4, 4)}, TASKS, seed=12)
    artifact = pack(family, tmp_path / "artifact", basis=basis, **UNQUANTISED)
    for position, task in enumerate(TASKS):
        rebuilt = deltas_of(artifact, task=task)["t"]
        assert rebuilt.shape == shape
        assert relative_error(rebuilt, family.deltas("t")[position]) <= 1e-6
    assert relative_error(deltas_of(artifact)["t"], family.deltas("t").mean(0)) <= 1e-6


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 2)])
def test_empty_tensors_come_back_empty(tmp_path, shape):
    family = write_family(tmp_path, {"t": shape, "other": (4, 4)}, TASKS, seed=13)
    artifact = pack(family, tmp_path / "artifact")
    for selection in SELECTIONS:
        assert weights_of(artifact, family, **selection)["t"].shape == shape
        assert deltas_of(artifact, **selection)["t"].shape == shape


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0, 2), (2, 3, 2)])
def test_clusters_count_tensors_of_every_shape(tmp_path, shape):
    family = write_family(tmp_path, {"t": shape, "other": (4, 4)}, TASKS, seed=14)
    artifact = pack(family, tmp_path / "artifact", weighting="cluster", cluster_k=2)
    assert math.fsum(artifact.merges["merged"].values()) == pytest.approx(1)


def test_negative_zeros_of_the_base_stay_negative_where_nothing_changed(tmp_path):
    base = torch.tensor([[-0.0, 0.0, 1.0, -0.0]]).repeat(3, 1)
    changed = base + torch.tensor([0.0, 0.0, 0.5, 0.0])
    family = with_tensor(tmp_path, "w", base, [changed, changed, base])
    artifact = pack(family, tmp_path / "artifact", **UNQUANTISED)
    for selection in SELECTIONS:
        rebuilt = weights_of(artifact, family, **selection)["w"]
        assert torch.equal(rebuilt.signbit(), base.signbit())


# --- float types ---------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_the_dtype_of_the_base_and_round_once(tmp_path, dtype, selection):
    family = write_family(tmp_path, tasks=TASKS, seed=15, dtype=dtype, scale=0.3)
    artifact = pack(family, tmp_path / "artifact")
    exact = weights_of(artifact, family, dtype="F64", **selection)
    for name, tensor in weights_of(artifact, family, **selection).items():
        assert tensor.dtype == dtype
        wanted = exact[name] if dtype == torch.float64 else rounded(exact[name], dtype)
        assert torch.equal(tensor, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sum_just_above_the_middle_of_two_half_numbers_rounds_up(tmp_path, dtype):
    """Through float32 it would first fall onto the middle, and then to the even number below."""
    unit = torch.finfo(dtype).eps
    base = torch.ones(1, dtype=dtype)
    family = write_states(tmp_path, {"w": base}, {"solo": {"w": torch.tensor([1 + unit / 2])}})
    artifact = pack(family, tmp_path / "artifact", **UNQUANTISED)
    beyond = {"solo": 1 + 2.0**-20}
    assert weights_of(artifact, family, weights={"solo": 1.0})["w"].tolist() == [1.0]
    assert weights_of(artifact, family, weights=beyond)["w"].tolist() == [1 + unit]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_deltas_are_formed_in_float32_so_unquantised_tasks_come_back_bit_for_bit(
    tmp_path, dtype
):
    family = write_family(tmp_path, tasks=TASKS, seed=16, dtype=dtype)
    artifact = pack(family, tmp_path / "artifact", **UNQUANTISED)
    for task, path in family.tasks.items():
        rebuilt = weights_of(artifact, family, task=task)
        assert all(torch.equal(rebuilt[name], tensor) for name, tensor in load_state(path).items())


def test_a_task_in_another_float_type_than_the_base_is_taken_as_it_is(tmp_path):
    base, tasks = states_of(write_family(tmp_path / "plain", tasks=TASKS, seed=17))
    tasks["bee"] = {name: tensor.half() for name, tensor in tasks["bee"].items()}
    family = write_states(tmp_path / "family", base, tasks)
    artifact = pack(family, tmp_path / "artifact", **UNQUANTISED)
    for name, delta in deltas_of(artifact, task="bee").items():
        assert relative_error(delta, tasks["bee"][name].double() - base[name].double()) <= 2e-6


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_reload_writes_floats_in_the_dtype_asked_for(tmp_path, dtype):
    steps = torch.tensor([3, 4])
    family = with_tensor(tmp_path, "steps", steps, [steps] * 3)
    pack(family, tmp_path / "artifact")
    reload(tmp_path / "artifact", family.base, tmp_path / "out.safetensors", dtype=dtype)
    written = load_state(tmp_path / "out.safetensors")
    assert {t.dtype for name, t in written.items() if name != "steps"} == {DTYPES[dtype]}
    assert torch.equal(written["steps"], steps)


# --- ties ----------------------------------------------------------------------------------------


def tied(state: State) -> State:
    return {**state, "zz.head.weight": state["embed.weight"].clone()}


def test_tied_tensors_are_stored_once_and_both_rebuilt(tmp_path):
    base, tasks = states_of(write_family(tmp_path / "plain", tasks=TASKS, seed=18))
    family = write_states(tmp_path / "tied", tied(base), {t: tied(s) for t, s in tasks.items()})
    artifact = pack(family, tmp_path / "artifact")
    assert facts_of(artifact)["zz.head.weight"]["alias_of"] == "embed.weight"
    manifest = read_record(artifact.path)
    records = {record["name"]: record for record in manifest["tensors"]}
    assert "parts" not in records["zz.head.weight"]
    for selection in SELECTIONS:
        for rebuilt in (
            weights_of(artifact, family, **selection),
            deltas_of(artifact, **selection),
        ):
            assert torch.equal(rebuilt["zz.head.weight"], rebuilt["embed.weight"])


def test_tensors_equal_in_the_base_but_not_in_every_task_are_no_ties(tmp_path):
    base, tasks = states_of(write_family(tmp_path / "plain", tasks=TASKS, seed=19))
    states = {task: tied(state) for task, state in tasks.items()}
    states["cat"]["zz.head.weight"] += 1
    family = write_states(tmp_path / "untied", tied(base), states)
    artifact = pack(family, tmp_path / "artifact", **UNQUANTISED)
    assert "alias_of" not in facts_of(artifact)["zz.head.weight"]
    for name in ("embed.weight", "zz.head.weight"):
        rebuilt = weights_of(artifact, family, task="cat")[name]
        assert relative_error(rebuilt, states["cat"][name]) <= 1e-6


# --- running statistics --------------------------------------------------------------------------


def statistics_family(tmp_path, base: tuple[float, float], tuned: list[tuple[float, float]]):
    """A family with running_mean and running_var constant at the given values."""
    start, tasks = states_of(write_family(tmp_path / "plain", tasks=TASKS, seed=20))
    for state, (mean, var) in zip((start, *tasks.values()), (base, *tuned), strict=True):
        state["bn.running_mean"] = torch.full((6,), mean)
        state["bn.running_var"] = torch.full((6,), var)
    return write_states(tmp_path / "family", start, tasks)


@pytest.mark.parametrize("weights", [None, (2.0, 1.0, 1.0), (1.0, -0.5, 3.5), (1.0, 0.0, 0.0)])
def test_running_statistics_are_averaged_and_never_scaled(tmp_path, weights):
    tuned = [(1.0, 2.0), (3.0, 4.0), (8.0, 0.5)]
    family = statistics_family(tmp_path, (0.25, 1.0), tuned)
    artifact = pack(family, tmp_path / "artifact", scaling=5.0, **UNQUANTISED)
    selection = {} if weights is None else {"weights": dict(zip(TASKS, weights, strict=True))}
    rebuilt = weights_of(artifact, family, **selection)
    share = [w / sum(weights or (1, 1, 1)) for w in weights or (1, 1, 1)]
    for index, name in enumerate(("bn.running_mean", "bn.running_var")):
        want = math.fsum(w * values[index] for w, values in zip(share, tuned, strict=True))
        assert rebuilt[name].tolist() == pytest.approx([want] * 6)


def test_a_running_variance_never_becomes_negative_but_a_mean_may(tmp_path):
    family = statistics_family(tmp_path, (0.0, 1.0), [(-1.0, 0.1), (-2.0, 5.0), (-3.0, 0.2)])
    artifact = pack(family, tmp_path / "artifact", **UNQUANTISED)
    weights = {"ant": 3.0, "bee": -1.0, "cat": -1.0}  # of variances: 0.3 - 5 - 0.2
    rebuilt = weights_of(artifact, family, weights=weights)
    assert rebuilt["bn.running_var"].tolist() == [0.0] * 6
    assert rebuilt["bn.running_mean"].tolist() == pytest.approx([2.0] * 6)
    assert weights_of(artifact, family)["bn.running_mean"].tolist() == pytest.approx([-2.0] * 6)


def test_weights_that_cancel_leave_running_statistics_at_their_plain_average(tmp_path):
    family = statistics_family(tmp_path, (0.0, 1.0), [(1.0, 1.0), (2.0, 2.0), (6.0, 6.0)])
    artifact = pack(family, tmp_path / "artifact", **UNQUANTISED)
    rebuilt = weights_of(artifact, family, weights={"ant": 1.0, "bee": -1.0, "cat": 0.0})
    assert rebuilt["bn.running_mean"].tolist() == pytest.approx([3.0] * 6)
