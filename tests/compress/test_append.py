"""Growing an artifact: the tasks it holds stay as they are, the new one comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from svd_hybrid import Artifact, compress
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.errors import BaseMismatchError, FamilyError, StorageError, SvdhError, UsageError
from svd_hybrid.io.tensors import tensor_digest
from tests.compress.test_same_bits import content
from tests.families import (
    SHAPES,
    FamilyFiles,
    State,
    load_state,
    pack,
    relative_error,
    weights_of,
    write_family,
    write_state,
    write_states,
)
from tests.format import minimal_reader

STORED = ("ant", "bee", "cat")
NEW = ("dog", "eel")
EVERY_KIND = {**SHAPES, "large.weight": (72, 80), "bn.running_var": (6,), "bn.running_mean": (6,)}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    """Five fine-tunes; `still` changes in `eel` alone, `twin` is tied in all but `eel`."""
    folder = tmp_path_factory.mktemp("family")
    plain = write_family(folder / "plain", EVERY_KIND, (*STORED, *NEW), seed=3)
    base = load_state(plain.base)
    states = {task: load_state(path) for task, path in plain.tasks.items()}
    for state in (base, *states.values()):
        state["still"] = torch.ones(5)
        state["twin"] = state["embed.weight"].clone()
        state["steps"] = torch.tensor([1, 2])
        state["bn.running_var"] = state["bn.running_var"].abs()
    states["eel"]["still"] = torch.linspace(1, 2, 5)
    states["eel"]["twin"][3] += 1
    return write_states(folder / "family", base, states)


def of(family: FamilyFiles, *tasks: str) -> FamilyFiles:
    return FamilyFiles(family.base, {task: family.tasks[task] for task in tasks})


def append(artifact: Artifact, family: FamilyFiles, to: Path, *tasks: str, **more: Any) -> Artifact:
    checkpoints = {task: family.tasks[task] for task in tasks}
    compress(family.base, checkpoints, to, from_artifact=artifact.path, append=True, **more)
    return Artifact.open(to)


def digests(artifact: Artifact) -> dict[str, str]:
    rebuilt = artifact._reader.manifest.rebuilt
    return {} if rebuilt is None else dict(rebuilt.tasks)


def assert_same_tasks(one: Artifact, other: Artifact, family: FamilyFiles, *tasks: str) -> None:
    for task in tasks:
        before, after = weights_of(one, family, task=task), weights_of(other, family, task=task)
        assert all(tensor_digest(before[n]) == tensor_digest(after[n]) for n in before)
        assert digests(one)[task] == digests(other)[task]


def assert_sound(artifact: Artifact, family: FamilyFiles, count: int) -> None:
    """Every file, part and digest, and the reader that knows nothing of svd_hybrid."""
    report = artifact.verify(family.base, deep=True)
    assert not report.problems
    assert report.rebuilt == count
    reader = minimal_reader.Artifact(artifact.path)
    base = minimal_reader.read_safetensors(family.base.read_bytes())
    for task in (*artifact.tasks, None):
        chosen = minimal_reader.select(reader.manifest, task=None if task is None else task)
        rebuilt = weights_of(artifact, family, **({} if task is None else {"task": task}))
        for name, entry in reader.rebuild(base, chosen):
            assert minimal_reader.fingerprint(entry) == tensor_digest(rebuilt[name])


@pytest.mark.parametrize("profile", list(PROFILES))
def test_stored_tasks_keep_their_bits_and_new_ones_come_back(family, tmp_path, profile):
    first = pack(of(family, *STORED), tmp_path / "first", profile=profile)
    second = append(first, family, tmp_path / "second", "dog")
    third = append(second, family, tmp_path / "third", "eel")
    assert third.tasks == (*STORED, *NEW)
    assert_same_tasks(first, second, family, *STORED)
    assert_same_tasks(second, third, family, *STORED, "dog")
    assert_sound(second, family, 4)
    assert_sound(third, family, 5)
    errors = {t: e["relative_error"] for t, e in third.diagnostics()["tasks"].items()}
    largest = max(errors[task] for task in STORED)
    for task in NEW:  # as exact as those before, whatever the profile
        assert errors[task] <= max(1.3 * largest, 0.02), errors
        for name, tensor in weights_of(third, family, task=task).items():
            want = load_state(family.tasks[task])[name]
            if tensor.is_floating_point() and name not in ("still", "twin", "logit_scale"):
                assert relative_error(tensor, want) < 0.1
    assert torch.equal(weights_of(third, family, task="ant")["still"], torch.ones(5))


def test_both_at_once_is_one_after_the_other(family, tmp_path):
    first = pack(of(family, *STORED), tmp_path / "first", profile="fast")
    one_by_one = append(first, family, tmp_path / "dog", "dog")
    one_by_one = append(one_by_one, family, tmp_path / "eel", "eel")
    together = append(first, family, tmp_path / "both", *NEW)
    assert digests(one_by_one) == digests(together)
    shards = [
        {n: d for n, d in content(a.path).items() if n.endswith(".safetensors")}
        for a in (one_by_one, together)
    ]
    assert shards[0] == shards[1]


def test_what_is_appended_costs_what_it_would_in_a_family(family, tmp_path):
    """It joins the parts that are there: no part, name or expression is added."""
    first = pack(of(family, *STORED), tmp_path / "first", profile="fast")
    whole = pack(of(family, *STORED, "dog"), tmp_path / "whole", profile="fast")
    grown = append(first, family, tmp_path / "grown", "dog")
    sizes = [a.diagnostics()["bytes"]["breakdown"]["coeffs"] for a in (whole, grown)]
    assert sizes[0] == sizes[1]
    assert digests(whole) == digests(grown)


def test_the_same_run_gives_the_same_bytes(family, tmp_path):
    first = pack(of(family, *STORED), tmp_path / "first")
    for name in ("one", "two"):
        append(first, family, tmp_path / name, *NEW)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_in_place_with_overwrite_alone(family, tmp_path):
    artifact = pack(of(family, *STORED), tmp_path / "artifact")
    with pytest.raises(StorageError, match="output exists"):
        append(artifact, family, artifact.path, "dog")
    elsewhere = append(artifact, family, tmp_path / "elsewhere", "dog")
    append(artifact, family, artifact.path, "dog", overwrite=True)
    assert content(elsewhere.path) == content(artifact.path)
    with pytest.raises(UsageError, match="replace an input"):
        append(elsewhere, family, tmp_path, "eel", overwrite=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("profile", ["hybrid", "exact"])
def test_other_dtypes(tmp_path, profile, dtype):
    family = write_family(tmp_path, tasks=(*STORED, "dog"), dtype=dtype)
    first = pack(of(family, *STORED), tmp_path / "first", profile=profile)
    second = append(first, family, tmp_path / "second", "dog")
    assert_same_tasks(first, second, family, *STORED)
    assert_sound(second, family, 4)
    if profile == "exact":
        wanted = load_state(family.tasks["dog"])
        assert all(
            torch.equal(t, wanted[n]) for n, t in weights_of(second, family, task="dog").items()
        )


def test_masks_restrict_the_old_tasks_and_not_the_new_one(family, tmp_path):
    (tmp_path / "masks").mkdir()
    for index, task in enumerate(STORED):
        masks = {
            n: torch.arange(torch.Size(s).numel()).reshape(s) % 3 == index
            for n, s in SHAPES.items()
        }
        save_file(masks, tmp_path / "masks" / f"{task}_mask.safetensors")
    for noise in (True, False):
        first = pack(
            of(family, *STORED),
            tmp_path / f"first-{noise}",
            mask_dir=tmp_path / "masks",
            mask_strategy="union",
            include_noise=noise,
            min_mask_size=1,
        )
        second = append(first, family, tmp_path / f"second-{noise}", "dog", profile="fast", bits=8)
        assert_same_tasks(first, second, family, *STORED)
        assert_sound(second, family, 4)
        assert second.diagnostics()["tasks"]["dog"]["relative_error"] < 0.02


# --- merges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "weights"),
    [
        ({}, (0.25, 0.25, 0.25, 0.25)),
        ({"method": "task-arithmetic", "scaling": 0.4}, (1.0, 1.0, 1.0, 1.0)),
        ({"weights": (0.5, 0.25, 0.25)}, (0.5, 0.25, 0.25, 0.0)),
    ],
)
def test_a_merge_that_counts_all_alike_counts_the_new_one_too(
    family, tmp_path, parameters, weights
):
    first = pack(of(family, *STORED), tmp_path / "first", **parameters)
    second = append(first, family, tmp_path / "second", "dog")
    name = first.default_merge
    assert tuple(second.merges[name].values()) == weights
    assert json.loads((second.path / "weights.json").read_text()) == second.merges[name]
    notes = second.diagnostics()["notes"]
    assert any(name in note and "dog" in note for note in notes)
    if not weights[-1]:
        before, after = (weights_of(artifact, family) for artifact in (first, second))
        assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(
    "parameters",
    [
        {"method": "ties", "store_tasks": "on"},
        {"method": "emr", "store_tasks": "on"},
        {"overrides": [{"tensors": "block.*", "weight": 3.0, "tasks": ["bee"]}]},
    ],
)
def test_stored_merges_stay_as_they_are(family, tmp_path, parameters):
    first = pack(of(family, *STORED), tmp_path / "first", **parameters)
    second = append(first, family, tmp_path / "second", "dog")
    before, after = (weights_of(artifact, family) for artifact in (first, second))
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert first._reader.manifest.rebuilt.merges == second._reader.manifest.rebuilt.merges
    assert_same_tasks(first, second, family, *STORED)
    assert_sound(second, family, 5)
    with pytest.raises(UsageError, match="does not hold single tasks"):
        weights_of(second, family, task="dog", merge=second.default_merge)
    assert json.loads((second.path / "weights.json").read_text())["dog"] == 0


def test_another_merge_counts_the_new_task(family, tmp_path):
    first = pack(of(family, *STORED), tmp_path / "first")
    second = append(first, family, tmp_path / "second", "dog")
    compress(family.base, {}, tmp_path / "third", from_artifact=second.path, method="ties")
    third = Artifact.open(tmp_path / "third")
    assert_same_tasks(second, third, family, *STORED, "dog")
    fourth = append(third, family, tmp_path / "fourth", "eel")
    assert_same_tasks(third, fourth, family, *STORED, "dog")
    before, after = (weights_of(artifact, family, merge="ties") for artifact in (third, fourth))
    assert all(torch.equal(before[n], after[n]) for n in before)


# --- replacing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["hybrid", "fast", "bitdelta", "exact"])
def test_a_task_is_replaced_only_when_asked_for(family, tmp_path, profile):
    first = pack(of(family, *STORED), tmp_path / "first", profile=profile)
    other = FamilyFiles(family.base, {"bee": family.tasks["eel"]})
    with pytest.raises(UsageError, match="already has a task 'bee'"):
        append(first, other, tmp_path / "second", "bee")
    second = append(first, other, tmp_path / "second", "bee", replace=True)
    assert second.tasks == STORED
    assert_same_tasks(first, second, family, "ant", "cat")
    assert digests(first)["bee"] != digests(second)["bee"]
    assert_sound(second, family, 3)
    grown = append(first, family, tmp_path / "grown", "eel")
    as_new = grown.diagnostics()["tasks"]["eel"]["relative_error"]
    assert second.diagnostics()["tasks"]["bee"]["relative_error"] == pytest.approx(as_new, rel=0.05)
    back = append(second, family, tmp_path / "third", "bee", "dog", replace=True)
    assert back.tasks == (*STORED, "dog")
    if profile in ("fast", "exact"):
        assert digests(back) | {"dog": ""} == digests(first) | {"dog": ""}


def test_what_a_stored_merge_weighs_is_not_replaced(family, tmp_path):
    rule = {"tensors": "block.*", "weight": 3.0, "tasks": ["bee"]}
    first = pack(of(family, *STORED), tmp_path / "first", overrides=[rule])
    with pytest.raises(UsageError, match="stored as a weighting"):
        append(first, family, tmp_path / "second", "bee", replace=True)


# --- refusals ------------------------------------------------------------------------------------


def refused(kind: type[SvdhError], match: str, *args: Any, **more: Any) -> None:
    with pytest.raises(kind, match=match):
        append(*args, **more)
    assert not args[2].exists()


def test_another_base_is_refused(family, tmp_path):
    first = pack(of(family, *STORED), tmp_path / "first")
    base = load_state(family.base)
    base["embed.weight"][0, 0] += 1
    other = FamilyFiles(write_state(tmp_path / "other.safetensors", base), family.tasks)
    refused(BaseMismatchError, "not the one", first, other, tmp_path / "second", "dog")
    del base["still"]
    few = FamilyFiles(write_state(tmp_path / "few.safetensors", base), family.tasks)
    refused(SvdhError, "still|base", first, few, tmp_path / "second", "dog")


def test_what_cannot_grow_is_refused(family, tmp_path):
    target = tmp_path / "target"
    merged = pack(of(family, *STORED), tmp_path / "merged", method="emr")
    refused(UsageError, "no task deltas", merged, family, target, "dog")
    exact = pack(of(family, *STORED), tmp_path / "exact", profile="exact")
    refused(UsageError, "bit for bit", exact, family, target, "dog", profile="fast")
    half: State = {
        n: t.half() if t.is_floating_point() else t
        for n, t in load_state(family.tasks["dog"]).items()
    }
    coarse = FamilyFiles(family.base, {"dog": write_state(tmp_path / "half.safetensors", half)})
    refused(FamilyError, "in F16, the stored ones in F32", exact, coarse, target, "dog")
    first = pack(of(family, *STORED), tmp_path / "first")
    refused(UsageError, "not stored bit for bit", first, family, target, "dog", profile="exact")
    refused(UsageError, "common to all tasks", first, family, target, "dog", profile="rtvq")
    refused(UsageError, "'method' has no meaning", first, family, target, "dog", method="ties")
    confusable = FamilyFiles(family.base, {"Ant": family.tasks["dog"]})
    refused(UsageError, "differ only in case", first, confusable, target, "Ant")
    refused(UsageError, "differ only in case", first, confusable, target, "Ant", replace=True)
    with pytest.raises(UsageError, match="append needs from_artifact"):
        compress(family.base, family.tasks, target, append=True)
    with pytest.raises(UsageError, match="replace append"):
        compress(family.base, family.tasks, target, from_artifact=first.path, replace=True)


# --- documents -----------------------------------------------------------------------------------


def test_diagnostics_keep_the_old_tasks_and_add_the_new_one(family, tmp_path):
    first = pack(of(family, *STORED), tmp_path / "first")
    second = append(first, family, tmp_path / "second", "eel")
    before, after = first.diagnostics(), second.diagnostics()
    assert after["tasks"] == before["tasks"] | {"eel": after["tasks"]["eel"]}
    assert after["bytes"]["bytes_artifact"] == sum(
        path.stat().st_size for path in second.path.rglob("*") if path.is_file()
    )
    assert after["bytes"]["tasks"] == 4
    assert set(after["per_parameter"]) == set(before["per_parameter"])
    for name, facts in after["per_parameter"].items():
        assert list(facts["reconstruction_errors"]) == [*STORED, "eel"]  # twin is tied no more
        known = before["per_parameter"][name].get("reconstruction_errors", {})
        for task, errors in known.items():
            assert facts["reconstruction_errors"][task] == errors
        parts = second._reader.manifest.tensors
        assert set(facts["bytes"]) == set(next(t for t in parts if t.name == name).parts)
    assert any("twin" in note for note in after["notes"])


def test_artifacts_without_documents_grow(family, tmp_path):
    from tests.format.families import edit_manifest

    names = ("config.json", "weights.json", "README.md")
    first = pack(of(family, *STORED), tmp_path / "first", profile="hybrid")
    for name in names:
        (first.path / name).unlink()
    edit_manifest(
        first.path, lambda m: m.update(files=[f for f in m["files"] if f["path"] not in names])
    )
    second = append(Artifact.open(first.path), family, tmp_path / "second", "dog")
    assert_sound(second, family, 4)


def test_without_measuring(family, tmp_path):
    first = pack(
        of(family, *STORED), tmp_path / "first", profile="hybrid", eval_reconstruction=False
    )
    second = append(first, family, tmp_path / "second", "dog", eval_reconstruction=False)
    assert second.diagnostics()["tasks"] == {task: {} for task in (*STORED, "dog")}
    assert not second.verify(family.base, deep=True).problems
    third = append(second, family, tmp_path / "third", "eel")
    errors = third.diagnostics()["tasks"]
    assert errors["eel"]["relative_error"] < 0.021
    assert not errors["dog"]
    assert third.diagnostics()["summary"]["relative_error"] is None
