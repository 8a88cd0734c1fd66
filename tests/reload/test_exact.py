"""Profile `exact`: every bit of every fine-tune comes back, and merges are those of the tasks."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import svd_hybrid
from svd_hybrid import Artifact
from svd_hybrid.cli.app import main
from svd_hybrid.errors import ArtifactError, FamilyError, UsageError
from svd_hybrid.io.tensors import DTYPES, tensor_digest
from svd_hybrid.numerics import bit_patterns
from svd_hybrid.numerics.bit_patterns import differences, integer_dtype, prediction, restored
from tests.format import minimal_reader
from tests.format.families import (
    edit_arrays,
    edit_manifest,
    random_delta,
    read_record,
    write_family,
)

FLOATS = {name: DTYPES[name] for name in ("F64", "F32", "F16", "BF16")}
TASKS = ["ant", "bee", "cat"]
State = dict[str, Tensor]


def every_bit(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Finite numbers of any bits up to 2**90, among them both zeros and the smallest ones."""
    integer = integer_dtype(dtype)
    info = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(info.min, info.max, (count,), generator=generator, dtype=torch.int64)
    x = bits.to(integer).view(dtype).clone()
    x[~(x.abs() < min(2.0**90, torch.finfo(dtype).max))] = 0.5
    x[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=dtype)
    x[4:6].view(integer).copy_(torch.tensor([1, info.min + 1], dtype=integer))
    return x


def family_of(dtype: torch.dtype, tuned: torch.dtype) -> tuple[State, dict[str, State]]:
    """Tensors of close, of unrelated and of equal numbers, zeros with the other sign, tied ones."""
    base = {
        "close": random_delta((9, 13), 0, 1.0).to(dtype),
        "count": torch.tensor(3),
        "far": every_bit(dtype, 120, 1).reshape(10, 3, 4),
        "same": random_delta((4, 4), 2, 1.0).to(torch.bfloat16).to(dtype),
        "scalar": torch.tensor(0.75, dtype=dtype),
        "signs": torch.zeros(3, 5, dtype=dtype),
        "tied": torch.zeros(3, 5, dtype=dtype) + 1,
        "twin": torch.zeros(3, 5, dtype=dtype) + 1,
        "empty": torch.zeros(0, 3, dtype=dtype),
        "bn.running_var": torch.rand(6).to(dtype),
    }
    tasks = {}
    for index, task in enumerate(TASKS):
        zeros = torch.zeros(3, 5, dtype=tuned)
        zeros[index] = -0.0
        tied = (base["tied"].double() + random_delta((3, 5), 40 + index)).to(tuned)
        change = random_delta((9, 13), 50 + index, 0.01)
        tasks[task] = {
            "close": (base["close"].double() + change).to(tuned),
            "count": base["count"],
            "far": every_bit(tuned, 120, 60 + index).reshape(10, 3, 4),
            "same": base["same"].to(tuned),
            "scalar": torch.tensor(0.5 + index, dtype=tuned),
            "signs": zeros,
            "tied": tied,
            "twin": tied.clone(),
            "empty": base["empty"].to(dtype),
            "bn.running_var": torch.rand(6).to(tuned),
        }
    return base, tasks


def pack(folder: Path, base: State, tasks: dict[str, State], **parameters: Any) -> Path:
    write_family(folder, base, tasks)
    svd_hybrid.compress(
        folder / "base.safetensors",
        {task: folder / f"{task}.safetensors" for task in tasks},
        folder / "artifact",
        **({"profile": "exact", "method": "task-arithmetic"} | parameters),
    )
    return folder / "artifact"


def bits(state: State) -> dict[str, str]:
    return {name: tensor_digest(x) for name, x in state.items()}


