"""The profile `auto`: all kinds of families, targets kept, errors unbiased, sizes near theory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from svd_hybrid import Artifact, compress
from svd_hybrid.compress.profiles.auto import AUTO
from svd_hybrid.compress.profiles.auto.kinds import is_thin
from svd_hybrid.compress.profiles.base import EncodedStack, squared_error
from svd_hybrid.compress.profiles.params import SIGNAL_ERROR, AutoParams
from svd_hybrid.errors import SvdhError
from svd_hybrid.numerics.rounding import rounding_bits
from tests.families import (
    FamilyFiles,
    State,
    deltas_of,
    load_state,
    pack,
    relative_error,
    write_states,
)
from tests.format.families import read_record

OBJECTIVES = ("quality", "error")
EACH_OBJECTIVE = pytest.mark.parametrize("objective", OBJECTIVES)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def write(folder: Path, deltas: Mapping[str, Tensor]) -> FamilyFiles:
    """A family whose deltas are exactly these stacks (N, ...): its base is 0."""
    count = len(next(iter(deltas.values())))
    base = {name: torch.zeros_like(stack[0]) for name, stack in deltas.items()}
    tasks = {
        f"t{task:02d}": {name: stack[task].clone() for name, stack in deltas.items()}
        for task in range(count)
    }
    return write_states(folder, base, tasks)


def rebuilt(artifact: Artifact) -> State:
    """Name → the deltas of all tasks, stacked; tensors that no task changed are missing."""
    tasks = [deltas_of(artifact, task=task) for task in artifact.tasks]
    return {name: torch.stack([task[name] for task in tasks]) for name in tasks[0]}


def store(folder: Path, deltas: Mapping[str, Tensor], **parameters: Any) -> tuple[Artifact, State]:
    artifact = pack(write(folder / "family", deltas), folder / "art", profile="auto", **parameters)
    return artifact, rebuilt(artifact)


def whole_error(got: State, want: Mapping[str, Tensor]) -> float:
    """Relative error over all tensors and tasks."""
    lost = sum(float((got[name].double() - x.double()).square().sum()) for name, x in want.items())
    return math.sqrt(lost / sum(float(x.double().square().sum()) for x in want.values()))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def string_bytes(artifact: Path) -> int:
    """Bytes of all strings."""
    tensors = read_record(artifact)["tensors"]
    parts = [part for tensor in tensors for part in tensor.get("parts", {}).values()]
    return sum(sum(part["lengths"]) for part in parts)


def operations(artifact: Path) -> set[str]:
    text = str([tensor.get("task") for tensor in read_record(artifact)["tensors"]])
    return {op for op in ("low-rank", "tucker", "dense") if f"'{op}'" in text}


def encoded(stack: Tensor, step: float, objective: Any = "error", **limits: Any) -> EncodedStack:
    params = AutoParams(step=step, objective=objective, error_weight=1.0, **limits)
    found = AUTO.encode(stack, None, params, "")
    assert found is not None
    return found


def mixed(tasks: int = 3, seed: int = 0) -> State:
    """Vectors, a scalar, a convolution, own and shared low rank, plain noise."""
    shared = normal(40, 3, seed=seed + 1), normal(3, 56, seed=seed + 2)
    cores = normal(tasks, 3, 3, seed=seed + 3)
    own = normal(tasks, 48, 1, seed=seed + 4) @ normal(tasks, 1, 30, seed=seed + 5)
    return {
        "bias": 0.1 * normal(tasks, 24, seed=seed + 6),
        "conv.weight": 0.1 * normal(tasks, 12, 4, 3, 3, seed=seed + 7),
        "logit_scale": 0.1 * normal(tasks, seed=seed + 8),
        "noise.weight": 0.1 * normal(tasks, 33, 65, seed=seed + 9),
        "own.weight": 0.1 * own + 0.02 * normal(tasks, 48, 30, seed=seed + 10),
        "shared.weight": 0.1 * shared[0] @ cores @ shared[1]
        + 0.02 * normal(tasks, 40, 56, seed=seed + 11),
    }


def test_the_target_counts_what_a_mask_selects(tmp_path):
    """What the mask leaves out is lost whatever the step."""
    family = write(tmp_path / "family", mixed())
    names = load_state(family.base)
    mask = {name: torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
            for name, x in names.items()}  # fmt: skip
    (tmp_path / "masks").mkdir()
    for task in family.tasks:
        save_file(mask, tmp_path / "masks" / f"{task}_mask.safetensors")
    artifact = pack(family, tmp_path / "art", mask_dir=tmp_path / "masks", target_error=0.2)
    lost = kept = 0.0
    for name, got in rebuilt(artifact).items():
        where = mask[name] if int(mask[name].sum()) >= 10 else torch.ones_like(mask[name])
        want = family.deltas(name)[:, where]
        lost += float((got.double()[:, where] - want).square().sum())
        kept += float(want.square().sum())
    assert 0.15 < math.sqrt(lost / kept) <= 0.2
    assert artifact.diagnostics()["summary"]["relative_error"] > 0.5


# --- every kind of family ------------------------------------------------------------------------


@EACH_OBJECTIVE
@pytest.mark.parametrize("tasks", [1, 2, 20])
def test_families_of_any_number_of_tasks(tmp_path, objective, tasks):
    deltas = mixed(tasks)
    _, got = store(tmp_path, deltas, objective=objective, target_error=0.2)
    assert whole_error(got, deltas) <= 0.2


@EACH_OBJECTIVE
def test_equal_tasks_come_back_equal(tmp_path, objective):
    deltas = {name: x[:1].expand(4, *x.shape[1:]).contiguous() for name, x in mixed().items()}
    _, got = store(tmp_path, deltas, objective=objective, target_error=0.1)
    assert whole_error(got, deltas) <= 0.1
    for x in got.values():
        assert all(torch.equal(task, x[0]) for task in x)


@EACH_OBJECTIVE
@pytest.mark.parametrize("target", [{"target_error": 0.2}, {"step": 0.01}, {"target_size": 50000}])
def test_tasks_that_change_nothing(tmp_path, objective, target):
    deltas = {name: torch.zeros_like(x) for name, x in mixed().items()}
    _, got = store(tmp_path, deltas, objective=objective, **target)
    assert not any(bool(x.any()) for x in got.values())


@EACH_OBJECTIVE
def test_a_task_that_changes_nothing_stays_the_base(tmp_path, objective):
    deltas = mixed()
    for x in deltas.values():
        x[1] = 0
    _, got = store(tmp_path, deltas, objective=objective, target_error=0.1)
    assert whole_error(got, deltas) <= 0.1
    assert not any(bool(x[1].any()) for x in got.values())


@EACH_OBJECTIVE
@pytest.mark.parametrize("shape", [(40, 60), (24,), (12, 4, 3, 3)])
def test_a_single_number_among_zeros(tmp_path, objective, shape):
    x = torch.zeros(2, *shape)
    x[(1, *(size // 2 for size in shape))] = 0.25
    artifact, got = store(tmp_path, {"w": x}, objective=objective, target_error=0.1)
    assert whole_error(got, {"w": x}) <= 0.1
    assert string_bytes(tmp_path / "art") < 60
    assert torch.equal(got["w"] != 0, x != 0)
    assert artifact.tasks == ("t00", "t01")


@pytest.mark.parametrize("step", [0.03, 0.1, 0.3])
def test_a_product_of_two_vectors_costs_their_numbers(tmp_path, step):
    m, n = 300, 200
    x = normal(1, m, 1, seed=1) @ normal(1, 1, n, seed=2)
    _, got = store(tmp_path, {"w": x}, objective="error", step=step, error_weight=1.0)
    energy = float(x.double().square().sum())
    bits = [
        count * float(rounding_bits(torch.tensor([energy / count / step**2]).numpy())[0])
        for count in (m, n)
    ]
    assert string_bytes(tmp_path / "art") < 1.06 * sum(bits) / 8 + 40
    assert operations(tmp_path / "art") == {"low-rank"}
    assert relative_error(got["w"], x) ** 2 * energy < 1.3 * (m + n) * step**2 / 12


@EACH_OBJECTIVE
@pytest.mark.parametrize("value", [0.01, -3.0])
def test_constants(tmp_path, objective, value):
    deltas = {"w": torch.full((2, 40, 60), value), "b": torch.full((2, 24), value)}
    _, got = store(tmp_path, deltas, objective=objective, target_error=0.1)
    assert whole_error(got, deltas) <= 0.1
    assert string_bytes(tmp_path / "art") < 400


@EACH_OBJECTIVE
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scales_of_any_size_take_the_same_bytes(tmp_path, objective, scale):
    sizes = []
    for factor in (1.0, scale):
        folder = tmp_path / str(factor)
        deltas = {name: factor * x for name, x in mixed().items()}
        _, got = store(folder, deltas, objective=objective, target_error=0.2)
        assert 0.18 < whole_error(got, deltas) <= 0.2
        sizes.append(string_bytes(folder / "art"))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)


@EACH_OBJECTIVE
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (129, 257), (16, 3, 5, 5), (3, 1, 1, 2, 9)])
def test_odd_shapes(tmp_path, objective, shape):
    deltas = {"w": normal(3, *shape, seed=4)}
    _, got = store(tmp_path, deltas, objective=objective, target_error=0.1)
    assert got["w"].shape == (3, *shape)
    assert whole_error(got, deltas) <= 0.1


@EACH_OBJECTIVE
@pytest.mark.parametrize("step", [0.03, 0.3])
def test_the_order_of_the_tasks_does_not_matter(tmp_path, objective, step):
    deltas, order = mixed(4), [2, 0, 3, 1]
    _, got = store(tmp_path / "a", deltas, objective=objective, step=step)
    turned = {name: x[order].contiguous() for name, x in deltas.items()}
    _, again = store(tmp_path / "b", turned, objective=objective, step=step)
    for name, x in got.items():
        if name == "shared.weight":  # bases of all tasks are summed in their order
            assert relative_error(again[name], x[order]) < 0.05
        else:
            assert torch.equal(again[name], x[order]), name


@EACH_OBJECTIVE
def test_bytes_fall_and_errors_rise_with_the_step(tmp_path, objective):
    family = write(tmp_path / "family", deltas := mixed())
    sizes, errors = [], []
    for step in (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32):
        artifact = pack(
            family, tmp_path / str(step), profile="auto", objective=objective, step=step
        )
        sizes.append(string_bytes(tmp_path / str(step)))
        errors.append(whole_error(rebuilt(artifact), deltas))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


# --- targets -------------------------------------------------------------------------------------


@EACH_OBJECTIVE
@pytest.mark.parametrize("target", [0.01, 0.05, 0.3, 0.8])
def test_the_error_asked_for_is_kept(tmp_path, objective, target):
    deltas = mixed()
    result = compress(
        (family := write(tmp_path / "family", deltas)).base,
        family.tasks,
        tmp_path / "art",
        profile="auto",
        objective=objective,
        target_error=target,
    )
    got = whole_error(rebuilt(Artifact.open(tmp_path / "art")), deltas)
    assert 0.9 * target < got <= target
    assert result.relative_error == pytest.approx(got, rel=1e-5)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    """Three tasks of 295 000 scalars."""
    deltas = {
        "a": 0.01 * normal(3, 320, 480, seed=1),
        "b": 0.03 * (normal(3, 480, 4, seed=2) @ normal(3, 4, 290, seed=3)),
        "c": 0.02 * normal(3, 2000, seed=4),
    }
    deltas["b"] += 0.01 * normal(3, 480, 290, seed=5)
    return write(tmp_path_factory.mktemp("large"), deltas)


def test_products_of_thin_factors_are_stored_as_such(tmp_path):
    deltas = {"w": normal(2, 96, 4) @ normal(2, 4, 120, seed=1), "bias": torch.zeros(2, 8)}
    _, got = store(tmp_path, deltas)
    assert operations(tmp_path / "art") == {"low-rank"}
    assert SIGNAL_ERROR * 0.9 < whole_error(got, {"w": deltas["w"]}) <= SIGNAL_ERROR


@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_a_little_noise_makes_a_product_no_longer_thin(noise):
    product = normal(60, 3) @ normal(3, 80, seed=1)
    assert is_thin(product + noise * normal(60, 80, seed=2)) == (noise == 0.0)
    assert not is_thin(normal(60, 30) @ normal(30, 80, seed=1)), "its factors have more numbers"
    assert not is_thin(normal(6, 6))


@EACH_OBJECTIVE
@pytest.mark.parametrize("bits", [2.2, 4.0])
def test_the_bits_asked_for_are_met(large, tmp_path, objective, bits):
    pack(large, tmp_path / "art", profile="auto", objective=objective, target_bits=bits)
    wanted = bits * 3 * (320 * 480 + 480 * 290 + 2000) / 8
    assert wanted > 200_000
    assert 0.99 * wanted < size(tmp_path / "art") <= wanted


@EACH_OBJECTIVE
def test_the_bytes_asked_for_are_met(large, tmp_path, objective):
    pack(large, tmp_path / "art", profile="auto", objective=objective, target_size=300_000)
    assert 297_000 < size(tmp_path / "art") <= 300_000


def test_a_size_that_names_and_digests_exceed_is_refused(tmp_path):
    family = write(tmp_path / "family", mixed())
    with pytest.raises(SvdhError, match="target_size"):
        pack(family, tmp_path / "art", profile="auto", target_size=1500)
    assert not (tmp_path / "art").exists()


@pytest.mark.parametrize(
    "targets",
    [
        {"target_error": 0.1, "target_bits": 2.0},
        {"target_bits": 2.0, "target_size": 10**6},
        {"target_size": 10**6, "step": 0.1},
        {"target_error": 0.1, "step": 0.1},
    ],
    ids="-".join,
)
def test_two_targets_exclude_each_other(tmp_path, targets):
    family = write(tmp_path / "family", {"w": normal(2, 8, 8)})
    with pytest.raises(SvdhError, match="exclude each other"):
        pack(family, tmp_path / "art", profile="auto", **targets)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_error": 0.0},
        {"target_error": 3.0},
        {"target_bits": 0.0},
        {"target_size": -1},
        {"step": 0.0},
        {"objective": "beauty"},
        {"max_rank": -1},
        {"energy_threshold": 1.5},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(tmp_path, wrong):
    family = write(tmp_path / "family", {"w": normal(2, 8, 8)})
    with pytest.raises(SvdhError):
        pack(family, tmp_path / "art", profile="auto", **wrong)


# --- how good ------------------------------------------------------------------------------------


def bits_and_error(stack: Tensor, step: float) -> tuple[float, float]:
    """Bits a number of the strings, relative error of what they decode to."""
    found = encoded(stack, step)
    error = squared_error(found, stack, None) / float(stack.double().square().sum())
    bits = 8 * sum(part.nbytes for part in found.parts.values()) / stack.numel()
    return bits, math.sqrt(error)


@pytest.mark.parametrize(("bits", "most"), [(4.0, 0.075), (3.0, 0.15), (2.0, 0.30), (1.0, 0.59)])
def test_white_noise_is_coded_near_its_rate_distortion_bound(bits, most):
    stack = normal(2, 256, 384, seed=3, scale=0.01)
    low, high = 1e-3, 0.04
    for _ in range(8):  # the least step of no more bits
        step = math.sqrt(low * high)
        low, high = (low, step) if bits_and_error(stack, step)[0] <= bits else (step, high)
    found, error = bits_and_error(stack, high)
    assert 0.9 * bits < found <= bits
    assert error * 2.0 ** (found - bits) <= 1.03 * most


@EACH_OBJECTIVE
@pytest.mark.parametrize("step", [1e-2, 1e-3, 1e-4])
def test_fine_steps_lose_what_rounding_loses(objective, step):
    stack = normal(2, 128, 192)
    lost = squared_error(encoded(stack, step, objective), stack, None)
    assert math.isclose(lost / stack.numel(), step**2 / 12, rel_tol=0.02)


@pytest.mark.parametrize("target", [0.1, 0.5, 1.0])
def test_quality_keeps_every_task_its_size(tmp_path, target):
    """Shrink, the share of a delta that is lost along itself, is near 0 at any error."""
    deltas = mixed(4) | {"large.weight": 0.1 * normal(4, 150, 200, seed=30)}
    _, got = store(tmp_path, deltas, objective="quality", target_error=target)
    for task in range(4):
        along = sum(
            float((got[n][task].double() * x[task].double()).sum()) for n, x in deltas.items()
        )
        whole = sum(float(x[task].double().square().sum()) for x in deltas.values())
        assert abs(1 - along / whole) < 0.03


def test_error_beats_quality_in_error_at_the_same_bytes(tmp_path):
    family = write(tmp_path / "family", deltas := mixed())
    errors = {}
    for objective in OBJECTIVES:
        artifact = pack(
            family, tmp_path / objective, profile="auto", objective=objective, target_size=16_000
        )
        errors[objective] = whole_error(rebuilt(artifact), deltas)
    assert errors["error"] < errors["quality"]


# --- the same everywhere, and limits --------------------------------------------------------------


@EACH_OBJECTIVE
def test_the_number_of_threads_changes_no_byte(tmp_path, objective):
    family = write(tmp_path / "family", mixed())
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            folder = tmp_path / str(threads)
            pack(family, folder, profile="auto", objective=objective, target_error=0.2)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            made.append({str(p.relative_to(folder)): p.read_bytes() for p in files})
    finally:
        torch.set_num_threads(before)
    assert made[0] == made[1]


@EACH_OBJECTIVE
def test_no_rank_gives_no_factors(tmp_path, objective):
    deltas = mixed()
    store(tmp_path, deltas, objective=objective, step=0.05, max_rank=0)
    assert operations(tmp_path / "art") == {"dense"}
    store(tmp_path / "free", deltas, objective=objective, step=0.05)
    assert operations(tmp_path / "free" / "art") == {"dense", "low-rank", "tucker"}


def falling_spectrum() -> Tensor:
    """(1, 60, 80), six directions, each a third of the energy of the one before."""
    left, _ = torch.linalg.qr(normal(60, 6, seed=1))
    right, _ = torch.linalg.qr(normal(80, 6, seed=2))
    return (100 * left * 3.0 ** (-torch.arange(6) / 2) @ right.T)[None]


@EACH_OBJECTIVE
@pytest.mark.parametrize("most", [1, 2])
def test_factors_have_no_more_directions_than_allowed(objective, most):
    stack = falling_spectrum()
    found = encoded(stack, 0.1, objective, max_rank=most)
    assert found.rank == most
    assert encoded(stack, 0.1, objective).rank > 2
    assert all(p.rows <= most for n, p in found.parts.items() if n in ("coeff_left", "basis_left"))


@EACH_OBJECTIVE
@pytest.mark.parametrize(("share", "rank"), [(0.01, 1), (0.65, 1), (0.68, 2), (1.0, 3)])
def test_factors_stop_where_they_hold_the_energy_allowed(objective, share, rank):
    """Energies 2/3, 2/9, 2/27 …: the direction that reaches the share is the last one.

    Without limit there are three at least.
    """
    stack = falling_spectrum()
    found = encoded(stack, 0.1, objective, energy_threshold=share).rank
    assert found == rank or (share == 1.0 and found > rank)


@EACH_OBJECTIVE
def test_what_factors_may_not_hold_is_in_the_rest(tmp_path, objective):
    stack = normal(2, 60, 9, seed=1) @ normal(2, 9, 80, seed=2)
    for name, limit in (("rank", {"max_rank": 3}), ("energy", {"energy_threshold": 0.5})):
        deltas = {"w": stack}
        _, got = store(tmp_path / name, deltas, objective=objective, target_error=0.1, **limit)
        assert whole_error(got, deltas) <= 0.1
