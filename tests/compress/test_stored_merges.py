"""What must hold for every method, whatever its rule: through compress, artifact and reload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from svd_hybrid import Artifact, compress, reload
from svd_hybrid.errors import BaseMismatchError, UsageError
from svd_hybrid.methods import METHODS
from tests.families import (
    UNQUANTISED,
    FamilyFiles,
    deltas_of,
    load_state,
    pack,
    relative_error,
    write_family,
    write_states,
)
from tests.format import minimal_reader

METHOD_PARAMS: dict[str, dict[str, Any]] = {
    "scale-svd": {"input_scaling": False},
    "iso-iasad": {"input_scaling": False},
    "sparsegpt-ties": {"score": "magnitude"},
    "sparsegpt-dare": {"score": "magnitude"},
}
PER_TASK = [name for name, method in METHODS.items() if method.per_task_reload]
STORED = [name for name, method in METHODS.items() if not method.linear]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return write_family(tmp_path_factory.mktemp("family"), seed=3)


def merged(family: FamilyFiles, folder: Path, method: str, **params: Any) -> Artifact:
    return pack(
        family, folder, method=method, **UNQUANTISED, **METHOD_PARAMS.get(method, {}), **params
    )


def shards(artifact: Path) -> dict[Path, bytes]:
    """All numbers; the documents beside them state the sizes of the source files."""
    return {path.relative_to(artifact): path.read_bytes() for path in artifact.glob("*/*")}


@pytest.mark.parametrize("method", METHODS)
def test_equal_inputs_give_equal_bytes_for_any_thread_count_and_file_layout(
    family, tmp_path, method
):
    merged(family, tmp_path / "one", method)
    sharded = {}
    for task, path in family.tasks.items():
        state = load_state(path)
        folder = tmp_path / task
        folder.mkdir()
        names = list(state)
        files = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
        for file, held in files.items():
            save_file({name: state[name] for name in held}, folder / file)
        index = {name: file for file, held in files.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        sharded[task] = folder
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        merged(FamilyFiles(family.base, sharded), tmp_path / "two", method)
    finally:
        torch.set_num_threads(before)
    assert shards(tmp_path / "one") == shards(tmp_path / "two")


@pytest.mark.parametrize("method", METHODS)
def test_permuted_tasks_give_the_same_merge(family, tmp_path, method):
    backwards = FamilyFiles(family.base, dict(reversed(family.tasks.items())))
    first = deltas_of(merged(family, tmp_path / "one", method))
    second = deltas_of(merged(backwards, tmp_path / "two", method))
    for name, delta in first.items():
        assert relative_error(second[name], delta) <= 1e-5, name


@pytest.mark.parametrize("method", METHODS)
def test_zero_deltas_leave_the_base_as_it_is(family, tmp_path, method):
    frozen = FamilyFiles(family.base, dict.fromkeys(family.tasks, family.base))
    artifact = merged(frozen, tmp_path / "artifact", method)
    base = load_state(family.base)
    for selection in [{}, *({"task": task} for task in artifact.tasks if method in PER_TASK)]:
        for name, tensor in artifact.iter_tensors(family.base, **selection):
            assert torch.equal(tensor, base[name]), name


@pytest.mark.parametrize("method", PER_TASK)
def test_one_task_comes_back_as_itself(family, tmp_path, method):
    """Exactly what a rank or a sparsity of its own does not cut; the rest is the method's error."""
    alone = FamilyFiles(family.base, {"ant": family.tasks["ant"]})
    params = {"magnitude-masking": {"density": 1.0}, "scale-svd": {"rank_ratio": 0.0}}
    if method == "scale-svd":
        params["scale-svd"] = {"sparsity": 0.0, "rank_ratio": 0.0}
    artifact = merged(alone, tmp_path / "artifact", method, **params.get(method, {}))
    for name, delta in deltas_of(artifact, task="ant").items():
        assert relative_error(delta, alone.deltas(name)[0]) <= 2e-6, name


