"""What both readers refuse of artifacts with `tucker` and `integers` (FORMAT.md §8.9, §9)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from svd_hybrid import Artifact
from svd_hybrid.errors import ArtifactError, VersionError
from tests.format import minimal_reader
from tests.format.families import edit_manifest, read_record

GOLDEN = Path(__file__).resolve().parents[2] / "artifacts"
BASE = GOLDEN / "golden-wide-base" / "model.safetensors"
TASKS = ("alpha", "beta", "gamma")


@pytest.fixture
def artifact(tmp_path) -> Path:
    """A copy of `golden-v1-auto`: a tucker, low-rank products, all three kinds of rows."""
    return Path(shutil.copytree(GOLDEN / "golden-v1-auto", tmp_path / "artifact"))


def rebuild(artifact: Path) -> None:
    for selection in ({}, *({"task": task} for task in TASKS)):
        for _ in Artifact.open(artifact).iter_tensors(BASE, **selection):
            pass


def rebuild_independently(artifact: Path) -> None:
    opened = minimal_reader.Artifact(artifact)
    base = minimal_reader.read_safetensors(BASE.read_bytes())
    for task in (None, *TASKS):
        for _ in opened.rebuild(base, minimal_reader.select(opened.manifest, task=task)):
            pass


def tensor(record: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(t for t in record["tensors"] if t["name"] == name)
    return found


def product(record: dict[str, Any]) -> dict[str, Any]:
    """The tucker of `mlp.weight`."""
    found: dict[str, Any] = tensor(record, "mlp.weight")["task"]["terms"][0]
    assert found["op"] == "tucker"
    return found


def part(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: tensor(record, "mlp.weight")["parts"][name]


def codec(rows: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: next(c for c in record["codecs"] if c["rows"] == rows)


def change(where: Callable[[dict[str, Any]], dict[str, Any]], **values: Any) -> Any:
    return lambda record: where(record).update(values)


def drop(where: Callable[[dict[str, Any]], dict[str, Any]], key: str) -> Any:
    return lambda record: where(record).pop(key)


DAMAGED, UNKNOWN = (
    (ArtifactError, minimal_reader.DamagedError),
    (VersionError, minimal_reader.UnknownError),
)
CASES = {
    "a tucker without a core": (drop(product, "core"), DAMAGED),
    "a tucker without limbs": (drop(product, "limbs"), DAMAGED),
    "a tucker with one key more": (change(product, inside=True), DAMAGED),
    "three limbs": (change(product, limbs=3), DAMAGED),
    "limbs as truth": (change(product, limbs=True), DAMAGED),
    "limbs with a point": (change(product, limbs=1.0), DAMAGED),
    "a core that is not stored": (change(product, core="nothing"), DAMAGED),
    "a left side that is not stored": (change(product, left="nothing"), DAMAGED),
    "sides exchanged": (change(product, left="basis_right", right="basis_left"), DAMAGED),
    "a core that is a side": (change(product, core="basis_left"), DAMAGED),
    "a rest for a core": (change(product, core="coeff_rest"), DAMAGED),
    "another operation": (change(product, op="parafac"), UNKNOWN),
    "a core with a row more": (
        lambda r: part("coeff_core")(r).update(rows=part("coeff_core")(r)["rows"] + 1),
        DAMAGED,
    ),
    "a side with another number of columns": (change(part("basis_left"), columns=39), DAMAGED),
    "rows of another kind": (change(codec("unit"), rows="norm"), DAMAGED),
    "rows that are no text": (change(codec("unit"), rows=1), DAMAGED),
    "no rows": (drop(codec("rotated"), "rows"), DAMAGED),
    "a parameter more": (change(codec("scaled"), scale=0.5), DAMAGED),
    "a later version": (change(codec("scaled"), version=2), UNKNOWN),
    "strings without lengths": (
        lambda r: [part("coeff_core")(r).pop(key) for key in ("lengths", "shards")],
        DAMAGED,
    ),
    "strings of two kinds exchanged": (
        lambda r: part("basis_left")(r).update(codec=r["codecs"].index(codec("scaled")(r))),
        DAMAGED,
    ),
}


def test_the_untouched_artifact_is_read(artifact):
    edit_manifest(artifact, lambda record: None)
    rebuild(artifact)
    rebuild_independently(artifact)


@pytest.mark.parametrize("case", CASES)
def test_both_readers_refuse_it_with_the_same_fault(artifact, case):
    edit, (ours, theirs) = CASES[case]
    edit_manifest(artifact, edit)
    with pytest.raises(ours):
        rebuild(artifact)
    with pytest.raises((theirs, KeyError)):  # the short reader has no schema
        rebuild_independently(artifact)


def test_a_string_with_a_flipped_bit_never_passes_for_another_fault(artifact):
    """Digests put right, so that the strings themselves are what is read."""
    record = read_record(artifact)
    shards = [f["path"] for f in record["files"] if f["path"].endswith(".safetensors")]
    refused = 0
    for path in shards:
        whole = load_file(artifact / path)["streams"]
        for at in range(0, len(whole), 23):
            streams = whole.copy()
            streams[at] ^= 1 << at % 8
            put(artifact, path, streams)
            try:
                rebuild(artifact)
            except ArtifactError:
                refused += 1
        put(artifact, path, whole)
    assert refused > 20
    rebuild(artifact)


def put(artifact: Path, path: str, streams: Any) -> None:
    """Replace the strings of a shard under the same name, size and digest put right."""
    save_file({"streams": streams}, artifact / path)
    data = (artifact / path).read_bytes()

    def relist(record: dict[str, Any]) -> None:
        file = next(file for file in record["files"] if file["path"] == path)
        file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit_manifest(artifact, relist)
