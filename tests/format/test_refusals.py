"""What FORMAT.md says a reader refuses, each with the fault it names; silence is the failure."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from svd_hybrid import Artifact
from svd_hybrid.artifact.files import read_manifest
from svd_hybrid.errors import ArtifactError, BaseMismatchError, UnsafeError, VersionError
from tests.format import minimal_reader
from tests.format.families import (
    compress_family,
    edit_arrays,
    edit_manifest,
    random_delta,
    write_family,
)

TASKS = ["a", "b"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A family folder with its artifact; tests copy it before they touch it."""
    folder = tmp_path_factory.mktemp("made")
    base = {
        "count": torch.tensor(3),
        "tied": torch.ones(4, 6),
        "twin": torch.ones(4, 6),
        "w": torch.zeros(6, 8),
    }
    tasks = {}
    for index, task in enumerate(TASKS):
        tied = base["tied"] + random_delta((4, 6), 10 + index).float()
        tasks[task] = base | {
            "tied": tied,
            "twin": tied.clone(),
            "w": random_delta((6, 8), 20 + index).float(),
        }
    mask = torch.arange(48).reshape(6, 8) % 3 > 0
    write_family(folder, base, tasks, {task: {"w": mask} for task in TASKS})
    compress_family(folder, TASKS, missing_mask="ignore", include_noise=True, basis_dtype="int8")
    return folder


@pytest.fixture
def family(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "family"))


def rebuild(family: Path) -> None:
    """Read everything a reader can be asked for."""
    for selection in ({}, {"task": "a"}, {"task": "b"}):
        for _ in Artifact.open(family / "artifact").iter_tensors(
            family / "base.safetensors", **selection
        ):
            pass


def verify_loudly(artifact: Path) -> None:
    """Open an artifact and raise the first problem found in it."""
    for problem in Artifact.open(artifact).verify().problems:
        raise problem