@pytest.mark.parametrize("tuned", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_task_comes_back_bit_for_bit_in_its_own_dtype(tmp_path, dtype, tuned):
    base, tasks = family_of(FLOATS[dtype], FLOATS[tuned])
    artifact = pack(tmp_path, base, tasks)
    source = tmp_path / "base.safetensors"
    theirs = minimal_reader.Artifact(artifact)
    plain = minimal_reader.read_safetensors(source.read_bytes())
    for task, state in tasks.items():
        svd_hybrid.reload(artifact, source, tmp_path / "out.safetensors", task=task, overwrite=True)
        out = load_file(tmp_path / "out.safetensors")
        assert bits(out) == bits(state)
        rebuilt = dict(theirs.rebuild(plain, minimal_reader.select(theirs.manifest, task=task)))
        assert {name: minimal_reader.fingerprint(e) for name, e in rebuilt.items()} == bits(state)
    assert Artifact.open(artifact).verify(source, deep=True).problems == []


@pytest.mark.parametrize("tuned", FLOATS)
def test_merges_are_sums_of_differences_to_the_base(tmp_path, tuned):
    base, tasks = family_of(torch.float32, FLOATS[tuned])
    artifact = pack(tmp_path, base, tasks, scaling=0.5)
    weights = {"ant": 0.75, "bee": 0.0, "cat": -1.5}
    source = tmp_path / "base.safetensors"
    theirs = minimal_reader.Artifact(artifact)
    plain = minimal_reader.read_safetensors(source.read_bytes())
    for selection, factors in (
        ({}, dict.fromkeys(TASKS, 0.5)),
        ({"weights": weights}, weights),
        ({"weights": dict.fromkeys(TASKS, 0.0) | {"bee": 1.0}}, {"bee": 1.0}),
    ):
        ours = dict(Artifact.open(artifact).iter_tensors(source, **selection))
        chosen = minimal_reader.select(theirs.manifest, **selection)
        for name, entry in theirs.rebuild(plain, chosen):
            assert entry.data == ours[name].reshape(-1).view(torch.uint8).numpy().tobytes(), name
        for name in ("close", "scalar", "tied", "twin"):
            start = base[name].double()
            total = sum(w * (tasks[task][name].double() - start) for task, w in factors.items())
            assert ours[name].dtype == base[name].dtype
            torch.testing.assert_close(ours[name].double(), start + total, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_another_dtype_is_rounded_to_once(tmp_path, dtype):
    base, tasks = family_of(torch.float32, torch.float64)
    artifact = pack(tmp_path, base, tasks)
    stream = Artifact.open(artifact).iter_tensors(
        tmp_path / "base.safetensors", task="bee", dtype=dtype
    )
    if dtype == "F16":
        with pytest.raises(UsageError, match="'far'"):  # 2**90 is beyond it
            dict(stream)
        return
    close = dict(stream)["close"].reshape(-1).view(torch.uint8).numpy().tobytes()
    assert close == minimal_reader.round_to(tasks["bee"]["close"].numpy().reshape(-1), dtype)


def test_without_a_base_nothing_is_guessed(tmp_path):
    artifact = pack(tmp_path, *family_of(torch.float32, torch.float32))
    with pytest.raises(UsageError, match="base"):
        dict(Artifact.open(artifact).iter_tensors(task="ant"))


def test_tasks_that_disagree_on_a_dtype_are_refused_by_name(tmp_path):
    base, tasks = family_of(torch.float32, torch.float32)
    tasks["bee"]["tied"] = tasks["bee"]["tied"].half()
    tasks["bee"]["twin"] = tasks["bee"]["twin"].half()
    with pytest.raises(FamilyError) as caught:
        pack(tmp_path, base, tasks)
    assert all(word in str(caught.value) for word in ("'bee'", "'tied'", "F16", "F32", "convert"))


def test_masks_are_refused(tmp_path):
    base, tasks = family_of(torch.float32, torch.float32)
    masks = {task: {"close": torch.arange(117).reshape(9, 13) % 2 > 0} for task in TASKS}
    write_family(tmp_path, base, tasks, masks)
    with pytest.raises(UsageError, match="whole tensors"):
        svd_hybrid.compress(
            tmp_path / "base.safetensors",
            {task: tmp_path / f"{task}.safetensors" for task in tasks},
            tmp_path / "artifact",
            mask_dir=tmp_path / "masks",
            missing_mask="ignore",
            profile="exact",
            min_mask_size=1,
        )


def test_policies_count_as_unchanged_what_they_set_aside(tmp_path):
    base, tasks = family_of(torch.float32, torch.float32)
    del tasks["ant"]["close"]
    tasks["bee"]["close"][2, 3] = math.nan
    tasks["cat"]["close"] = torch.cat([tasks["cat"]["close"], torch.ones(1, 13)])
    artifact = pack(
        tmp_path, base, tasks, on_missing="zero", nonfinite="zero", on_shape_mismatch="crop"
    )

    def close(task: str) -> Tensor:
        stream = Artifact.open(artifact).iter_tensors(tmp_path / "base.safetensors", task=task)
        return dict(stream)["close"]

    assert torch.equal(close("ant"), base["close"])
    wanted = tasks["bee"]["close"].clone()
    wanted[2, 3] = base["close"][2, 3]
    assert torch.equal(close("bee"), wanted)
    assert torch.equal(close("cat"), tasks["cat"]["close"][:9])


def test_a_merge_added_to_an_exact_artifact_and_one_made_from_it(tmp_path):
    base, tasks = family_of(torch.float32, torch.float16)
    artifact = pack(tmp_path, base, tasks)
    source = tmp_path / "base.safetensors"
    doubled: dict[str, Any] = {"overrides": [{"tensors": "close", "weight": 2.0}]}
    for name, method, parameters in (
        ("ties", "ties", {}),
        ("rules", "task-arithmetic", doubled),
    ):
        added = tmp_path / name
        kept: dict[str, Any] = {"from_artifact": artifact, "merge_name": name, "method": method}
        svd_hybrid.compress(source, {}, added, **kept, **parameters)
        opened = Artifact.open(added)
        for task, state in tasks.items():
            assert bits(dict(opened.iter_tensors(source, task=task))) == bits(state)
        report = opened.verify(source, deep=True)
        assert report.problems == []
        assert report.rebuilt == 4
        merged = dict(opened.iter_tensors(source, merge=name))
        assert any(not torch.equal(merged[key], base[key]) for key in base)
    rules = dict(Artifact.open(tmp_path / "rules").iter_tensors(source, merge="rules"))
    (tmp_path / "direct").mkdir()
    direct = pack(tmp_path / "direct", base, tasks, **doubled)
    assert bits(rules) == bits(dict(Artifact.open(direct).iter_tensors(source)))


def test_the_recorded_error_is_zero_and_sizes_shrink(tmp_path):
    base = {"w": random_delta((200, 300), 0, 1.0).float()}
    moves = [random_delta((200, 300), index, 1e-4).float() for index in range(3)]
    tasks = {task: {"w": base["w"] + move} for task, move in zip(TASKS, moves, strict=True)}
    write_family(tmp_path, base, tasks)
    result = svd_hybrid.compress(
        tmp_path / "base.safetensors",
        {task: tmp_path / f"{task}.safetensors" for task in tasks},
        tmp_path / "artifact",
        profile="exact",
        method="task-arithmetic",
    )
    assert result.relative_error == 0.0
    assert result.bytes["bytes_artifact"] < 0.75 * result.bytes["bytes_replaced"]


FAULTS: dict[str, Any] = {
    "another dtype of as many bits": {"dtype": "BF16"},
    "another number of bits": {"dtype": "F64"},
    "no float dtype": {"dtype": "I32"},
    "a part of numbers": {"part": "nothing"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_exact_expression_that_does_not_fit_is_refused(tmp_path, fault):
    base, tasks = family_of(torch.float32, torch.float16)
    artifact = pack(tmp_path, base, tasks)
    source = tmp_path / "base.safetensors"

    def change(manifest: Any) -> None:
        record = next(tensor for tensor in manifest["tensors"] if tensor["name"] == "close")
        record["task"] |= FAULTS[fault]

    edit_manifest(artifact, change)
    if fault == "another dtype of as many bits":  # reads, but to other bits: a deep check tells
        problems = Artifact.open(artifact).verify(source, deep=True).problems
        assert any("other bits" in str(problem) for problem in problems)
        return
    with pytest.raises(ArtifactError):
        dict(Artifact.open(artifact).iter_tensors(source, task="ant"))


WRAPPED: dict[str, Any] = {
    "flat": lambda expr: {"op": "flat", "inner": expr},
    "scale": lambda expr: {"op": "scale", "factor": 0.5, "inner": expr},
    "sum": lambda expr: {"op": "sum", "terms": [expr, expr]},
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_an_exact_task_within_another_expression_is_a_delta(tmp_path, wrap):
    base, tasks = family_of(torch.float32, torch.float16)
    artifact = pack(tmp_path, base, tasks)
    source = tmp_path / "base.safetensors"

    def change(manifest: Any) -> None:
        record = next(tensor for tensor in manifest["tensors"] if tensor["name"] == "close")
        record["task"] = WRAPPED[wrap](record["task"])

    edit_manifest(artifact, change)
    if wrap == "flat":
        with pytest.raises(ArtifactError, match="does not fit the tensor"):
            dict(Artifact.open(artifact).iter_tensors(source, task="ant"))
        return
    close = dict(Artifact.open(artifact).iter_tensors(source, task="ant"))["close"]
    delta = tasks["ant"]["close"].double() - base["close"].double()
    wanted = base["close"].double() + {"scale": 0.5, "sum": 2.0}[wrap] * delta
    assert torch.equal(close, wanted.float())


# --- bit patterns --------------------------------------------------------------------------------


@pytest.mark.parametrize("base", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(6, 200))
def test_differences_undo(dtype, base, seed, count):
    tuned = every_bit(FLOATS[dtype], count, seed)
    predicted = prediction(every_bit(FLOATS[base], count, seed + 1), FLOATS[dtype])
    back = restored(differences(tuned, predicted), predicted)
    assert torch.equal(back.view(torch.uint8), tuned.view(torch.uint8))


def test_the_next_number_is_one_further_and_large_exponents_come_first():
    base = torch.tensor([1.0, -2.0, 0.0, -0.0])
    tuned = torch.nextafter(base, torch.tensor(torch.inf))
    tuned[3] = 0.0
    assert differences(tuned, base).tolist() == [1, 1, 1, 1]
    tuned[0] = 1.0
    assert differences(tuned, base).tolist() == [1, 0, 1, 1]  # -2 before 1


def test_blocks_change_no_bit(tmp_path, monkeypatch):
    base, tasks = family_of(torch.float32, torch.bfloat16)
    monkeypatch.setattr("svd_hybrid.reload.rebuild.BLOCK_SCALARS", 30)
    for module in ("svd_hybrid.delta.evaluate", "svd_hybrid.compress.profiles.exact"):
        monkeypatch.setattr(f"{module}.PATTERN_BLOCK", 7)
    artifact = pack(tmp_path, base, tasks)
    stream = Artifact.open(artifact).iter_tensors(tmp_path / "base.safetensors", task="cat")
    assert bits(dict(stream)) == bits(tasks["cat"])
    assert bit_patterns.PATTERN_BLOCK == 2**22


# --- verify --deep -------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{}, {"profile": "hybrid", "method": "emr"}])
def test_a_deep_check_rebuilds_every_model(tmp_path, capsys, parameters):
    base, tasks = family_of(torch.float32, torch.float32)
    for state in (base, *tasks.values()):
        state["far"] = state["far"].clamp(-2, 2)
    artifact = pack(tmp_path, base, tasks, **parameters)
    source = tmp_path / "base.safetensors"
    report = Artifact.open(artifact).verify(source, deep=True)
    assert report.problems == []
    assert report.rebuilt == (4 if parameters else 3)
    assert report.slices > 0
    alone = Artifact.open(artifact).verify(deep=True)
    assert (alone.problems, alone.rebuilt, alone.slices) == ([], 0, report.slices)
    command = ["verify", "--artifact-dir", str(artifact), "--base", str(source), "--deep"]
    assert main(command) == 0
    assert f"{report.rebuilt} models rebuilt" in capsys.readouterr().out

    def other(manifest: Any) -> None:
        manifest["rebuilt"]["tasks"]["bee"] = "0" * 64

    edit_manifest(artifact, other)
    (problem,) = Artifact.open(artifact).verify(source, deep=True).problems
    assert "'bee'" in str(problem)
    assert main(command) == 4


def test_the_recorded_digest_is_that_of_the_fine_tune(tmp_path):
    base, tasks = family_of(torch.float32, torch.float32)
    artifact = pack(tmp_path, base, tasks)
    rebuilt = minimal_reader.Artifact(artifact).manifest["rebuilt"]
    assert rebuilt.keys() == {"tasks"}
    for task, state in tasks.items():
        text = "".join(tensor_digest(state[name]) for name in sorted(state))
        assert rebuilt["tasks"][task] == hashlib.sha256(text.encode()).hexdigest()


def test_without_measuring_there_are_no_digests(tmp_path):
    artifact = pack(tmp_path, *family_of(torch.float32, torch.float32), eval_reconstruction=False)
    assert "rebuilt" not in read_record(artifact)
    report = Artifact.open(artifact).verify(tmp_path / "base.safetensors", deep=True)
    assert (report.problems, report.rebuilt) == ([], 0)


def test_a_task_beyond_the_dtype_of_the_base_has_no_digest(tmp_path):
    base = {"w": torch.zeros(2, 2, dtype=torch.float16)}
    tasks = {"ant": {"w": torch.full((2, 2), 1e6)}, "bee": {"w": torch.ones(2, 2)}}
    artifact = pack(tmp_path, base, tasks, profile="hybrid")
    assert set(minimal_reader.Artifact(artifact).manifest["rebuilt"]["tasks"]) == {"bee"}
    assert Artifact.open(artifact).verify(tmp_path / "base.safetensors", deep=True).problems == []


def test_digests_of_what_is_not_there_are_refused(tmp_path):
    artifact = pack(tmp_path, *family_of(torch.float32, torch.float32))
    edit_manifest(artifact, lambda m: m["rebuilt"]["tasks"].update(dog="0" * 64))
    with pytest.raises(ArtifactError, match="digests"):
        Artifact.open(artifact)


def test_a_deep_check_finds_infinite_numbers(tmp_path):
    base = {"w": random_delta((6, 8), 0, 1.0).float()}
    tasks = {t: {"w": random_delta((6, 8), 1 + i, 1.0).float()} for i, t in enumerate(TASKS)}
    artifact = pack(tmp_path, base, tasks, profile="hybrid", fp16=False)

    def spoil(arrays: State) -> None:
        name = next(name for name in arrays if name.endswith("values"))
        arrays[name] = torch.full_like(arrays[name], torch.inf)

    edit_arrays(artifact, "basis", spoil)
    assert Artifact.open(artifact).verify().problems == []
    problems = Artifact.open(artifact).verify(deep=True).problems
    assert any("NaN or infinity" in str(problem) for problem in problems)


def test_a_base_in_other_files_and_a_wrong_one(tmp_path):
    base, tasks = family_of(torch.float32, torch.float32)
    artifact = pack(tmp_path, base, tasks)
    save_file(base | {"count": torch.tensor(4)}, tmp_path / "wrong.safetensors")
    report = Artifact.open(artifact).verify(tmp_path / "wrong.safetensors", deep=True)
    assert len(report.problems) == 1
    assert report.rebuilt == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("profile", ["hybrid", "exact"])
def test_digests_made_while_measuring_are_those_of_what_reload_gives(tmp_path, profile, dtype):
    """Tied tensors, buffers that stay positive, masks, integers and tensors that nobody changed."""
    base, tasks = family_of(FLOATS[dtype], torch.float32)
    for state in (base, *tasks.values()):
        state["far"] = state["far"].clamp(-2, 2)
        state["frozen"] = torch.tensor([-0.0, 2.0], dtype=FLOATS[dtype])
    base["bn.running_var"] = base["bn.running_var"] * 0 + 1e-3
    base["frozen.running_var"] = torch.tensor([-1.0, 1.0], dtype=FLOATS[dtype])
    for state in tasks.values():
        state["frozen.running_var"] = base["frozen.running_var"].clone()
        state["bn.running_var"] = state["bn.running_var"] * 1e-5
    masks = {task: {"close": torch.arange(117).reshape(9, 13) % 3 > 0} for task in TASKS}
    write_family(tmp_path, base, tasks, masks if profile == "hybrid" else None)
    masked: dict[str, Any] = {"mask_dir": tmp_path / "masks", "missing_mask": "ignore"}
    result = svd_hybrid.compress(
        tmp_path / "base.safetensors",
        {task: tmp_path / f"{task}.safetensors" for task in tasks},
        tmp_path / "artifact",
        profile=profile,
        **(masked | {"min_mask_size": 1} if profile == "hybrid" else {"method": "task-arithmetic"}),
    )
    recorded = result.manifest.rebuilt
    assert recorded is not None
    for task in TASKS:
        stream = Artifact.open(tmp_path / "artifact").iter_tensors(
            tmp_path / "base.safetensors", task=task
        )
        text = "".join(tensor_digest(x) for _, x in sorted(stream))
        assert recorded.tasks[task] == hashlib.sha256(text.encode()).hexdigest()