@pytest.mark.parametrize("method", METHODS)
def test_the_independent_reader_rebuilds_the_same_bits(family, tmp_path, method):
    artifact = merged(family, tmp_path / "artifact", method)
    opened = minimal_reader.Artifact(artifact.path)
    base = minimal_reader.read_safetensors(family.base.read_bytes())
    given = {"ant": 0.5, "bee": -1.25, "cat": 2.0}
    selections: list[dict[str, Any]] = [{}]
    if method in PER_TASK:
        selections += [{"task": "bee"}, {"weights": given}]
    for selection in selections:
        reload(artifact.path, family.base, tmp_path / "o.safetensors", overwrite=True, **selection)
        ours = minimal_reader.read_safetensors((tmp_path / "o.safetensors").read_bytes())
        theirs = dict(opened.rebuild(base, minimal_reader.select(opened.manifest, **selection)))
        assert ours == theirs


@pytest.mark.parametrize("method", [m for m in STORED if m not in PER_TASK])
def test_tasks_that_are_not_stored_cannot_be_asked_for(family, tmp_path, method):
    artifact = merged(family, tmp_path / "artifact", method)
    with pytest.raises(UsageError, match="no single task is stored"):
        deltas_of(artifact, task="ant")


@pytest.mark.parametrize("method", STORED)
def test_tasks_and_a_stored_merge_live_side_by_side(family, tmp_path, method):
    both = merged(family, tmp_path / "both", method, store_tasks="on")
    alone = merged(family, tmp_path / "alone", method)
    for name, delta in deltas_of(alone).items():
        assert torch.equal(deltas_of(both)[name], delta)
        task = deltas_of(both, task="bee")[name]
        assert relative_error(task, family.deltas(name)[1]) <= 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_from_an_artifact_is_the_merge_from_checkpoints(family, tmp_path, method):
    """The stored tasks differ from the fine-tunes in the last bits, and so may the merge."""
    pack(family, tmp_path / "tasks", **UNQUANTISED)
    result = compress(
        family.base,
        {},
        tmp_path / "added",
        from_artifact=tmp_path / "tasks",
        method=method,
        merge_name="added",
        **METHOD_PARAMS.get(method, {}),
    )
    added = Artifact.open(result.artifact_dir)
    assert sorted(added.merges) == ["added", "merged"]
    direct = merged(family, tmp_path / "direct", method)
    tolerance = 1e-2 if method in ("ties", "magnitude", "sparsegpt-ties") else 1e-4
    for name, delta in deltas_of(direct).items():
        assert relative_error(deltas_of(added)[name], delta) <= tolerance, name
        old = Artifact.open(tmp_path / "tasks")
        assert torch.equal(deltas_of(added, merge="merged")[name], deltas_of(old)[name])
        assert torch.equal(deltas_of(added, task="cat")[name], deltas_of(old, task="cat")[name])


def test_merges_of_checkpoints_are_added_to_an_artifact_that_holds_no_tasks(family, tmp_path):
    first = merged(family, tmp_path / "first", "ties")
    added = merged(family, tmp_path / "second", "emr", from_artifact=first.path)
    assert sorted(added.merges) == ["emr", "merged"]
    for name, delta in deltas_of(first).items():
        assert torch.equal(deltas_of(added, merge="merged")[name], delta)
    alone = merged(family, tmp_path / "alone", "emr")
    for name, delta in deltas_of(alone, task="ant").items():
        assert torch.equal(deltas_of(added, merge="emr", task="ant")[name], delta)


def test_a_merge_name_is_used_once_and_a_foreign_base_refused(family, tmp_path):
    pack(family, tmp_path / "tasks")
    with pytest.raises(UsageError, match="already has a merge 'merged'"):
        compress(
            family.base,
            {},
            tmp_path / "again",
            from_artifact=tmp_path / "tasks",
            method="ties",
            merge_name="merged",
        )
    other = write_family(tmp_path / "other", seed=4)
    with pytest.raises(BaseMismatchError):
        compress(other.base, {}, tmp_path / "no", from_artifact=tmp_path / "tasks", method="ties")
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "no").exists()


