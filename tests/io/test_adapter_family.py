"""Families with LoRA adapters, through compress and reload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svd_hybrid import Artifact, compress
from svd_hybrid.io.adapter.reader import open_task
from svd_hybrid.io.reader import open_checkpoint
from tests.families import (
    FamilyFiles,
    deltas_of,
    pack,
    relative_error,
    weights_of,
    write_family,
    write_state,
)
from tests.io.adapters import factors, write_adapter
from tests.io.checkpoints import same

SHAPES = {"block.weight": (24, 20), "block.bias": (24,), "head.weight": (12, 24)}
LORA = factors("block", 24, 20) | factors("head", 12, 24, seed=1)


def mixed(folder: Path, dtype: torch.dtype = torch.float32) -> FamilyFiles:
    """Two full fine-tunes and an adapter, of one base."""
    files = write_family(folder, SHAPES, ("ant", "bee"), dtype=dtype)
    files.tasks["cat"] = write_adapter(
        folder / "cat", {name: 0.1 * tensor for name, tensor in LORA.items()}
    )
    return files


def wanted(files: FamilyFiles, name: str) -> torch.Tensor:
    reader = open_task(files.tasks["cat"], open_checkpoint(files.base))
    return reader.read(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_exact_gives_an_adapter_back_as_base_plus_delta_in_the_bases_dtype(tmp_path, dtype):
    files = mixed(tmp_path, dtype)
    artifact = pack(files, tmp_path / "art", profile="exact")
    back = weights_of(artifact, files, task="cat")
    for name in SHAPES:
        assert same(back[name], wanted(files, name))
    assert back["block.weight"].dtype == dtype
    assert not artifact.verify(files.base, deep=True).problems


@pytest.mark.parametrize("profile", ["auto", "hybrid", "fast", "tvq"])
def test_every_profile_keeps_a_mixed_family(tmp_path, profile):
    files = mixed(tmp_path)
    artifact = pack(files, tmp_path / "art", profile=profile)
    assert artifact.tasks == ("ant", "bee", "cat")
    got = deltas_of(artifact, task="cat")["block.weight"]
    base = open_checkpoint(files.base)
    delta = open_task(files.tasks["cat"], base).delta("block.weight", torch.float32)
    assert relative_error(got, delta) < 0.5
    assert not artifact.verify(files.base, deep=True).problems


@pytest.mark.parametrize("method", ["ties", "tsv-m", "iso-c", "dare-linear", "emr"])
def test_methods_take_adapters_as_any_fine_tune(tmp_path, method):
    files = mixed(tmp_path)
    state = {name: wanted(files, name) for name in SHAPES}
    whole = FamilyFiles(files.base, dict(files.tasks))
    whole.tasks["cat"] = write_state(tmp_path / "cat.safetensors", state)
    merged = deltas_of(pack(files, tmp_path / "adapter", method=method))
    expected = deltas_of(pack(whole, tmp_path / "whole", method=method))
    for name in SHAPES:
        assert relative_error(merged[name], expected[name]) < 1e-3


def test_a_family_of_adapters_alone_is_merged_linearly(tmp_path):
    base = write_family(tmp_path, SHAPES, ()).base
    tasks = {
        name: write_adapter(tmp_path / name, factors("block", 24, 20, seed=seed))
        for seed, name in enumerate(("one", "two"))
    }
    compress(base, tasks, tmp_path / "art", profile="hybrid", method="task-arithmetic", scaling=1.0)
    merged = dict(Artifact.open(tmp_path / "art").iter_tensors())["block.weight"]
    opened = open_checkpoint(base)
    total = sum(open_task(p, opened).delta("block.weight", torch.float64) for p in tasks.values())
    assert relative_error(merged, total) < 1e-2


def test_an_adapter_can_be_appended(tmp_path):
    files = mixed(tmp_path)
    late = files.tasks.pop("cat")
    pack(files, tmp_path / "art", profile="fast")
    grown = compress(
        files.base, {"cat": late}, tmp_path / "more", from_artifact=tmp_path / "art", append=True
    )
    back = deltas_of(Artifact.open(grown.artifact_dir), task="cat")["block.weight"]
    delta = open_task(late, open_checkpoint(files.base)).delta("block.weight", torch.float32)
    assert relative_error(back, delta) < 0.3


def test_equal_adapters_give_equal_artifacts(tmp_path):
    files = mixed(tmp_path)
    ids = {pack(files, tmp_path / name, profile="fast").id for name in ("a", "b")}
    assert len(ids) == 1
