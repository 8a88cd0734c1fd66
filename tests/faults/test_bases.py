"""Exactly the base: every bit of every tensor counts, and the files that hold them do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svd_hybrid import Artifact
from svd_hybrid.errors import BaseMismatchError
from svd_hybrid.io.tensors import tensor_digest
from tests.io.checkpoints import write_sharded

GOLDEN = Path(__file__).resolve().parents[2] / "artifacts"
BASE = GOLDEN / "golden-base" / "model.safetensors"
ARTIFACT = GOLDEN / "golden-v1-hybrid"
STATE = load_file(BASE)


def reload_all(base: Path) -> dict[str, str]:
    opened = Artifact.open(ARTIFACT)
    return {name: tensor_digest(x) for name, x in opened.iter_tensors(base)}


def flipped(tensor: torch.Tensor, bit: int) -> torch.Tensor:
    changed = tensor.clone()
    octets = changed.reshape(-1).view(torch.uint8)
    octets[bit // 8] ^= 1 << bit % 8
    return changed


def bits_of(tensor: torch.Tensor) -> list[int]:
    """The first, the last, and one in the middle; truth values have one bit a byte."""
    if not tensor.numel():
        return []
    total = 8 * tensor.nbytes
    if tensor.dtype == torch.bool:
        return [0, total - 8]
    return sorted({0, total // 2 + 3, total - 1})


CASES = [(name, bit) for name, tensor in STATE.items() for bit in bits_of(tensor)]


@pytest.mark.parametrize(("name", "bit"), CASES)
def test_one_changed_bit_is_refused_by_the_name_of_its_tensor(tmp_path, name, bit):
    base = tmp_path / "base.safetensors"
    save_file(STATE | {name: flipped(STATE[name], bit)}, base)
    with pytest.raises(BaseMismatchError, match=f"'{name}'") as caught:
        reload_all(base)
    assert caught.value.exit_code == 5
    (problem,) = Artifact.open(ARTIFACT).verify(base).problems
    assert f"'{name}'" in problem.where


def test_every_tensor_was_tried():
    assert {name for name, _ in CASES} == {n for n, x in STATE.items() if x.numel()}
    assert len(STATE) > 8


@pytest.mark.parametrize("name", STATE)
def test_a_missing_reshaped_or_recast_tensor_is_named(tmp_path, name):
    base, tensor = tmp_path / "base.safetensors", STATE[name]
    others = {key: value for key, value in STATE.items() if key != name}
    half = tensor.half() if tensor.dtype != torch.float16 else tensor.float()
    for changed in (
        others,
        others | {name: tensor.reshape(1, *tensor.shape)},
        others | {name: half},
    ):
        save_file({key: value.contiguous() for key, value in changed.items()}, base)
        with pytest.raises(BaseMismatchError, match=f"'{name}'"):
            reload_all(base)


def test_an_extra_tensor_is_named(tmp_path):
    save_file(STATE | {"one.more": torch.zeros(2)}, tmp_path / "base.safetensors")
    with pytest.raises(BaseMismatchError, match=r"'one\.more' besides"):
        reload_all(tmp_path / "base.safetensors")


def test_the_same_tensors_in_other_files_are_the_same_base(tmp_path):
    wanted = reload_all(BASE)
    names = sorted(STATE)
    three = {
        f"part-{number}.safetensors": {name: STATE[name] for name in names[number::3]}
        for number in range(3)
    }
    save_file({name: STATE[name] for name in reversed(names)}, tmp_path / "weights")
    torch.save(STATE, tmp_path / "base.bin")
    torch.save({"state_dict": STATE, "epoch": 1}, tmp_path / "nested.pt")
    bases = [
        write_sharded(tmp_path / "sharded", three),
        tmp_path / "weights",
        tmp_path / "base.bin",
        tmp_path / "nested.pt",
        BASE.parent,
    ]
    for base in bases:
        assert reload_all(base) == wanted, base
        assert Artifact.open(ARTIFACT).verify(base).problems == []


def test_the_command_says_so_with_exit_code_5(project, svdh):
    for name, tensor in load_file(project.base).items():
        other = project.edit_base(**{name.replace(".", "__"): flipped(tensor, 1)})
        run = svdh(*project.reload("--json", base_model_path=other))
        said = json.loads(run.err)
        assert (run.code, said["code"]) == (5, 5)
        assert f"'{name}'" in said["where"]