def test_without_store_tasks_only_the_new_merge_is_kept(family, tmp_path):
    pack(family, tmp_path / "tasks")
    result = compress(
        family.base,
        {},
        tmp_path / "merge",
        from_artifact=tmp_path / "tasks",
        method="iso-c",
        store_tasks="off",
    )
    assert list(Artifact.open(result.artifact_dir).merges) == ["iso-c"]


@pytest.mark.parametrize("method", ["svd-hybrid", "weight-averaging", "task-arithmetic"])
def test_a_linear_merge_without_tasks_is_stored_as_numbers(family, tmp_path, method):
    stacks = merged(family, tmp_path / "stacks", method)
    numbers = merged(family, tmp_path / "numbers", method, store_tasks="off")
    for name, delta in deltas_of(stacks).items():
        assert relative_error(deltas_of(numbers)[name], delta) <= 2e-6, name


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_out_dtype_is_the_dtype_of_the_rebuilt_merge(family, tmp_path, dtype):
    artifact = merged(family, tmp_path / "artifact", "ties", out_dtype=dtype)
    wanted = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    assert {tensor.dtype for _, tensor in artifact.iter_tensors(family.base)} == {wanted}


def test_half_precision_merges_are_half_the_size_and_their_error_is_stated(family, tmp_path):
    result = compress(
        family.base, family.tasks, tmp_path / "half", method="iso-c", merged_dtype="fp16"
    )
    assert 0 < (result.merge_error or 0) < 2.0**-11
    exact = compress(family.base, family.tasks, tmp_path / "exact", method="iso-c")
    assert exact.merge_error == 0.0
    sizes = [run.manifest.breakdown["basis"] for run in (result, exact)]
    assert sizes[0] < 0.75 * sizes[1]


def test_tensors_that_the_artifact_keeps_apart_stay_apart_when_a_merge_is_added(tmp_path):
    """Equal in base and tasks, but an earlier merge treated them differently."""
    whole = write_family(tmp_path / "one", {"a": (6, 5)}, seed=11)
    states = {task: load_state(path)["a"] for task, path in whole.tasks.items()}
    twins = write_states(
        tmp_path / "two",
        {name: load_state(whole.base)["a"] for name in ("a", "b")},
        {task: {"a": values, "b": values.clone()} for task, values in states.items()},
    )
    rules = [{"tensors": "b", "density": 0.9}]
    first = merged(twins, tmp_path / "first", "ties", overrides=rules)
    added = merged(twins, tmp_path / "added", "iso-c", merge_name="iso", from_artifact=first.path)
    before, after = deltas_of(first), deltas_of(added, merge="merged")
    assert not torch.equal(before["a"], before["b"])
    for name, delta in before.items():
        assert torch.equal(after[name], delta), name


def test_what_a_run_skips_keeps_what_the_artifact_has_of_it(family, tmp_path):
    first = merged(family, tmp_path / "first", "ties", store_tasks="on")
    lacking = {task: load_state(path) for task, path in family.tasks.items()}
    for state in lacking.values():
        del state["block.weight"]
    files = write_states(tmp_path / "lacking", load_state(family.base), lacking)
    compress(
        family.base,
        files.tasks,
        tmp_path / "added",
        method="iso-c",
        on_missing="skip",
        from_artifact=first.path,
        merge_name="iso",
    )
    added = Artifact.open(tmp_path / "added")
    assert torch.equal(
        deltas_of(added, merge="merged")["block.weight"], deltas_of(first)["block.weight"]
    )
    assert deltas_of(added, task="ant")["block.weight"].any()
    assert not deltas_of(added)["block.weight"].any()
