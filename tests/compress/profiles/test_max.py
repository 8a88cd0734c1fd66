"""`max`: what `auto` stores, with rests along the trellis where that is smaller."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svd_hybrid import Artifact
from svd_hybrid.artifact.files import directory_bytes
from svd_hybrid.cli.app import main
from svd_hybrid.codec import TrellisCodec
from svd_hybrid.compress.profiles.auto import AUTO, MAX
from svd_hybrid.compress.profiles.auto.coded_stack import RESTS
from svd_hybrid.compress.profiles.auto.rest import closest_rest, unbiased_rest
from svd_hybrid.compress.profiles.base import EncodedStack, squared_error
from svd_hybrid.compress.profiles.params import AutoParams
from svd_hybrid.delta.evaluate import matrix_shape
from tests.compress.test_same_bits import content
from tests.families import (
    FAMILIES,
    FamilyFiles,
    load_state,
    pack,
    relative_error,
    weights_of,
    write_family,
)

VIT = FAMILIES / "vit-tiny"


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def size(stored: EncodedStack) -> int:
    return sum(part.nbytes for part in stored.parts.values())


def encoded(stack: Tensor, **parameters: object) -> list[EncodedStack]:
    params = AutoParams(error_weight=1.0, **parameters)  # type: ignore[arg-type]
    found = [profile.encode(stack, None, params, "") for profile in (AUTO, MAX)]
    return [stored for stored in found if stored is not None]


@pytest.mark.parametrize(("step", "gain"), [(1.4, 0.04), (2.5, 0.03), (0.7, 0.03)])
def test_noise_takes_fewer_bytes_at_equal_error(step, gain):
    stack = gaussian(2, 120, 200) * torch.exp(0.3 * gaussian(120, 1, seed=1))
    plain, along = encoded(stack, step=step)
    assert size(along) < (1 - gain) * size(plain)
    errors = [squared_error(stored, stack, None) for stored in (plain, along)]
    assert errors[1] == pytest.approx(errors[0], rel=0.08)


def test_weak_rows_keep_the_same_share_as_strong_ones():
    rest = gaussian(400, 500) * torch.exp(0.3 * gaussian(400, 1, seed=1)).sort(0).values
    coded = unbiased_rest(rest, 0.2 * float(rest.square().mean()), may_rotate=False, trellis=True)
    assert coded is not None
    assert isinstance(coded.codec, TrellisCodec)
    for rows, decoded in zip(rest.split(100), coded.decoded().split(100), strict=True):
        assert float((rows * decoded).sum() / rows.square().sum()) == pytest.approx(1.0, abs=0.06)


def test_least_error_costs_less_in_error_and_bits():
    stack = gaussian(1, 120, 200)
    plain, along = encoded(stack, step=1.0, objective="error")
    price = 2 * 0.6931 / 12 * 8
    costs = [squared_error(s, stack, None) + price * size(s) for s in (plain, along)]
    assert costs[1] < 0.99 * costs[0]


@pytest.mark.parametrize("step", [1e-3, 30.0])
def test_very_fine_and_very_coarse_steps_stay_as_auto_has_them(step):
    plain, along = encoded(gaussian(2, 40, 60), step=step)
    assert {name: part.strings for name, part in plain.parts.items()} == {
        name: part.strings for name, part in along.parts.items()
    }


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_edge_data_never_costs_more(factor):
    one = torch.zeros(2, 30, 40)
    one[0, 3, 4] = 1.0
    for stack in (one, torch.ones(2, 30, 40), gaussian(1, 1, 1), gaussian(3, 9, 300)):
        stack = stack * factor
        plain, along = encoded(stack, step=1.4 * factor)
        assert size(along) <= size(plain) + 16
        error = squared_error(along, stack, None)
        assert error <= 1.2 * squared_error(plain, stack, None) + 1e-12 * factor**2


def test_the_trellis_is_used_for_turned_and_plain_rows_and_both_objectives():
    x = gaussian(64, 256)
    turned = unbiased_rest(x, 0.6, may_rotate=True, trellis=True)
    plain = unbiased_rest(x, 0.2, may_rotate=True, trellis=True)
    close = closest_rest(x, 1.0, trellis=True)
    assert turned is not None
    assert plain is not None
    assert close is not None
    assert turned.codec == RESTS["coeff_turned_trellis"]
    assert plain.codec == close.codec == RESTS["coeff_trellis"]
    for rest in (turned, plain, close):
        packed = rest.packed()
        assert torch.equal(packed.codec.decode_slice(packed.string, (64, 256)), rest.decoded())


@pytest.mark.family
@pytest.mark.skipif(not VIT.is_dir(), reason=f"no trained family in {VIT}; set SVDH_FAMILIES")
def test_trained_matrices_take_fewer_bytes_at_equal_error():
    base, *tuned = (load_state(VIT / name / "model.safetensors") for name in ("base", "mnist"))
    names = [name for name in sorted(base) if base[name].ndim == 2 and base[name].numel() > 16000]
    sums = torch.zeros(2, 2, dtype=torch.float64)
    for name in names[:12]:
        stack = torch.stack([state[name] - base[name] for state in tuned])
        stack = stack.reshape(1, *matrix_shape(stack.shape[1:]))
        for row, stored in zip(sums, encoded(stack, step=0.001), strict=True):
            row += torch.tensor([size(stored), squared_error(stored, stack, None)])
    (plain, error), (along, other) = sums.tolist()
    assert other == pytest.approx(error, rel=0.03)
    assert along < 0.97 * plain


def test_an_artifact_of_max_is_read_and_verified(tmp_path):
    family = write_family(tmp_path, shapes={"a.weight": (64, 96), "b.weight": (96,)})
    opened = pack(family, tmp_path / "art", profile="max", target_error=0.3)
    assert b'"name":"trellis"' in (tmp_path / "art" / "manifest.json").read_bytes()
    assert opened.verify(family.base, deep=True).problems == []
    assert opened.verify().problems == []


OBJECTIVES = ("quality", "error")
SHAPES = {"a.weight": (160, 240), "b.weight": (120, 160), "c.bias": (160,)}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return write_family(tmp_path_factory.mktemp("family"), SHAPES, ("ant", "bee", "cat"), seed=4)


def rests(artifact: Artifact, task: int) -> dict[str, bytes]:
    """Tensor → string of one task's rest along the trellis; empty for a rest of zeros."""
    reader = artifact._reader
    return {
        tensor.name: reader.string(part.spans[task])
        for tensor in reader.manifest.tensors
        for name, part in tensor.parts.items()
        if part.spans and name.endswith("trellis") and task < len(part.spans)
    }


