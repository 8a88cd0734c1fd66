"""What the target error holds for, and trials: what they foretell is what is stored."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from svd_hybrid import compress
from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.profiles.auto import AUTO, MAX
from svd_hybrid.compress.profiles.base import squared_error
from svd_hybrid.compress.profiles.params import AutoParams
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.tensor import encode_tensor, settings_of_kind, try_tensor
from svd_hybrid.errors import ParameterError, SvdhError
from svd_hybrid.io.tensors import TensorInfo
from tests.compress.profiles.test_auto import normal, rebuilt, whole_error, write
from tests.families import State, pack


def uneven() -> State:
    """Tasks and tensors of very different sizes."""
    sizes = torch.tensor([1.0, 0.2, 0.05]).reshape(3, 1, 1)
    strong = normal(3, 6, 96, seed=3).transpose(1, 2) @ normal(3, 6, 64, seed=4)
    return {
        "a.weight": normal(3, 96, 64, seed=1) * sizes,
        "b.weight": 0.1 * normal(3, 48, 80, seed=2),
        "c.weight": 0.3 * strong * sizes + 0.01 * normal(3, 96, 64, seed=5),
        "d.bias": 0.02 * normal(3, 64, seed=6),
    }


def task_errors(got: State, want: State) -> list[float]:
    return [
        whole_error(
            {name: x[task] for name, x in got.items()}, {name: x[task] for name, x in want.items()}
        )
        for task in range(3)
    ]


@pytest.mark.parametrize("objective", ["quality", "error"])
def test_every_task_keeps_to_the_error(tmp_path, objective):
    deltas = uneven()
    options = {"profile": "auto", "target_error": 0.3, "objective": objective}
    files = write(tmp_path / "family", deltas)
    whole = task_errors(rebuilt(pack(files, tmp_path / "whole", **options)), deltas)
    each = task_errors(
        rebuilt(pack(files, tmp_path / "each", error_scope="task", **options)), deltas
    )
    assert max(whole) > 0.35
    assert 0.25 < max(each) <= 0.3


@pytest.mark.parametrize("profile", ["auto", "max"])
@pytest.mark.parametrize("objective", ["quality", "error"])
def test_every_tensor_keeps_to_the_error(tmp_path, profile, objective):
    deltas = uneven()
    options = {"target_error": 0.2, "objective": objective, "error_scope": "tensor"}
    got = rebuilt(pack(write(tmp_path / "f", deltas), tmp_path / "art", profile=profile, **options))
    for name, stack in deltas.items():
        lost = float((got[name] - stack).norm() / stack.norm())
        assert 0.17 < lost <= 0.2, name


def test_without_a_target_every_tensor_gets_the_default_one(tmp_path):
    deltas = uneven()
    got = rebuilt(pack(write(tmp_path / "f", deltas), tmp_path / "art", error_scope="tensor"))
    for name, stack in deltas.items():
        assert 0.25 < float((got[name] - stack).norm() / stack.norm()) <= 0.3, name


@pytest.mark.parametrize("target", [{"target_bits": 2.0}, {"target_size": 9999.0}, {"step": 0.1}])
def test_a_scope_goes_with_an_error(target):
    with pytest.raises(ParameterError, match="error_scope"):
        AutoParams(error_scope="task", **target)


def test_an_unknown_scope_is_refused(tmp_path):
    files = write(tmp_path / "f", {"w": normal(2, 8, 8)})
    with pytest.raises(SvdhError, match="error_scope"):
        compress(files.base, files.tasks, tmp_path / "art", error_scope="row")


@pytest.mark.parametrize("profile", [AUTO, MAX], ids=lambda profile: profile.name)
@pytest.mark.parametrize("objective", ["quality", "error"])
@pytest.mark.parametrize("step", [0.005, 0.05, 0.4])
@pytest.mark.parametrize("masked", [False, True])
def test_a_trial_foretells_bytes_and_error(profile, objective, step, masked):
    strong = normal(3, 6, 128, seed=3).transpose(1, 2) @ normal(3, 6, 192, seed=4)
    stack = 0.03 * strong + 0.04 * normal(3, 128, 192, seed=5)
    mask = normal(128, 192, seed=9) > 0.2 if masked else None
    params = AutoParams(step=step, objective=objective, error_weight=1.0)
    assert profile.try_out is not None
    tried = profile.try_out(stack, mask, params, None)
    stored = profile.encode(stack, mask, params, "")
    assert stored is not None
    nbytes = sum(part.nbytes for part in stored.parts.values())
    assert abs(tried.nbytes - nbytes) < 0.004 * nbytes + 12 * sum(
        part.slices for part in stored.parts.values()
    )
    lost = squared_error(stored, stack, mask)
    assert math.isclose(sum(tried.lost), lost, rel_tol=1e-4)


def test_a_trial_of_a_masked_tensor_counts_both_regions():
    config = resolve_config(
        {
            "method": "svd-hybrid",
            "profile": "auto",
            "include_noise": True,
            "step": 0.1,
        },
        "test",
    )
    info = TensorInfo("F32", (96, 64))
    settings = FamilySettings(config, ["x", "y"], (0.5, 0.5), {"w": info}).of("w")
    settings = settings_of_kind(settings, "auto", "w", (96, 64))
    deltas: Tensor = normal(2, 96, 64, seed=1)
    mask = normal(96, 64, seed=2) > 0.5
    tried = try_tensor(deltas, mask, config, settings)
    stored = encode_tensor(deltas, mask, config, settings)
    lost = sum(task.stored.error_sq for task in stored.errors)
    assert math.isclose(sum(tried.lost), lost, rel_tol=1e-4)
    assert math.isclose(tried.nbytes, stored.nbytes, rel_tol=0.02)
