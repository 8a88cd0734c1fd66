"""Whoever reads while an output is replaced sees the old one or the new one, whole."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from svd_hybrid import Artifact
from svd_hybrid.errors import LockedError, StorageError
from svd_hybrid.io.reader import open_checkpoint
from tests.faults.cases import compress, make_inputs, reload, run

REPLACING = """
import sys, time
from itertools import cycle
from pathlib import Path
from svd_hybrid.artifact.output import staged_artifact
from svd_hybrid.io.new_file import copy_file, make_folders

target, *sources = map(Path, sys.argv[1:])
for source in cycle(sources):
    with staged_artifact(target, overwrite=True) as staging:
        for path in source.rglob("*"):
            if path.is_file():
                copy = staging / path.relative_to(source)
                make_folders(copy.parent)
                copy_file(path, copy)
    print(flush=True)
    time.sleep(0.03)
"""
READINGS = 25


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def moving(tmp_path, inputs):
    """An artifact that another process replaces again and again, by one of two."""
    target = tmp_path / "art"
    assert run(compress(inputs, "ant", target)) == 0
    argv = [sys.executable, "-c", REPLACING, str(target), str(inputs.bee), str(inputs.ant)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        child.stdout.readline()
        yield target
        assert child.poll() is None, "the replacing process has ended"
        child.terminate()


def test_it_is_always_one_of_the_two(tmp_path, inputs, moving, capsys):
    ids = {Artifact.open(path).id for path in (inputs.ant, inputs.bee)}
    states = []
    for number, artifact in enumerate((inputs.ant, inputs.bee)):
        assert run(reload(inputs, artifact, tmp_path / f"{number}.safetensors")) == 0
        states.append((tmp_path / f"{number}.safetensors").read_bytes())
    seen = set()
    for _ in range(READINGS):
        capsys.readouterr()
        assert run(["verify", "--json", "--artifact-dir", str(moving)]) == 0
        seen.add(json.loads(capsys.readouterr().out)["artifact_id"])
        assert run(["inspect", "--json", "--artifact-dir", str(moving)]) == 0
        assert json.loads(capsys.readouterr().out)["artifact_id"] in ids
        output = tmp_path / "m.safetensors"
        assert run([*reload(inputs, moving, output), "--overwrite"]) == 0
        assert output.read_bytes() in states
    assert seen <= ids


def test_an_opened_artifact_says_that_it_was_replaced(tmp_path, inputs):
    target = tmp_path / "art"
    assert run(compress(inputs, "ant", target)) == 0
    opened = Artifact.open(target)
    assert run([*compress(inputs, "bee", target), "--overwrite"]) == 0
    with pytest.raises(LockedError, match="replaced by another run"):
        list(opened.iter_tensors(inputs.family.base, task="ant"))


def test_shards_that_were_opened_stay(tmp_path, inputs):
    target = tmp_path / "art"
    assert run([*compress(inputs, "ant", target), "--profile", "hybrid"]) == 0
    opened = Artifact.open(target)
    before = dict(opened.iter_tensors(inputs.family.base, task="ant"))
    assert run([*compress(inputs, "bee", target), "--overwrite"]) == 0
    after = dict(opened.iter_tensors(inputs.family.base, task="ant"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("verb", ["verify", "inspect", "reload"])
def test_a_reader_finds_what_a_crash_set_aside(tmp_path, inputs, verb):
    """Where renameat2 is missing, between the two renames of a replacement."""
    target = tmp_path / "art"
    assert run(compress(inputs, "ant", target)) == 0
    aside = tmp_path / ".art.old-0123abcd"
    aside.mkdir()
    target.rename(aside / "art")
    argv = [verb, "--artifact-dir", str(target)]
    if verb == "reload":
        argv = reload(inputs, target, tmp_path / "m.pt")
    assert run(argv) == 0
    assert Artifact.open(target).tasks == ("ant",)
    assert {path.name for path in tmp_path.iterdir()} <= {"art", "m.pt"}


def test_a_reader_that_may_not_bring_it_back_says_where_it_is(tmp_path, inputs, monkeypatch):
    aside = tmp_path / ".art.old-0123abcd" / "art"
    aside.mkdir(parents=True)
    monkeypatch.setattr("svd_hybrid.io.locks.locked", _refuse)
    with pytest.raises(StorageError, match="does not exist") as caught:
        Artifact.open(tmp_path / "art")
    assert str(aside) in caught.value.fix


def _refuse(target: Path):
    raise PermissionError(13, "Permission denied", str(target))


def test_shards_of_two_models_are_not_mixed(tmp_path, inputs, monkeypatch):
    """A folder that is replaced after one of its shards was opened is opened again."""
    for task in ("ant", "bee"):
        argv = reload(inputs, getattr(inputs, task), tmp_path / task)
        assert run([*argv, "--max-shard-size", "1"]) == 0
    from svd_hybrid.io import reader

    real = reader._open_file

    def replacing(path: Path):
        if (tmp_path / "bee").exists():
            (tmp_path / "ant").rename(tmp_path / "gone")
            (tmp_path / "bee").rename(tmp_path / "ant")
        return real(path)

    monkeypatch.setattr(reader, "_open_file", replacing)
    opened = open_checkpoint(tmp_path / "ant")
    bee = run(reload(inputs, inputs.bee, tmp_path / "bee.pt"))
    assert bee == 0
    want = open_checkpoint(tmp_path / "bee.pt").read("w")
    assert torch.equal(opened.read("w"), want)


def test_the_loop_is_no_race_of_one(moving):
    """The process does replace: two openings within a second differ."""
    deadline = time.monotonic() + 5
    first = Artifact.open(moving).id
    while Artifact.open(moving).id == first:
        assert time.monotonic() < deadline