@pytest.mark.parametrize(("target", "objective"), [(60_000, "quality"), (35_000, "error")])
def test_the_bytes_asked_for_are_met(family, tmp_path, target, objective):
    artifact = pack(
        family, tmp_path / "art", profile="max", objective=objective, target_size=target
    )
    assert 0.99 * target < directory_bytes(artifact.path) <= target
    assert all(map(any, (rests(artifact, task).values() for task in range(3))))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_number_of_threads_changes_no_byte(family, tmp_path, objective):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            artifact = tmp_path / str(threads)
            found = pack(family, artifact, profile="max", objective=objective, step=0.03)
            assert any(rests(found, 0).values())
    finally:
        torch.set_num_threads(before)
    assert content(tmp_path / "1") == content(tmp_path / "2")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_task_is_appended_along_the_trellis_and_the_others_keep_their_bits(
    family, tmp_path, objective
):
    two = FamilyFiles(family.base, {task: family.tasks[task] for task in ("ant", "bee")})
    first = pack(two, tmp_path / "first", profile="max", objective=objective, target_error=0.2)
    task = f"cat={family.tasks['cat']}"
    argv = ["compress", "-q", "--base", str(family.base), "--append", "--task", task]
    argv += ["--from-artifact", str(first.path), "--artifact-dir", str(tmp_path / "grown")]
    assert main(argv) == 0
    grown = Artifact.open(tmp_path / "grown")
    assert grown.tasks == ("ant", "bee", "cat")
    for index, stored in enumerate(two.tasks):
        assert rests(grown, index) == rests(first, index)
        before = weights_of(first, family, task=stored)
        after = weights_of(grown, family, task=stored)
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(rests(grown, 2).values())
    assert grown.verify(family.base, deep=True).problems == []
    for name, weight in weights_of(grown, family, task="cat").items():
        start, want = load_state(family.base)[name], load_state(family.tasks["cat"])[name]
        assert relative_error(weight - start, want - start) < 0.3
