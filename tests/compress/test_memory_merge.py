"""A merge in memory is the merge an artifact gives back, for any scaling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svd_hybrid import Artifact, compress
from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.memory import MemoryMerge, merge_in_memory
from svd_hybrid.compress.request import CompressRequest
from svd_hybrid.delta.evaluate import BeyondRangeError
from svd_hybrid.errors import UsageError
from svd_hybrid.io.family import Family, FamilyPolicy, open_family
from tests.families import SHAPES, FamilyFiles, load_state, write_family, write_states

METHODS = ("task-arithmetic", "ties", "tsv-m", "iso-c", "tall-masks", "tsv-compress")


def held(family: FamilyFiles, **values: object) -> MemoryMerge:
    request = CompressRequest(family.base, family.tasks, Path("unused"), resolve_config(values, ""))
    return merge_in_memory(request)


def rebuilt(folder: Path, family: FamilyFiles) -> dict[str, torch.Tensor]:
    return dict(Artifact.open(folder).iter_tensors(family.base))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("method", METHODS)
def test_any_scaling_gives_the_bits_of_an_artifact(tmp_path, method):
    family = write_family(tmp_path / "f", SHAPES | {"bn.running_var": (4,)})
    merge = held(family, method=method)
    for scaling in (0.7, 1.5):
        folder = tmp_path / str(scaling)
        compress(
            family.base, family.tasks, folder, method=method, scaling=scaling, store_tasks="off"
        )
        assert same(merge.state(scaling), rebuilt(folder, family))
    assert not same(merge.state(0.7), merge.state(1.5))


def test_what_is_written_comes_back(tmp_path):
    family = write_family(tmp_path / "f")
    merge = held(family, method="ties", density=0.5)
    manifest = merge.write(tmp_path / "a", 0.8)
    artifact = Artifact.open(tmp_path / "a")
    assert same(merge.state(0.8), rebuilt(tmp_path / "a", family))
    assert artifact.scalings == {"merged": 0.8}
    assert artifact.verify(family.base, deep=True).problems == []
    assert sum(manifest.breakdown.values()) == sum(
        path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file()
    )
    assert manifest.merges["merged"].parameters["density"] == 0.5


def test_twins_and_kept_tensors(tmp_path):
    plain = write_family(tmp_path / "f")
    base, *tasks = (load_state(path) for path in (plain.base, *plain.tasks.values()))
    for state in (base, *tasks):
        state["head.weight"] = state["embed.weight"].clone()
    family = write_states(tmp_path / "tied", base, dict(zip(plain.tasks, tasks, strict=True)))
    merge = held(family, method="task-arithmetic", keep_base="*.bias")
    state = merge.state(2.0)
    assert torch.equal(state["head.weight"], state["embed.weight"])
    assert torch.equal(state["block.bias"], base["block.bias"])
    total = sum(task["block.weight"] - base["block.weight"] for task in tasks)
    torch.testing.assert_close(state["block.weight"], base["block.weight"] + 2 * total)


def test_scaling_that_does_not_fit_is_an_error(tmp_path):
    family = write_family(tmp_path / "f", dtype=torch.float16)
    with pytest.raises(BeyondRangeError, match="does not fit"):
        held(family, method="task-arithmetic").state(1e9)


def test_own_scalings_of_tensors_are_refused(tmp_path):
    family = write_family(tmp_path / "f")
    with pytest.raises(UsageError, match="one scaling"):
        held(family, overrides=[{"tensors": "block.*", "scaling": 2.0}])


def test_a_scaling_grid_reads_each_task_once(tmp_path, monkeypatch):
    family = write_family(tmp_path / "f")
    reads: list[str] = []
    stack = Family.stack
    monkeypatch.setattr(Family, "stack", lambda s, name: reads.append(name) or stack(s, name))
    config = resolve_config({"method": "task-arithmetic"}, "")
    request = CompressRequest(family.base, family.tasks, Path("unused"), config)
    source = open_family(family.base, family.tasks, FamilyPolicy())
    merge = merge_in_memory(request, source)
    for step in range(1, 6):
        merge.state(step / 5)
    assert sorted(reads) == sorted(SHAPES)
