"""`svdh masks`: files that other commands read, and what they select."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from svd_hybrid import Artifact
from svd_hybrid.compress.masks.build import tall_mask_bits
from svd_hybrid.errors import ParameterError
from svd_hybrid.io.masks import open_masks
from svd_hybrid.io.packed_masks import BitPacker
from svd_hybrid.io.reader import open_checkpoint
from tests.cli.project import TASKS, Project

FLOATS = ["blocks.0.fc.bias", "blocks.0.fc.weight", "norm.weight"]
SCALARS = 12 + 12 * 20 + 20


def build(project: Project, *more: object) -> list[object]:
    words = ["masks", "build", "--base-model-path", project.base, "--checkpoint-dir", project.ckpts]
    return [*words, "--tasks", *TASKS, "--output", project.root / "masks", *more]


def inspect(project: Project, path: Path, *more: object) -> list[object]:
    words = ["masks", "inspect", "--mask-dir", path, "--base-model-path", project.base]
    return [*words, "--tasks", *TASKS, *more]


def expected(project: Project, threshold: float) -> dict[str, dict[str, torch.Tensor]]:
    """Task → tensor → mask, by the definition: |base - tuned| > lambda |base + sum - tuned|."""
    base = load_file(project.base)
    tuned = {task: load_file(project.checkpoint(task)) for task in TASKS}
    found: dict[str, dict[str, torch.Tensor]] = {task: {} for task in TASKS}
    for name in FLOATS:
        vector = sum(tuned[task][name] - base[name] for task in TASKS)
        for task in TASKS:
            far = (base[name] - tuned[task][name]).abs()
            near = (base[name] + vector - tuned[task][name]).abs()
            found[task][name] = far > threshold * near
    return found


def test_build_writes_a_file_per_threshold_and_prints_them(project, svdh):
    run = svdh(*build(project, "--lambdas", "0.2,0.5"))
    folder = project.root / "masks"
    files = [folder / "TALL_mask_0.2.safetensors", folder / "TALL_mask_0.5.safetensors"]
    assert (run.code, run.out.split()) == (0, [str(file) for file in files])
    assert sorted(folder.iterdir()) == files
    assert all(word in run.err for word in (*TASKS, "lambda", "0.2", "0.5", "%"))
    infos = open_checkpoint(project.base).infos
    for file, threshold in zip(files, (0.2, 0.5), strict=True):
        assert {x.dtype for x in load_file(file).values()} == {torch.uint8}
        found = open_masks(file, list(TASKS), infos)
        for task, masks in expected(project, threshold).items():
            for name, mask in masks.items():
                assert torch.equal(found[task].read(name), mask)
            assert found[task].read("steps") is None


def test_bits_are_those_of_the_canonical_flattening(project, svdh):
    assert svdh(*build(project, "--lambdas", "0.4", "-q")).err == ""
    written = load_file(project.root / "masks" / "TALL_mask_0.4.safetensors")
    tasks = {task: project.checkpoint(task) for task in TASKS}
    bits = tall_mask_bits(project.base, tasks, [0.4])["0.4"]
    for task, masks in expected(project, 0.4).items():
        flat = torch.cat([masks[name].reshape(-1) for name in FLOATS])
        assert written[task].tolist() == np.packbits(flat.numpy()).tolist()
        assert torch.equal(bits[task], written[task])


def test_bits_in_pieces_of_any_length():
    bits = torch.rand(61, generator=torch.Generator().manual_seed(0)) < 0.5
    packer = BitPacker()
    pieces = [packer.feed(part) for part in bits.split([1, 0, 6, 17, 8, 29])]
    whole = np.concatenate([*pieces, packer.finish()])
    assert whole.tolist() == np.packbits(bits.numpy()).tolist()


@pytest.mark.parametrize("vector", ["sum", "ties"])
@pytest.mark.parametrize("method", ["tall-masks", "consensus"])
def test_compress_with_the_file_equals_compress_without(project, svdh, method, vector):
    assert svdh(*build(project, "--lambdas", "0.4", "--vector", vector)).code == 0
    file = project.root / "masks" / "TALL_mask_0.4.safetensors"
    words = ["--method", method, "--vector", vector]
    assert svdh(*project.compress(*words, "--lambdas", "0.4")).code == 0
    with_file = project.compress(*words, "--mask-dir", file, artifact_dir=project.root / "with")
    assert svdh(*with_file).code == 0
    first, second = (Artifact.open(project.root / name) for name in ("new", "with"))
    for (name, delta), (_, other) in zip(first.iter_tensors(), second.iter_tensors(), strict=True):
        assert torch.equal(delta, other), name


@pytest.mark.parametrize("method", ["dare-linear", "svd-hybrid"])
def test_other_methods_read_the_file_too(project, svdh, method):
    assert svdh(*build(project, "--lambdas", "0.4")).code == 0
    file = project.root / "masks" / "TALL_mask_0.4.safetensors"
    run = svdh(*project.compress("--method", method, "--mask-dir", file))
    assert (run.code, run.err.count("note:")) == (0, 0)


def test_a_folder_of_several_packed_files_asks_for_one(project, svdh):
    assert svdh(*build(project)).code == 0
    run = svdh(*project.compress("--method", "consensus", mask_dir=project.root / "masks"))
    assert run.code == 3
    assert "several packed mask files" in run.err
    assert "name one of them instead of the folder" in run.err


def test_build_as_json(project, svdh):
    run = svdh(*build(project, "--json", "--lambdas", "0,0.4"))
    document = json.loads(run.out)
    assert (run.code, run.err) == (0, "")
    assert document["files"]["0.4"] == str(project.root / "masks" / "TALL_mask_0.4.safetensors")
    assert document["coverage"]["0"] == pytest.approx(dict.fromkeys(TASKS, 1.0))
    for task, masks in expected(project, 0.4).items():
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert document["coverage"]["0.4"][task] == pytest.approx(kept / SCALARS)


def test_inspect_counts_what_is_selected_and_shared(project, svdh):
    assert svdh(*build(project, "--lambdas", "0.4")).code == 0
    file = project.root / "masks" / "TALL_mask_0.4.safetensors"
    run = svdh(*inspect(project, file, "--json", "--tensors"))
    document = json.loads(run.out)
    assert (run.code, run.err, document["scalars"]) == (0, "", SCALARS)
    masks = expected(project, 0.4)
    votes = {name: torch.stack([masks[task][name] for task in TASKS]).sum(0) for name in FLOATS}
    whole = torch.cat([vote.reshape(-1) for vote in votes.values()])
    assert document["shared_by"] == torch.bincount(whole, minlength=4).tolist()
    for name in FLOATS:
        tensor = document["tensors"][name]
        assert tensor["shared_by"] == torch.bincount(votes[name].reshape(-1), minlength=4).tolist()
        for task in TASKS:
            assert tensor["coverage"][task] == pytest.approx(
                float(masks[task][name].float().mean())
            )
    assert "tensors" not in json.loads(svdh(*inspect(project, file, "--json")).out)


def test_inspect_as_text(project, svdh):
    for task in TASKS:
        mask = {"norm.weight": torch.arange(20) < 5}
        (project.root / "own").mkdir(exist_ok=True)
        save_file(mask, project.root / "own" / f"{task}_mask.safetensors")
    run = svdh(*inspect(project, project.root / "own", "--tensors"))
    assert (run.code, run.err) == (0, "")
    for word in (*TASKS, "masks of 1 tensors", "25.00%", "75.00%", "norm.weight"):
        assert word in run.out


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--lambdas", "0.4,0.40"], 2, "one is given twice"),
        (["--lambdas", ""], 2, "lambdas are missing"),
        (["--lambdas", "-1"], 2, "must be in [0, inf)"),
        (["--lambdas", "nan"], 2, "must be in [0, inf)"),
        (["--lambdas", "some"], 2, "lambdas is 'some'"),
        (["--vector", "mean"], 2, "'mean' is not one of"),
        (["--task", "cars=x.pt"], 2, "task 'cars' is given twice"),
        (["--task", "pets=x.pt"], 8, "checkpoint does not exist"),
    ],
)
def test_mistakes_of_build(project, svdh, more, code, said):
    before = project.snapshot()
    run = svdh(*build(project, *more))
    assert (run.code, run.out) == (code, "")
    assert said in run.err
    assert project.snapshot() == before, "a refused run left something"


def test_build_replaces_only_when_told(project, svdh):
    assert svdh(*build(project, "--lambdas", "0.4")).code == 0
    run = svdh(*build(project, "--lambdas", "0.5"))
    assert (run.code, "output exists" in run.err) == (8, True)
    assert svdh(*build(project, "--lambdas", "0.5", "--overwrite")).code == 0
    names = [path.name for path in (project.root / "masks").iterdir()]
    assert names == ["TALL_mask_0.5.safetensors"]


def test_mistakes_of_inspect(project, svdh):
    assert "mask folder does not exist" in svdh(*inspect(project, project.root / "no")).err
    assert svdh(*build(project, "--lambdas", "0.4")).code == 0
    file = project.root / "masks" / "TALL_mask_0.4.safetensors"
    run = svdh("masks", "inspect", "--mask-dir", file, "--base", project.base, "--tasks", "pets")
    assert (run.code, "no mask for task 'pets'" in run.err) == (3, True)
    run = svdh("masks", "inspect", "--mask-dir", file, "--tasks", "cars")
    assert (run.code, "no base given" in run.err) == (2, True)
    run = svdh(*inspect(project, file, "cars"))
    assert (run.code, "a task is named twice" in run.err) == (2, True)
    smaller = project.edit_base(norm__weight=None)
    run = svdh("masks", "inspect", "--mask-dir", file, "--base", smaller, "--tasks", "cars")
    assert (run.code, "252 scalars need 32 bytes" in run.err) == (3, True)
    run = svdh(*inspect(project, project.base))
    assert (run.code, "is no packed mask: it is" in run.err) == (3, True)


def test_masks_of_different_tensors_are_not_compared(project, svdh):
    (project.root / "own").mkdir()
    for task, name in zip(TASKS, ("norm.weight", "norm.weight", "blocks.0.fc.bias"), strict=True):
        mask = torch.ones(20 if name == "norm.weight" else 12, dtype=torch.bool)
        save_file({name: mask}, project.root / "own" / f"{task}_mask.safetensors")
    run = svdh(*inspect(project, project.root / "own"))
    assert (run.code, "masks of some tasks cover" in run.err) == (3, True)


def test_other_parameters_of_the_family(project):
    project.edit_task("cars", norm__weight=None)
    tasks = {task: project.checkpoint(task) for task in TASKS}
    bits = tall_mask_bits(project.base, tasks, [0.4], on_missing="skip")["0.4"]
    assert all(int(np.unpackbits(mask.numpy())[252:].sum()) == 0 for mask in bits.values())
    with pytest.raises(ParameterError, match="vector is 'mean'"):
        tall_mask_bits(project.base, tasks, [0.4], "mean")
