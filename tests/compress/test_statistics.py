"""Layer statistics: found by exact name, refused where they cannot be meant, used per task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svd_hybrid import Artifact, compress
from svd_hybrid.errors import FamilyError, ParameterError, StorageError, SvdhError, UsageError
from tests.families import FamilyFiles, deltas_of, relative_error, write_family

SHAPES = {"a.weight": (16, 12), "b.weight": (12, 16), "b.bias": (12,), "embed.weight": (20, 16)}
LINEAR = ("a.weight", "b.weight")
MOMENT, GRAM = ("scale-svd", "iso-iasad"), ("sparsegpt-ties", "sparsegpt-dare")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return write_family(tmp_path_factory.mktemp("family"), SHAPES, seed=8)


def moments(seed: int, names: tuple[str, ...] = (*LINEAR, "embed.weight")) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.rand(SHAPES[name][1], generator=random) + 0.05 for name in names}


def grams(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(64, SHAPES[name][1], generator=random) for name in LINEAR}
    return {name: x.T @ x / len(x) for name, x in inputs.items()}


def write(folder: Path, by_task: dict[str, dict[str, Tensor]]) -> Path:
    folder.mkdir(parents=True)
    for task, tensors in by_task.items():
        save_file(tensors, folder / f"{task}.safetensors")
    return folder


def run(family: FamilyFiles, folder: Path, method: str, **more: Any) -> Artifact:
    folder.mkdir(exist_ok=True)
    compress(family.base, family.tasks, folder / "art", method=method, **more)
    return Artifact.open(folder / "art")


def every(make: Any, family: FamilyFiles) -> dict[str, dict[str, Tensor]]:
    return {task: make(seed) for seed, task in enumerate(family.tasks)}


@pytest.mark.parametrize("method", [*MOMENT, *GRAM])
def test_a_method_that_reads_statistics_does_not_run_without(family, tmp_path, method):
    with pytest.raises(UsageError, match=f"{method} reads layer statistics, and none were given"):
        run(family, tmp_path, method)
    assert not (tmp_path / "art").exists()


@pytest.mark.parametrize("method", ["ties", "iso-c"])
def test_a_method_that_reads_none_refuses_them(family, tmp_path, method):
    folder = write(tmp_path / "stats", every(moments, family))
    with pytest.raises(UsageError, match="reads no layer statistics"):
        run(family, tmp_path, method, statistics_dir=folder)


@pytest.mark.parametrize(
    ("method", "make"), [(m, moments) for m in MOMENT] + [(m, grams) for m in GRAM]
)
def test_each_task_uses_its_own_statistics(family, tmp_path, method, make):
    own = every(make, family)
    right = run(family, tmp_path / "1", method, statistics_dir=write(tmp_path / "own", own))
    first = dict.fromkeys(family.tasks, own["ant"])
    wrong = run(family, tmp_path / "2", method, statistics_dir=write(tmp_path / "one", first))
    plain = {"input_scaling": False} if method in MOMENT else {"score": "magnitude"}
    none = run(family, tmp_path / "3", method, **plain)
    for name in LINEAR:
        merged = deltas_of(right)[name]
        assert relative_error(deltas_of(wrong)[name], merged) > 1e-4
        assert relative_error(deltas_of(none)[name], merged) > 1e-4
    assert relative_error(deltas_of(none)["b.bias"], deltas_of(right)["b.bias"]) < 1e-6


@pytest.mark.parametrize("method", MOMENT)
def test_a_matrix_without_moments_is_refused_or_weighed_alike(family, tmp_path, method):
    folder = write(tmp_path / "stats", {task: moments(1, LINEAR) for task in family.tasks})
    with pytest.raises(ParameterError, match="input scaling needs the second moments"):
        run(family, tmp_path, method, statistics_dir=folder)
    artifact = run(family, tmp_path, method, statistics_dir=folder, missing_statistics="ones")
    alike = {t: moments(1, LINEAR) | {"embed.weight": torch.ones(16)} for t in family.tasks}
    same = run(family, tmp_path / "same", method, statistics_dir=write(tmp_path / "ones", alike))
    for name, delta in deltas_of(artifact).items():
        assert torch.equal(deltas_of(same)[name], delta)


def test_what_has_no_gram_is_trimmed_by_magnitude_and_said_so(family, tmp_path):
    folder = write(tmp_path / "stats", every(grams, family))
    result = compress(
        family.base, family.tasks, tmp_path / "art", method="sparsegpt-ties",
        statistics_dir=folder,
    )  # fmt: skip
    notes = " ".join(result.notes)
    assert "trimmed by magnitude" in notes
    assert "embed.weight" in notes
    assert "a.weight" not in notes


@pytest.mark.parametrize(
    ("change", "fault", "text"),
    [
        (lambda s: s["bee"].pop("a.weight"), FamilyError, "task 'bee' has no statistics for 'a"),
        (lambda s: s.pop("cat"), FamilyError, "no statistics of task 'cat'"),
        (lambda s: s["ant"].update({"a.weigth": torch.ones(12)}), FamilyError, "names? 'a.weigth'"),
        (lambda s: s["ant"].update({"a.weight": torch.ones(11)}), FamilyError, "12 features"),
        (
            lambda s: s["ant"].update({"a.weight": torch.full((12,), torch.nan)}),
            FamilyError,
            "NaN, infinity or a negative",
        ),
        (lambda s: s["ant"].update({"a.weight": -torch.ones(12)}), FamilyError, "negative"),
    ],
)
def test_statistics_that_cannot_be_meant(family, tmp_path, change, fault, text):
    stored = every(moments, family)
    change(stored)
    folder = write(tmp_path / "stats", stored)
    with pytest.raises(fault, match=text):
        run(family, tmp_path, "scale-svd", statistics_dir=folder)
    assert not (tmp_path / "art").exists()


def test_a_folder_that_does_not_exist(family, tmp_path):
    with pytest.raises((StorageError, SvdhError)):
        run(family, tmp_path, "scale-svd", statistics_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("method", MOMENT)
def test_adaptive_budgets_lower_the_weighted_error_within_the_same_budget(family, tmp_path, method):
    """A family whose tasks and layers differ in how much they can be compressed."""
    loud = write_family(tmp_path / "loud", SHAPES, seed=9)
    stored = every(moments, loud)
    for scale, tensors in zip((1.0, 30.0, 900.0), stored.values(), strict=True):
        for moment in tensors.values():
            moment.mul_(scale)
    folder = write(tmp_path / "stats", stored)
    sizes, errors = {}, {}
    for adaptive in (False, True):
        result = compress(
            loud.base, loud.tasks, tmp_path / f"art{adaptive}", method=method, sparsity=0.6,
            num_iters=3, adaptive=adaptive, statistics_dir=folder,
        )  # fmt: skip
        shards = (result.artifact_dir / "coeffs").glob("*.safetensors")
        sizes[adaptive] = sum(int(x.count_nonzero()) for s in shards for x in load_file(s).values())
        if method != "scale-svd":
            continue
        artifact = Artifact.open(result.artifact_dir)
        errors[adaptive] = sum(
            float(((delta - loud.deltas(name)[index]) * stored[task][name].sqrt()).square().sum())
            for index, task in enumerate(loud.tasks)
            for name, delta in deltas_of(artifact, task=task).items()
            if name in stored[task]
        )
    if method == "scale-svd":
        assert errors[True] < 0.8 * errors[False]
        assert sizes[True] <= 1.15 * sizes[False]
    else:
        merged = [deltas_of(Artifact.open(tmp_path / f"art{a}"))["a.weight"] for a in (True, False)]
        assert relative_error(*merged) > 1e-4


def test_second_moments_in_the_place_of_grams_are_noted(family, tmp_path):
    folder = write(tmp_path / "stats", every(moments, family))
    tmp_path.joinpath("run").mkdir()
    result = compress(
        family.base,
        family.tasks,
        tmp_path / "run/art",
        method="sparsegpt-ties",
        statistics_dir=folder,
    )
    assert any("count as unrelated: 'a.weight'" in note for note in result.notes)
