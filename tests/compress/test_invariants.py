"""What must hold for every family, whatever its numbers: the merge, the tasks, their relations."""

from __future__ import annotations

import itertools
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from svd_hybrid import Artifact
from tests.families import (
    SHAPES,
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

BASES = ("left", "right", "tasks", "auto")
TASKS = ("ant", "bee", "cat", "dog")
ACCURACIES = dict(zip(TASKS, (0.55, 0.75, 0.62, 0.9), strict=True))
HALF = 2.0**-10
"""FP16 factors: each of basis, coefficient and mean is stored to 2**-11, relative."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return write_family(tmp_path_factory.mktemp("family"), tasks=TASKS, seed=1)


@pytest.fixture(scope="module")
def packed(family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The family's artifact for every basis."""
    folder = tmp_path_factory.mktemp("packed")
    return {basis: pack(family, folder / basis, basis=basis) for basis in BASES}


def weighted(family: FamilyFiles, name: str, weights: dict[str, float]) -> Tensor:
    """The exact weighted sum of the deltas, float64."""
    factors = torch.tensor([weights[task] for task in family.tasks], dtype=torch.float64)
    return torch.einsum("t,t...->...", factors, family.deltas(name))


def family_error(artifact: Artifact, family: FamilyFiles, name: str) -> float:
    """Relative error of one tensor over all tasks."""
    rebuilt = rebuilt_tasks(artifact)
    stacked = torch.stack([rebuilt[task][name] for task in artifact.tasks])
    return relative_error(stacked, family.deltas(name))


def performance_file(folder: Path) -> Path:
    path = folder / "performance.json"
    path.write_text(json.dumps(ACCURACIES))
    return path


# --- the merge -----------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("weighting", ["uniform", "performance", "cluster"])
@pytest.mark.parametrize("basis", BASES)
def test_unquantised_merge_is_the_weighted_average(family, tmp_path, basis, weighting, center):
    artifact = pack(
        family,
        tmp_path / "artifact",
        basis=basis,
        center=center,
        weighting=weighting,
        temperature=0.1,
        performance_file=performance_file(tmp_path),
        **UNQUANTISED,
    )
    weights = artifact.merges["merged"]
    assert math.fsum(weights.values()) == pytest.approx(1)
    spread = max(weights.values()) - min(weights.values())
    assert (spread == 0) == (weighting == "uniform")
    merged, rebuilt = deltas_of(artifact), weights_of(artifact, family)
    start = load_state(family.base)
    for name in SHAPES:
        want = weighted(family, name, weights)
        assert relative_error(merged[name], want) <= 1e-6
        assert relative_error(rebuilt[name], start[name].double() + want) <= 1e-6


@pytest.mark.parametrize("basis", BASES)
def test_by_default_the_merge_is_the_weighted_average_to_the_precision_of_its_storage(
    family, tmp_path, basis
):
    """FP16 factors on both sides, and two 4-bit stages for at most 10 % of the energy."""
    artifact = pack(family, tmp_path / "artifact", basis=basis)
    for name, merged in deltas_of(artifact).items():
        assert relative_error(merged, family.deltas(name).mean(0)) <= 2 * HALF


def test_scaling_multiplies_the_merge_and_leaves_the_tasks_alone(family, tmp_path):
    plain = pack(family, tmp_path / "plain")
    scaled = pack(family, tmp_path / "scaled", scaling=2.0)
    assert scaled.merges == plain.merges
    for name, merged in deltas_of(scaled).items():
        assert torch.allclose(merged, 2 * deltas_of(plain)[name], rtol=1e-6, atol=1e-9)
        assert torch.equal(deltas_of(scaled, task="bee")[name], deltas_of(plain, task="bee")[name])


@settings(max_examples=15)
@given(weights=st.lists(st.floats(-3, 3), min_size=len(TASKS), max_size=len(TASKS)))
def test_given_weights_merge_to_that_linear_combination_of_the_reloaded_tasks(packed, weights):
    by_task = dict(zip(TASKS, weights, strict=True))
    for artifact in packed.values():
        tasks = rebuilt_tasks(artifact)
        for name, merged in deltas_of(artifact, weights=by_task).items():
            parts = [weight * tasks[task][name].double() for task, weight in by_task.items()]
            size = sum(float(part.norm()) for part in parts)
            error = float((merged.double() - sum(parts)).norm())
            assert error <= 1e-6 * size + 1e-30


@cache
def rebuilt_tasks(artifact: Artifact) -> dict[str, State]:
    return {task: deltas_of(artifact, task=task) for task in artifact.tasks}


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("task", TASKS)
def test_one_hot_weights_are_the_task_bit_for_bit(family, packed, basis, task):
    one_hot = {name: float(name == task) for name in TASKS}
    for rebuild in (deltas_of, lambda artifact, **chosen: weights_of(artifact, family, **chosen)):
        alone = rebuild(packed[basis], task=task)
        mixed = rebuild(packed[basis], weights=one_hot)
        assert all(torch.equal(alone[name], mixed[name]) for name in SHAPES)


def test_the_stored_merge_is_the_merge_by_its_own_weights_bit_for_bit(packed):
    for artifact in packed.values():
        stored, given_back = deltas_of(artifact), deltas_of(artifact, merge="merged")
        by_weights = deltas_of(artifact, weights=artifact.merges["merged"])
        for name in SHAPES:
            assert torch.equal(stored[name], given_back[name])
            assert torch.equal(stored[name], by_weights[name])


# --- the tasks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("parameters", "bound"), [({}, 2 * HALF), (UNQUANTISED, 1e-6)])
def test_one_task_comes_back_as_itself(tmp_path, basis, parameters, bound):
    family = write_family(tmp_path, tasks=("solo",), seed=2)
    artifact = pack(family, tmp_path / "artifact", basis=basis, **parameters)
    for name in SHAPES:
        want = family.deltas(name)[0]
        assert relative_error(deltas_of(artifact, task="solo")[name], want) <= bound
        assert torch.equal(deltas_of(artifact)[name], deltas_of(artifact, task="solo")[name])


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("center", [True, False])
def test_every_unquantised_task_comes_back(family, tmp_path, basis, center):
    artifact = pack(family, tmp_path / "artifact", basis=basis, center=center, **UNQUANTISED)
    for position, task in enumerate(TASKS):
        for name, delta in deltas_of(artifact, task=task).items():
            assert relative_error(delta, family.deltas(name)[position]) <= 1e-6


@pytest.mark.parametrize("basis", BASES)
def test_identical_tasks_come_back_identical_and_merge_to_themselves(tmp_path, basis):
    states = {path.stem: load_state(path) for path in two_files(tmp_path)}
    base, tuned = states["base"], states["ant"]
    family = write_states(tmp_path / "same", base, dict.fromkeys(TASKS, tuned))
    artifact = pack(family, tmp_path / "artifact", basis=basis, **UNQUANTISED)
    first = weights_of(artifact, family, task=TASKS[0])
    for task in TASKS[1:]:
        other = weights_of(artifact, family, task=task)
        assert all(torch.equal(other[name], first[name]) for name in SHAPES)
    for name, merged in deltas_of(artifact).items():
        want = tuned[name].double() - base[name].double()
        assert relative_error(merged, want) <= 1e-5  # float32 cancellation of base and task


def two_files(folder: Path) -> tuple[Path, Path]:
    family = write_family(folder, tasks=("ant",), seed=3)
    return family.base, family.tasks["ant"]


@pytest.mark.parametrize("basis", BASES)
def test_zero_deltas_store_nothing_and_give_the_base_bit_for_bit(tmp_path, basis):
    base = load_state(write_family(tmp_path, tasks=(), seed=4).base)
    family = write_states(tmp_path / "same", base, dict.fromkeys(TASKS, base))
    artifact = pack(family, tmp_path / "artifact", basis=basis)
    assert not [path for path in artifact.path.iterdir() if path.is_dir()]
    for selection in ({}, {"task": "bee"}, {"weights": dict.fromkeys(TASKS, 0.7)}):
        rebuilt = weights_of(artifact, family, **selection)
        assert all(torch.equal(rebuilt[name], base[name]) for name in base)
        assert not any(delta.any() for delta in deltas_of(artifact, **selection).values())


def test_a_tensor_that_no_task_changed_costs_nothing_beside_others_that_did(tmp_path):
    family = write_family(tmp_path, tasks=TASKS, seed=5)
    frozen = load_state(family.base)["embed.weight"]
    states = {task: load_state(path) for task, path in family.tasks.items()}
    for state in states.values():
        state["embed.weight"] = frozen
    family = write_states(tmp_path / "frozen", load_state(family.base), states)
    artifact = pack(family, tmp_path / "artifact")
    facts = artifact.diagnostics()["per_parameter"]
    assert facts["embed.weight"]["bytes"] == {}
    assert torch.equal(weights_of(artifact, family)["embed.weight"], frozen)


@pytest.mark.parametrize("basis", BASES)
def test_permuting_the_tasks_permutes_weights_and_keeps_results(family, tmp_path, basis):
    parameters = {"basis": basis, "weighting": "performance", "temperature": 0.1, **UNQUANTISED}
    given_order = None
    for number, order in enumerate(itertools.islice(itertools.permutations(TASKS), 0, 24, 7)):
        shuffled = FamilyFiles(family.base, {task: family.tasks[task] for task in order})
        artifact = pack(
            shuffled,
            tmp_path / f"order-{number}",
            performance_file=performance_file(tmp_path),
            **parameters,
        )
        assert artifact.tasks == order
        found = results(artifact)
        if given_order is None:
            given_order = (artifact.merges["merged"], found)
        assert artifact.merges["merged"] == pytest.approx(given_order[0])
        for selection, state in found.items():
            for name in SHAPES:
                assert relative_error(state[name], given_order[1][selection][name]) <= 1e-6


def results(artifact: Artifact) -> dict[str, State]:
    return {"": deltas_of(artifact), **rebuilt_tasks(artifact)}


# --- sizes of numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("exponent", [-60, -30, 30, 60])
def test_deltas_times_a_power_of_two_come_back_times_that_power_bit_for_bit(
    tmp_path, basis, exponent
):
    family = write_family(tmp_path, tasks=TASKS, seed=6, base_scale=0)
    states = {task: load_state(path) for task, path in family.tasks.items()}
    scaled = {
        task: {name: tensor * 2.0**exponent for name, tensor in state.items()}
        for task, state in states.items()
    }
    other = write_states(tmp_path / "scaled", load_state(family.base), scaled)
    plain = pack(family, tmp_path / "a", basis=basis)
    moved = pack(other, tmp_path / "b", basis=basis)
    for selection in ({}, {"task": "cat"}):
        for name, delta in deltas_of(moved, **selection).items():
            assert torch.equal(delta, deltas_of(plain, **selection)[name] * 2.0**exponent)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_tiny_and_huge_deltas_keep_their_relative_error(tmp_path, scale):
    errors = {}
    for size in (1.0, scale):
        family = write_family(tmp_path / f"{size}", tasks=TASKS, seed=7, scale=size, base_scale=0)
        artifact = pack(family, tmp_path / f"{size}" / "artifact")
        errors[size] = {name: family_error(artifact, family, name) for name in SHAPES}
    for name, error in errors[scale].items():
        assert error <= 1.5 * errors[1.0][name] + HALF / 4


# --- masks and the noise region ------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A mask folder, and the union of its masks."""
    folder = tmp_path_factory.mktemp("masks")
    random = torch.Generator().manual_seed(8)
    union: dict[str, Tensor] = {}
    for task in TASKS:
        one = {name: torch.rand(shape, generator=random) < 0.2 for name, shape in SHAPES.items()}
        save_file(one, folder / f"{task}_mask.safetensors")
        union = {name: union.get(name, torch.zeros(())).bool() | one[name] for name in SHAPES}
    return folder, union


def is_masked(name: str) -> bool:
    return name != "logit_scale"  # one scalar is below min_mask_size, so it is kept whole


@pytest.mark.parametrize("basis", BASES)
def test_outside_the_mask_nothing_is_merged_or_rebuilt(family, masks, tmp_path, basis):
    folder, union = masks
    artifact = pack(family, tmp_path / "a", basis=basis, mask_dir=folder, **UNQUANTISED)
    for selection, want in (({}, None), ({"task": "dog"}, 3)):
        for name, delta in deltas_of(artifact, **selection).items():
            exact = family.deltas(name)
            exact = exact.mean(0) if want is None else exact[want]
            if is_masked(name):
                assert not delta[~union[name]].any()
                exact = torch.where(union[name], exact, 0.0)
            assert relative_error(delta, exact) <= 1e-6


@pytest.mark.parametrize("basis", BASES)
def test_with_the_noise_region_the_merge_is_signal_plus_shrunk_noise(
    family, masks, tmp_path, basis
):
    folder, union = masks
    artifact = pack(
        family, tmp_path / "a", basis=basis, mask_dir=folder, include_noise=True, noise_shrink=0.3
    )
    tasks = [deltas_of(artifact, task=task) for task in TASKS]
    for name, merged in deltas_of(artifact).items():
        whole = torch.stack([task[name].double() for task in tasks]).mean(0)
        assert relative_error(whole, family.deltas(name).mean(0)) <= 3 * HALF  # tasks: not shrunk
        gain = torch.where(union[name], 1.0, 0.3) if is_masked(name) else torch.tensor(1.0)
        assert relative_error(merged, gain * whole) <= 1e-6


@pytest.mark.parametrize("shrink", [1.0, 0.0])
def test_noise_shrunk_by_one_or_nothing_is_the_whole_merge_or_the_signal_alone(
    family, masks, tmp_path, shrink
):
    folder, union = masks
    artifact = pack(
        family,
        tmp_path / "a",
        mask_dir=folder,
        include_noise=True,
        noise_shrink=shrink,
        **UNQUANTISED,
    )
    for name, merged in deltas_of(artifact).items():
        exact = family.deltas(name).mean(0)
        if is_masked(name):
            exact = torch.where(union[name], exact, shrink * exact)
        assert relative_error(merged, exact) <= 1e-6


# --- storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_low", [True, False])
@pytest.mark.parametrize("basis_dtype", ["fp16", "int8", "int4", "auto"])
@pytest.mark.parametrize("basis", BASES)
def test_every_storage_rebuilds_tasks_to_the_error_it_records(
    family, tmp_path, basis, basis_dtype, keep_low
):
    artifact = pack(family, tmp_path / "a", basis=basis, basis_dtype=basis_dtype, keep_low=keep_low)
    facts = artifact.diagnostics()["per_parameter"]
    for position, task in enumerate(TASKS):
        for name, delta in deltas_of(artifact, task=task).items():
            recorded = facts[name]["reconstruction_errors"][task]["relative_error"]
            measured = relative_error(delta, family.deltas(name)[position])
            assert measured == pytest.approx(recorded, rel=1e-3, abs=1e-7)  # delta is float32
            assert recorded < 1


@pytest.mark.parametrize("basis", BASES)
def test_the_automatic_basis_precision_costs_at_most_a_tenth_more_error(family, tmp_path, basis):
    errors = {}
    for basis_dtype in ("fp16", "auto"):
        artifact = pack(
            family, tmp_path / basis_dtype, basis=basis, basis_dtype=basis_dtype, low_bits=2
        )
        errors[basis_dtype] = {name: family_error(artifact, family, name) for name in SHAPES}
    for name, error in errors["auto"].items():
        assert error <= 1.1 * errors["fp16"][name] * (1 + 1e-5)


@pytest.mark.parametrize("basis", ["auto", "tasks"])
def test_more_bits_stages_energy_and_rank_never_lose_accuracy(family, tmp_path, basis):
    """Down each ladder the family's error falls (or stays, once storage is exact)."""
    ladders = [
        [{"low_bits": bits, "rtvq_stages": 1} for bits in (1, 2, 3, 4, 6, 8)],
        [{"low_bits": 2, "rtvq_stages": stages} for stages in (1, 2, 3, 4)],
        [{"energy_threshold": share, "keep_low": False} for share in (0.3, 0.6, 0.9, 1.0)],
        [{"max_rank": rank, "keep_low": False, "energy_threshold": 1.0} for rank in (1, 2, 4, 9)],
    ]
    for number, ladder in enumerate(ladders):
        errors = []
        for step, parameters in enumerate(ladder):
            folder = tmp_path / f"{number}-{step}"
            pack(family, folder, basis=basis, **{"energy_threshold": 0.3, **parameters})
            summary = json.loads((folder / "diagnostics.json").read_text())["summary"]
            errors.append(summary["relative_error"])
        pairs = itertools.pairwise(errors)
        assert all(worse >= better * (1 - 1e-3) for worse, better in pairs), (ladder, errors)
