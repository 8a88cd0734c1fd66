"""Equal inputs give equal artifacts, and an artifact gives equal weights, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from svd_hybrid import reload
from svd_hybrid.artifact import writer
from svd_hybrid.io.model_writer import write_model
from svd_hybrid.io.tensors import info_of
from svd_hybrid.reload import rebuild
from tests.families import SHAPES, FamilyFiles, State, load_state, pack, write_family, write_states

MEASURED = ("diagnostics.json", "manifest.json")
CLUSTERED = {"weighting": "cluster", "cluster_k": 2}
CONFIGURATIONS = {
    "default": {},
    "hybrid": {"profile": "hybrid"},
    "tasks basis": {"basis": "tasks", **CLUSTERED},
    "right basis, all quantised": {
        "basis": "right",
        "basis_dtype": "int4",
        "energy_threshold": 0.1,
    },
    "unquantised": {"fp16": False, "energy_threshold": 1.0},
}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    shapes = {**SHAPES, "wide.weight": (24, 160), "empty": (0, 3)}
    return write_family(tmp_path_factory.mktemp("family"), shapes, seed=5)


def content(folder: Path) -> dict[str, bytes]:
    """Relative path → bytes of every file below."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("parameters", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_compressing_twice_gives_the_same_bytes_on_one_thread_and_on_two(
    family, tmp_path, threads, parameters
):
    for count in (1, 2):
        threads(count)
        pack(family, tmp_path / f"on-{count}", **parameters)
    assert content(tmp_path / "on-1") == content(tmp_path / "on-2")


def states_of(family: FamilyFiles) -> dict[str, State]:
    return {path.stem: load_state(path) for path in (family.base, *family.tasks.values())}


def as_torch_files(family: FamilyFiles, folder: Path) -> FamilyFiles:
    states = states_of(family)
    return write_states(folder, states.pop("base"), states, ".pt")


def as_nested_torch_files(family: FamilyFiles, folder: Path) -> FamilyFiles:
    moved = as_torch_files(family, folder)
    for path in (moved.base, *moved.tasks.values()):
        torch.save({"model_state_dict": load_state(path)}, path)
    return moved


def as_sharded_folders(family: FamilyFiles, folder: Path) -> FamilyFiles:
    folder.mkdir()
    for name, state in states_of(family).items():
        write_model(
            folder / name,
            {key: info_of(tensor) for key, tensor in state.items()},
            lambda names, state=state: ((key, state[key]) for key in names),
            base=family.base,
            max_shard_bytes=2000,
        )
        assert len(list((folder / name).glob("*.safetensors"))) > 2
    return FamilyFiles(folder / "base", {task: folder / task for task in family.tasks})


def in_another_order(family: FamilyFiles, folder: Path) -> FamilyFiles:
    states = {
        name: dict(reversed(list(state.items()))) for name, state in states_of(family).items()
    }
    return write_states(folder, states.pop("base"), states, ".pt")


@pytest.mark.parametrize(
    "other", [as_torch_files, as_nested_torch_files, as_sharded_folders, in_another_order]
)
def test_the_same_tensors_in_other_files_store_the_same_bytes(family, tmp_path, other):
    pack(family, tmp_path / "first")
    pack(other(family, tmp_path / "moved"), tmp_path / "second")
    first, second = content(tmp_path / "first"), content(tmp_path / "second")
    for measured in MEASURED:  # the sizes of the source files, and the digest of that document
        assert first.pop(measured)
        assert second.pop(measured)
    assert first == second


def test_copied_inputs_give_the_same_bytes(family, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(family.base.parent, copied)
    elsewhere = {task: copied / path.name for task, path in family.tasks.items()}
    pack(family, tmp_path / "first")
    pack(FamilyFiles(copied / family.base.name, elsewhere), tmp_path / "second")
    assert content(tmp_path / "first") == content(tmp_path / "second")


@pytest.mark.parametrize("parameters", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize(
    "selection",
    [{}, {"task": "bee"}, {"weights": {"ant": 0.3, "bee": -1.7, "cat": 0.25}}],
    ids=["merged", "task", "weights"],
)
def test_reload_gives_the_same_bits_for_any_threads_and_any_block(
    family, tmp_path, threads, monkeypatch, parameters, selection
):
    artifact = pack(family, tmp_path / "artifact", **parameters)
    results = []
    for count, block in ((1, 2**20), (2, 97), (4, 1), (4, 4096)):
        threads(count)
        monkeypatch.setattr(rebuild, "BLOCK_SCALARS", block)
        results.append(dict(artifact.iter_tensors(family.base, **selection)))
    for other in results[1:]:
        assert list(other) == list(results[0])
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@pytest.mark.parametrize("profile", ["auto", "hybrid"])
def test_an_artifact_in_many_shards_gives_the_same_bits(family, tmp_path, monkeypatch, profile):
    whole = pack(family, tmp_path / "whole", profile=profile)
    monkeypatch.setattr(writer, "SHARD_BYTES", 60)
    cut = pack(family, tmp_path / "cut", profile=profile)
    shards = [len(list(artifact.path.glob("*/*.safetensors"))) for artifact in (whole, cut)]
    assert shards[1] > shards[0] + 3
    for selection in ({}, {"task": "cat"}):
        uncut = dict(whole.iter_tensors(family.base, **selection))
        for name, tensor in cut.iter_tensors(family.base, **selection):
            assert torch.equal(tensor, uncut[name])


def test_reload_gives_the_same_bits_in_every_layout(family, tmp_path):
    pack(family, tmp_path / "artifact")
    targets = {"one.safetensors": 10**9, "one.pt": 10**9, "folder": 10**9, "many": 5000, "all": 1}
    written = []
    for target, most in targets.items():
        reload(tmp_path / "artifact", family.base, tmp_path / target, max_shard_bytes=most)
        written.append(load_state(tmp_path / target))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert len(list((tmp_path / "all").glob("*.safetensors"))) == len(written[0])
    for other in written[1:]:
        assert set(other) == set(written[0])
        assert all(torch.equal(other[name], written[0][name]) for name in other)
