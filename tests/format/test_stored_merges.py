"""What a manifest may not say about stored merges: each fault is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svd_hybrid import Artifact
from svd_hybrid.artifact.schema import validate
from svd_hybrid.errors import ArtifactError, UsageError, VersionError
from tests.format.families import edit_manifest

GOLDEN = Path(__file__).resolve().parents[2] / "artifacts"
BASE = GOLDEN / "golden-base" / "model.safetensors"
MERGES = ("emr", "ties.20", "tsv-compress")
Record = dict[str, Any]


def proj(record: Record) -> Record:
    return next(tensor for tensor in record["tensors"] if tensor["name"] == "proj.weight")


def expression(record: Record, merge: str, key: str = "merged") -> Record:
    return proj(record)["merges"][merge][key]


FAULTS: dict[str, tuple[Callable[[Record], object], type[Exception]]] = {
    "expressions of no merge": (
        lambda m: proj(m)["merges"].update(other={"merged": {"op": "dense", "part": "m0.merged"}}),
        ArtifactError,
    ),
    "a task expression that the merge denies": (
        lambda m: m["merges"]["emr"].update(tasks=False),
        ArtifactError,
    ),
    "no task expression where the merge promises one": (
        lambda m: m["merges"]["ties.20"].update(tasks=True),
        ArtifactError,
    ),
    "a merge that becomes a weighting of tasks that are not stored": (
        lambda m: m["merges"].update(
            emr={
                "kind": "linear",
                "method": "emr",
                "method_version": 1,
                "scaling": 1.0,
                "weights": [1.0, 1.0, 1.0],
            }
        ),
        ArtifactError,
    ),
    "tasks that the manifest says are not held": (
        lambda m: proj(m).update(task={"op": "dense", "part": "m0.merged"}),
        ArtifactError,
    ),
    "a gain too few": (lambda m: m["merges"]["emr"]["task_gains"].pop(), ArtifactError),
    "an infinite gain": (
        lambda m: m["merges"]["emr"].update(task_gains=[10**400, 1, 1]),
        ArtifactError,
    ),
    "a weight too many": (
        lambda m: expression(m, "tsv-compress")["weights"].append(1.0),
        ArtifactError,
    ),
    "a weight as text": (
        lambda m: expression(m, "tsv-compress").update(weights=["1", "1", "1"]),
        ArtifactError,
    ),
    "a part that is not stored": (
        lambda m: proj(m)["parts"].pop("m2.merged"),
        ArtifactError,
    ),
    "a stacked part where no task is selected": (
        lambda m: proj(m)["merges"]["ties.20"].update(
            merged={"op": "masked", "mask": "m0.mask", "inside": True,
                    "inner": {"op": "dense", "part": "m0.merged"}}
        ),
        ArtifactError,
    ),
    "an unknown operation": (
        lambda m: proj(m)["merges"]["ties.20"].update(merged={"op": "wavelet"}),
        VersionError,
    ),
    "an unknown field of a merge": (lambda m: m["merges"]["emr"].update(x=1), ArtifactError),
    "an unknown dtype of a merge": (lambda m: m["merges"]["emr"].update(dtype="F8"), ArtifactError),
    "holds_tasks that says nothing": (lambda m: m.update(holds_tasks=True), ArtifactError),
    "no merge by default": (lambda m: m.update(default_merge="other"), ArtifactError),
}  # fmt: skip


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "golden-v1-merges", tmp_path / "artifact"))


def read_everything(artifact: Path) -> None:
    opened = Artifact.open(artifact)
    for merge in MERGES:
        dict(opened.iter_tensors(BASE, merge=merge))
        if merge != "ties.20":
            dict(opened.iter_tensors(BASE, merge=merge, task="beta"))


def test_the_untouched_artifact_is_read(artifact):
    edit_manifest(artifact, lambda record: None)
    read_everything(artifact)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused(artifact, fault):
    change, error = FAULTS[fault]
    edit_manifest(artifact, change)
    with pytest.raises(error):
        read_everything(artifact)


def test_the_schema_takes_what_the_writer_makes(artifact):
    validate(json.loads((artifact / "manifest.json").read_bytes()), "manifest-v1", "test")


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        ({"merge": "ties.20", "task": "alpha"}, "does not hold single tasks"),
        ({"merge": "emr", "task": "alpha", "weights": {"alpha": 1.0}}, "exclude each other"),
    ],
)
def test_selections_that_a_stored_merge_cannot_give(artifact, selection, text):
    with pytest.raises(UsageError, match=text):
        dict(Artifact.open(artifact).iter_tensors(BASE, **selection))


def test_single_tasks_come_from_the_default_merge_or_the_first_that_has_them(artifact):
    plain = dict(Artifact.open(artifact).iter_tensors(task="alpha"))
    emr = dict(Artifact.open(artifact).iter_tensors(task="alpha", merge="emr"))
    assert all(bool((plain[name] == emr[name]).all()) for name in plain)
    edit_manifest(artifact, lambda record: record.update(default_merge="tsv-compress"))
    moved = dict(Artifact.open(artifact).iter_tensors(task="alpha"))
    tsv = dict(Artifact.open(artifact).iter_tensors(task="alpha", merge="tsv-compress"))
    assert all(bool((moved[name] == tsv[name]).all()) for name in moved)
