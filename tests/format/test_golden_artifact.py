"""The committed artifacts of version 1 come back to the same bits, in every later release too."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import svd_hybrid
from svd_hybrid import Artifact
from svd_hybrid.codec import CODECS
from svd_hybrid.delta.serial import KNOWN_OPS
from svd_hybrid.errors import ArtifactError, StorageError
from svd_hybrid.io.tensors import tensor_digest
from tests.format import minimal_reader
from tests.format.families import read_record

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "artifacts"
BASE = GOLDEN / "golden-base" / "model.safetensors"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
NAMES = list(EXPECTED["artifacts"])
SELECTIONS: dict[str, dict[str, Any]] = EXPECTED["selections"]
PAIRS = [(name, label) for name in NAMES for label in EXPECTED["artifacts"][name]["tensors"]]
HYBRID = [name for name in NAMES if "hybrid" in name]
WITH_DIGESTS = ("exact", "auto", "max", "bitdelta", "compeft", "fast", "blocks")
"""In names of artifacts that are not older than digests of what comes back."""


def base_of(name: str) -> Path:
    return GOLDEN / EXPECTED["bases"].get(name, "golden-base") / "model.safetensors"


def digests(name: str, label: str) -> dict[str, str]:
    wanted: dict[str, str] = EXPECTED["artifacts"][name]["tensors"][label]
    return wanted


def test_every_golden_artifact_is_expected():
    folders = {path.parent.name for path in GOLDEN.glob("golden-*/manifest.json")}
    assert folders == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_golden_artifact_verifies_with_its_base(name):
    opened = Artifact.open(GOLDEN / name)
    report = opened.verify(base_of(name))
    assert report.problems == []
    assert report.tensors == len(load_file(base_of(name)))
    assert opened.id == EXPECTED["artifacts"][name]["artifact_id"]
    assert opened.tasks == ("alpha", "beta", "gamma")


@pytest.mark.parametrize(("name", "label"), PAIRS)
def test_golden_artifact_reloads_to_the_stored_digests(name, label, tmp_path):
    out = tmp_path / "out.safetensors"
    svd_hybrid.reload(GOLDEN / name, base_of(name).parent, out, **SELECTIONS[label])
    rebuilt = {tensor: tensor_digest(values) for tensor, values in load_file(out).items()}
    assert rebuilt == digests(name, label)


@pytest.mark.parametrize(("name", "label"), PAIRS)
def test_the_independent_reader_gives_the_stored_digests(name, label):
    opened = minimal_reader.Artifact(GOLDEN / name)
    base = minimal_reader.read_safetensors(base_of(name).read_bytes())
    selection = minimal_reader.select(opened.manifest, **SELECTIONS[label])
    stream = opened.rebuild(base, selection)
    rebuilt = {tensor: minimal_reader.fingerprint(entry) for tensor, entry in stream}
    assert rebuilt == digests(name, label)


def test_the_independent_reader_runs_as_a_program(capsys):
    minimal_reader.main([str(GOLDEN / HYBRID[0]), str(BASE), "beta"])
    lines = capsys.readouterr().out.splitlines()
    assert dict(reversed(line.split(" ", 1)) for line in lines) == digests(HYBRID[0], "beta")


@pytest.mark.parametrize("task", ["alpha", "beta", "gamma"])
def test_exact_golden_tasks_are_the_fine_tunes_they_came_from(task):
    tuned = make_golden().Family().tasks[task]
    stream = Artifact.open(GOLDEN / "golden-v1-exact").iter_tensors(BASE, task=task)
    assert {name: tensor_digest(x) for name, x in stream} == {
        name: tensor_digest(x) for name, x in tuned.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_golden_artifacts_pass_a_deep_check(name):
    report = Artifact.open(GOLDEN / name).verify(base_of(name), deep=True)
    assert report.problems == []
    assert report.rebuilt == (3 if any(word in name for word in WITH_DIGESTS) else 0)


@pytest.mark.parametrize("name", HYBRID)
def test_golden_tasks_are_close_to_the_fine_tunes_they_came_from(name):
    family = make_golden().Family()
    base = load_file(BASE)
    for task, tuned in family.tasks.items():
        for tensor, values in Artifact.open(GOLDEN / name).iter_tensors(BASE, task=task):
            delta = tuned[tensor].double() - base[tensor].double()
            error = (values.double() - tuned[tensor].double()).norm()
            assert float(error) <= 0.02 * float(delta.norm()), f"{task} {tensor}"


def test_untouched_negative_zeros_come_back():
    for name in set(NAMES) - {"golden-v1-bitdelta"}:  # its signs are never 0
        rows = dict(Artifact.open(GOLDEN / name).iter_tensors(base_of(name)))["embed.weight"][7:9]
        assert bool(((rows == 0) & torch.signbit(rows)).all())


@pytest.mark.parametrize("name", ["golden-v1-auto", "golden-v1-auto-error", "golden-v1-max"])
def test_wide_golden_tasks_are_close_to_the_fine_tunes_they_came_from(name):
    family = make_golden().WideFamily()
    base = load_file(base_of(name))
    for task, tuned in family.tasks.items():
        stream = Artifact.open(GOLDEN / name).iter_tensors(base_of(name), task=task)
        pairs = [(x.double(), tuned[key].double(), base[key].double()) for key, x in stream]
        error = sum(float((got - want).square().sum()) for got, want, _ in pairs)
        assert error <= 0.3**2 * sum(float((want - x).square().sum()) for _, want, x in pairs)


def test_tasks_of_the_golden_artifact_of_blocks_are_the_fine_tunes_they_came_from():
    name = "golden-v1-blocks"
    for task, tuned in make_golden().BlocksFamily().tasks.items():
        for tensor, values in Artifact.open(GOLDEN / name).iter_tensors(base_of(name), task=task):
            assert torch.allclose(values, tuned[tensor], rtol=0, atol=1e-6), f"{task} {tensor}"


def test_one_golden_shard_has_two_blocks_and_a_tensor_needs_only_its_own(tmp_path):
    name = "golden-v1-blocks"
    (shard,) = (file for file in read_record(GOLDEN / name)["files"] if "blocks" in file)
    data = (GOLDEN / name / shard["path"]).read_bytes()
    halves = data[:65536], data[65536:]
    assert shard["blocks"] == "".join(hashlib.sha256(x).hexdigest()[:32] for x in halves)
    copy = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
    (copy / shard["path"]).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    artifact, base = Artifact.open(copy), base_of(name)
    digest = tensor_digest(artifact.tensor("mlp.weight", base, task="beta"))
    assert digest == digests(name, "beta")["mlp.weight"]
    for tensor in ("proj.weight", "temperature"):
        with pytest.raises(ArtifactError, match=f"in bytes 65536 to {len(data) - 1} "):
            artifact.tensor(tensor, base, task="beta")
    with pytest.raises(minimal_reader.DamagedError):
        minimal_reader.Artifact(copy)


def operations(expression: Any) -> set[str]:
    if isinstance(expression, list):
        return set().union(*map(operations, expression))
    if not isinstance(expression, dict):
        return set()
    return {expression["op"]}.union(*map(operations, expression.values()))


def test_golden_artifacts_hold_every_codec_and_operation():
    codecs, ops, limbs, rows = set(), set(), set(), set()
    for name in NAMES:
        manifest = read_record(GOLDEN / name)
        text = json.dumps(manifest)
        codecs |= {codec["name"] for codec in manifest["codecs"]}
        rows |= {codec.get("rows") for codec in manifest["codecs"]} - {None}
        limbs |= {value for value in (1, 2) if f'"limbs": {value}' in text}
        for tensor in manifest["tensors"]:
            ops |= operations(tensor.get("task", [])) | operations(tensor.get("blend", []))
            for entry in tensor.get("merges", {}).values():
                ops |= operations(list(entry.values()))
    assert codecs == set(CODECS)
    assert ops == set(KNOWN_OPS)
    assert limbs == {1, 2}
    assert rows == {"scaled", "rotated", "unit"}


def test_golden_files_are_small():
    files = [path for path in GOLDEN.glob("golden-*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 250_000


def make_golden() -> Any:
    from scripts import make_golden as script

    return script


def test_the_script_makes_the_same_family_and_keeps_what_is_there(tmp_path):
    script = make_golden()
    assert script.main(["--out", str(tmp_path)]) == 0
    made = tmp_path / "golden-base" / "model.safetensors"
    assert made.read_bytes() == BASE.read_bytes()
    made = tmp_path / "golden-wide-base" / "model.safetensors"
    assert made.read_bytes() == base_of("golden-v1-auto").read_bytes()
    made = tmp_path / "golden-blocks-base" / "model.safetensors"
    assert made.read_bytes() == base_of("golden-v1-blocks").read_bytes()
    fresh = json.loads((tmp_path / "expected.json").read_text(encoding="utf-8"))
    assert fresh["selections"] == SELECTIONS
    assert fresh["bases"] == EXPECTED["bases"]
    for name in fresh["artifacts"]:
        assert set(fresh["artifacts"][name]["tensors"]["merged"]) == set(digests(name, "merged"))
    with pytest.raises(StorageError, match="never made anew"):
        script.main(["--out", str(tmp_path)])