def tensor(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(tensor for tensor in record["tensors"] if tensor["name"] == name)


def test_the_untouched_artifact_is_read(family):
    rebuild(family)
    edit_manifest(family / "artifact", lambda record: None)
    rebuild(family)


MANIFEST_EDITS = {
    "another format": (lambda m: m.update(format="zip"), ArtifactError),
    "a later version": (lambda m: m.update(format_version=2), VersionError),
    "version zero": (lambda m: m.update(format_version=0), VersionError),
    "a version as text": (lambda m: m.update(format_version="1"), VersionError),
    "a version as truth": (lambda m: m.update(format_version=True), ArtifactError),
    "an unknown field": (lambda m: m.update(extra=1), ArtifactError),
    "an unknown tensor field": (lambda m: m["tensors"][0].update(extra=1), ArtifactError),
    "an unknown merge kind": (lambda m: m["merges"]["merged"].update(kind="ties"), ArtifactError),
    "a missing field": (lambda m: m.pop("codecs"), ArtifactError),
    "an unknown codec": (lambda m: m["codecs"][0].update(name="zip"), VersionError),
    "a codec in capitals": (lambda m: m["codecs"][0].update(name="HALF"), VersionError),
    "a later codec version": (lambda m: m["codecs"][0].update(version=2), VersionError),
    "an unknown codec parameter": (lambda m: m["codecs"][0].update(level=2), ArtifactError),
    "a default merge that is none": (lambda m: m.update(default_merge="x"), ArtifactError),
    "too many weights": (lambda m: m["merges"]["merged"]["weights"].append(1.0), ArtifactError),
    "a weight beyond float64": (
        lambda m: m["merges"]["merged"].update(weights=[10**400, 0]),
        ArtifactError,
    ),
    "a scaling beyond float64": (
        lambda m: m["merges"]["merged"].update(scaling=-(10**400)),
        ArtifactError,
    ),
    "the same task twice": (lambda m: m.update(tasks=["a", "a"]), ArtifactError),
    "tensors out of order": (lambda m: m["tensors"].reverse(), ArtifactError),
    "a tensor twice": (lambda m: m["tensors"].insert(1, m["tensors"][0]), ArtifactError),
    "files out of order": (lambda m: m["files"].reverse(), ArtifactError),
    "an unknown dtype": (lambda m: m["tensors"][0].update(dtype="C64"), ArtifactError),
    "a fractional size": (lambda m: m["files"][0].update(bytes=1.5), ArtifactError),
    "an integer with a point": (
        lambda m: tensor(m, "w")["parts"]["mask"].update(rows=6.0),
        ArtifactError,
    ),
    "a codec that is not listed": (
        lambda m: tensor(m, "w")["parts"]["mask"].update(codec=99),
        ArtifactError,
    ),
    "an alias of nothing": (lambda m: tensor(m, "twin").update(alias="x"), ArtifactError),
    "an alias of another": (lambda m: tensor(m, "twin").update(alias="w"), ArtifactError),
    "an alias with a blend": (
        lambda m: tensor(m, "twin").update(blend={"op": "sum", "terms": []}),
        ArtifactError,
    ),
    "a blend alone": (lambda m: tensor(m, "w").pop("task"), ArtifactError),
    "an integer tensor with a delta": (
        lambda m: tensor(m, "count").update(task={"op": "sum", "terms": []}),
        ArtifactError,
    ),
    "a path outside": (lambda m: m["files"][0].update(path="../README.md"), UnsafeError),
    "an absolute path": (lambda m: m["files"][0].update(path="/README.md"), UnsafeError),
    "an unknown document": (lambda m: m["files"][-1].update(path="zz.json"), UnsafeError),
}


@pytest.mark.parametrize("case", MANIFEST_EDITS)
def test_manifest(family, case):
    change, error = MANIFEST_EDITS[case]
    edit_manifest(family / "artifact", change)
    with pytest.raises(error):
        verify_loudly(family / "artifact")


FORMAT = b'"format":"svdh-artifact",'
SPELLINGS = {
    "spaces": lambda text: text.replace(b'":', b'": '),
    "no newline": lambda text: text.rstrip(b"\n"),
    "an escaped letter": lambda text: text.replace(b'"a"', b'"\\u0061"'),
    "a key twice": lambda text: text.replace(b'{"checksum"', b'{"format":"x","checksum"'),
    "keys out of order": lambda text: b'{"format":"svdh-artifact",' + text[1:].replace(FORMAT, b""),
    "not a number": lambda text: text.replace(b'"scaling":1.0', b'"scaling":NaN'),
    "an infinite number": lambda text: text.replace(b'"scaling":1.0', b'"scaling":1e999'),
    "a longer spelling": lambda text: text.replace(b'"scaling":1.0', b'"scaling":1.00'),
    "half a character": lambda text: text.replace(b'"a"', b'"\\ud800"'),
    "no UTF-8": lambda text: text.replace(b'"a"', b'"\xff"'),
    "no object": lambda text: b"[]\n",
    "cut short": lambda text: text[:-20],
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_spelling_of_the_manifest(family, case):
    path = family / "artifact" / "manifest.json"
    before = path.read_bytes()
    path.write_bytes(SPELLINGS[case](before))
    assert path.read_bytes() != before
    with pytest.raises(ArtifactError):
        read_manifest(family / "artifact")


def test_a_flipped_bit_of_the_manifest_is_always_found(family):
    path = family / "artifact" / "manifest.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at // 5 % 8)
        path.write_bytes(damaged)
        with pytest.raises((ArtifactError, VersionError, UnsafeError)):
            read_manifest(family / "artifact")


def deep(levels: int) -> dict[str, Any]:
    expression: dict[str, Any] = {"op": "sum", "terms": []}
    for _ in range(levels):
        expression = {"op": "scale", "factor": 1.0, "inner": expression}
    return expression


PRODUCT = {"op": "low-rank", "left": "basis_high", "right": "coeff_high", "limbs": 1}
EXPRESSIONS = {
    "an unknown operation": ({"op": "spline"}, VersionError),
    "no operation": ({}, ArtifactError),
    "an unknown key": ({"op": "sum", "terms": [], "x": 1}, ArtifactError),
    "a missing key": ({"op": "dense"}, ArtifactError),
    "three limbs": (PRODUCT | {"limbs": 3}, ArtifactError),
    "limbs as truth": (PRODUCT | {"limbs": True}, ArtifactError),
    "limbs with a point": (PRODUCT | {"limbs": 1.0}, ArtifactError),
    "a factor as truth": ({"op": "scale", "factor": True, "inner": PRODUCT}, ArtifactError),
    "a factor beyond float64": (
        {"op": "scale", "factor": 10**400, "inner": PRODUCT},
        ArtifactError,
    ),
    "too deep": (deep(17), ArtifactError),
    "a part that is not stored": ({"op": "dense", "part": "nothing"}, ArtifactError),
    "a part of another shape": ({"op": "dense", "part": "basis_high"}, ArtifactError),
    "factors that do not fit": (PRODUCT | {"right": "basis_high"}, ArtifactError),
    "two stacked factors": (PRODUCT | {"left": "coeff_high"}, ArtifactError),
    "a mask as numbers": ({"op": "dense", "part": "mask"}, ArtifactError),
    "numbers as a mask": (
        {"op": "masked", "mask": "mean", "inside": True, "inner": PRODUCT},
        ArtifactError,
    ),
}


@pytest.mark.parametrize("case", EXPRESSIONS)
def test_expression(family, case):
    expression, error = EXPRESSIONS[case]
    edit_manifest(family / "artifact", lambda m: tensor(m, "w").update(task=expression))
    with pytest.raises(error):
        rebuild(family)


def test_sixteen_levels_below_the_outermost_are_read(family):
    edit_manifest(family / "artifact", lambda m: tensor(m, "w").update(task=deep(16)))
    rebuild(family)


@pytest.mark.parametrize("scaling", [1, 3, 10**20])
def test_numbers_may_be_integers_of_any_size_within_float64(family, scaling):
    def rewrite(manifest: dict[str, Any]) -> None:
        manifest["merges"]["merged"].update(weights=[2**60 + 1, -(10**3)], scaling=scaling)

    edit_manifest(family / "artifact", rewrite)
    base = minimal_reader.read_safetensors((family / "base.safetensors").read_bytes())
    theirs = minimal_reader.Artifact(family / "artifact")
    wanted = dict(theirs.rebuild(base, minimal_reader.select(theirs.manifest)))
    stream = Artifact.open(family / "artifact").iter_tensors(family / "base.safetensors")
    assert {name: tensor.numpy().tobytes() for name, tensor in stream} == {
        name: entry.data for name, entry in wanted.items()
    }


def drop(key: str) -> Any:
    return lambda arrays: arrays.pop(key)


def put(key: str, value: Any) -> Any:
    return lambda arrays: arrays.update({key: value(arrays[key])})


ARRAYS = {
    "an array is missing": ("coeffs", drop("t00003.coeff_high.values")),
    "an array of another dtype": ("coeffs", put("t00003.coeff_high.values", torch.Tensor.float)),
    "an array of another shape": (
        "coeffs",
        put("t00003.coeff_high.values", lambda x: x[:, :, :-1].clone()),
    ),
    "a slice is missing": ("coeffs", put("t00003.coeff_high.values", lambda x: x[:1].clone())),
    "too large an exponent": (
        "coeffs",
        put("t00003.coeff_high.exponent", lambda x: torch.full_like(x, 1023)),
    ),
    "too small an exponent": (
        "basis",
        put("t00003.basis_high.stage0.exponent", lambda x: torch.full_like(x, -1023)),
    ),
    "infinite steps": (
        "basis",
        put("t00003.basis_high.stage0.step", lambda x: torch.full_like(x, torch.inf)),
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_array(family, case):
    folder, change = ARRAYS[case]
    edit_arrays(family / "artifact", folder, change)
    with pytest.raises(ArtifactError):
        rebuild(family)


def test_a_shard_of_another_size(family):
    (shard,) = (family / "artifact" / "masks").iterdir()
    shard.write_bytes(shard.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="bytes, the manifest says"):
        rebuild(family)


def test_a_shard_with_a_flipped_bit(family):
    (shard,) = (family / "artifact" / "masks").iterdir()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256"):
        rebuild(family)


def test_the_same_array_in_two_shards(family):
    artifact = family / "artifact"
    (shard,) = (artifact / "masks").iterdir()
    (artifact / "basis" / shard.name).write_bytes(shard.read_bytes())

    def list_twice(manifest: dict[str, Any]) -> None:
        files = manifest["files"]
        record = next(file for file in files if file["path"] == f"masks/{shard.name}")
        files.append(record | {"path": f"basis/{shard.name}"})
        files.sort(key=lambda file: file["path"])

    edit_manifest(artifact, list_twice)
    with pytest.raises(ArtifactError, match="twice"):
        rebuild(family)


BASES = {
    "lacks a tensor": lambda base: base.pop("w"),
    "has one more": lambda base: base.update(x=torch.zeros(1)),
    "has another shape": lambda base: base.update(w=torch.zeros(8, 6)),
    "has another dtype": lambda base: base.update(w=torch.zeros(6, 8, dtype=torch.float16)),
    "has another value": lambda base: base.update(count=torch.tensor(4)),
    "has another sign of zero": lambda base: base.update(w=-torch.zeros(6, 8)),
}


@pytest.mark.parametrize("case", BASES)
def test_base(family, case):
    base = load_file(family / "base.safetensors")
    BASES[case](base)
    save_file(base, family / "base.safetensors")
    with pytest.raises(BaseMismatchError):
        rebuild(family)
