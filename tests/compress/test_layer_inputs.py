"""Rounding that minds the layers' inputs: less harm for the bytes, nothing for a reader to know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from svd_hybrid import Artifact, compress
from svd_hybrid.compress.layer_inputs import LayerInputs
from svd_hybrid.errors import FamilyError, UsageError
from tests.families import FamilyFiles, deltas_of, pack, write_family

SHAPES = {"a.weight": (96, 80), "b.weight": (64, 96), "b.bias": (64,)}
MATRICES = ("a.weight", "b.weight")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return write_family(tmp_path_factory.mktemp("family"), SHAPES, seed=3)


def gram(features: int, seed: int) -> Tensor:
    """Of inputs of which few directions carry most."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.linalg.qr(torch.randn(features, features, generator=random)).Q
    inputs = torch.randn(400, features, generator=random) * torch.logspace(0, -1.5, features)
    return mixed.T @ (inputs.T @ inputs / 400) @ mixed


@pytest.fixture(scope="module")
def grams(family: FamilyFiles) -> dict[str, dict[str, Tensor]]:
    return {
        task: {name: gram(SHAPES[name][1], 7 * seed) for name in MATRICES}
        for seed, task in enumerate(family.tasks)
    }


def write(folder: Path, by_task: dict[str, dict[str, Tensor]]) -> Path:
    folder.mkdir(parents=True)
    for task, tensors in by_task.items():
        save_file(tensors, folder / f"{task}.safetensors")
    return folder


def harm(artifact: Artifact, family: FamilyFiles, grams: dict[str, dict[str, Tensor]]) -> float:
    """What the layers' outputs lose over what they change by."""
    lost = meant = 0.0
    for index, task in enumerate(family.tasks):
        got = deltas_of(artifact, task=task)
        for name, h in grams[task].items():
            delta = family.deltas(name)[index]
            error = got[name].double() - delta
            lost += float(((error @ h.double()) * error).sum())
            meant += float(((delta @ h.double()) * delta).sum())
    return lost / meant


def size(folder: Path) -> int:
    """Bytes of every file."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("step", "finer"), [(0.04, 0.036), (0.1, 0.09)])
def test_outputs_lose_less_for_fewer_bytes(family, grams, tmp_path, step, finer):
    folder = write(tmp_path / "stats", grams)
    plain = pack(family, tmp_path / "plain", step=finer)
    minded = pack(family, tmp_path / "minded", step=step, statistics_dir=folder)
    assert size(tmp_path / "minded") < size(tmp_path / "plain")
    assert harm(minded, family, grams) < 0.75 * harm(plain, family, grams)


def test_white_inputs_change_little(family, grams, tmp_path):
    white = {t: {n: torch.eye(len(h)) for n, h in by.items()} for t, by in grams.items()}
    folder = write(tmp_path / "stats", white)
    plain = pack(family, tmp_path / "plain", step=0.02)
    minded = pack(family, tmp_path / "minded", step=0.02, statistics_dir=folder)
    assert harm(minded, family, white) == pytest.approx(harm(plain, family, white), rel=0.05)


def test_weights_stored_inputs_first_are_rounded_as_their_transposes():
    x, h = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), gram(9, 1)
    numbers, gain = LayerInputs(h, turned=False).rounded(x)
    turned, same = LayerInputs(h, turned=True).rounded(x.T)
    assert torch.equal(turned, numbers.T)
    assert same == gain


def test_the_mean_is_kept_as_the_outputs_feel_it():
    x, h = torch.randn(50, 30, generator=torch.Generator().manual_seed(2)), gram(30, 3)
    numbers, gain = LayerInputs(h, turned=False).rounded(x)
    assert not torch.equal(numbers, x.round())
    share = 0.25 * x.numel() / float(x.square().sum())
    damped = h.double() + share * float(h.diagonal().mean()) * torch.eye(30)
    felt = x.double() @ damped
    assert gain * float((felt * numbers).sum()) == pytest.approx(float((felt * x).sum()), rel=1e-6)


def test_second_moments_alone_are_not_minded_and_a_note_says_so(family, grams, tmp_path):
    moments = {t: {n: h.diagonal().clone() for n, h in by.items()} for t, by in grams.items()}
    folder = write(tmp_path / "stats", moments)
    result = compress(family.base, family.tasks, tmp_path / "art", step=0.02, statistics_dir=folder)
    compress(family.base, family.tasks, tmp_path / "plain", step=0.02)
    assert any("without regard to inputs: 'a.weight', 'b.weight'" in note for note in result.notes)
    assert any("without a record of their model" in note for note in result.notes)
    same, plain = (
        deltas_of(Artifact.open(tmp_path / name), task="ant") for name in ("art", "plain")
    )
    assert all(torch.equal(same[name], plain[name]) for name in plain)


def test_tensors_of_one_task_only_are_refused(family, grams, tmp_path):
    first = next(iter(grams))
    lacking = grams | {first: {"a.weight": grams[first]["a.weight"]}}
    with pytest.raises(FamilyError, match=r"b\.weight"):
        pack(family, tmp_path / "art", step=0.02, statistics_dir=write(tmp_path / "stats", lacking))
    assert not (tmp_path / "art").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "error", "step": 0.02},
        {"profile": "hybrid"},
        {"method": "ties"},
    ],
)
def test_whoever_has_no_use_for_inputs_refuses_them(family, grams, tmp_path, settings):
    with pytest.raises(UsageError, match="layer statistics"):
        pack(
            family,
            tmp_path / "art",
            **settings,
            statistics_dir=write(tmp_path / "stats", grams),
        )


def test_masks_and_inputs_are_not_combined(family, grams, tmp_path):
    masks = {t: {n: torch.rand(s) > 0.5 for n, s in SHAPES.items()} for t in family.tasks}
    with pytest.raises(UsageError, match="under masks"):
        pack(
            family,
            tmp_path / "art",
            step=0.02,
            mask_dir=write(tmp_path / "masks", masks),
            statistics_dir=write(tmp_path / "stats", grams),
        )
