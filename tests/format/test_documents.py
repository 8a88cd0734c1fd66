"""The documents of a fresh artifact conform to their schemas, and the commands read them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.diagnostics import read_diagnostics
from svd_hybrid.artifact.files import directory_bytes
from svd_hybrid.artifact.jsonfile import canonical_json, readable_json
from svd_hybrid.artifact.schema import load_schema, schema_path, validate
from svd_hybrid.cli.app import main
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.errors import ArtifactError
from svd_hybrid.methods import METHODS
from tests.format.families import compress_family, random_delta, read_record, write_family

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_OF = {
    layout.MANIFEST: "manifest-v1",
    layout.CONFIG: "config-v1",
    layout.WEIGHTS: "weights-v1",
    layout.CLUSTERS: "clusters-v1",
    layout.DIAGNOSTICS: "diagnostics-v1",
}
RUNS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "clusters": {"weighting": "cluster", "cluster_k": 2},
    "performance": {"weighting": "performance", "temperature": 0.05},
    "masks and noise": {"masked": True, "include_noise": True, "missing_mask": "ignore"},
    "an unused mask": {"masked": True, "mask_strategy": "intersection", "missing_mask": "ones"},
    "not measured": {"eval_reconstruction": False},
    "nothing changed": {"unchanged": True},
    "parity": {"basis": "tasks", "fp16": False, "max_rank": 1},
    "a merge alone": {"method": "ties"},
    "tasks and a merge": {"method": "iso-c", "store_tasks": "on"},
    "tasks of a merge": {"method": "emr", "merged_dtype": "fp16"},
    "rules": {"method": "tsv-compress", "overrides": [{"tensors": "*", "scaling": 0.5}]},
}


@pytest.fixture(params=RUNS)
def artifact(request, tmp_path) -> Path:
    run = dict(RUNS[request.param])
    size = 0.0 if run.pop("unchanged", False) else 0.1
    base = {
        "count": torch.tensor(1),
        "empty": torch.zeros(0, 3),
        "same": torch.ones(2, 2),
        "tied": torch.ones(4, 6),
        "twin": torch.ones(4, 6),
        "vector": torch.ones(7, dtype=torch.bfloat16),
    }
    tasks = {}
    for index, name in enumerate(("a", "b", "c")):
        tied = base["tied"] + random_delta((4, 6), index, size).float()
        vector = base["vector"] + random_delta((7,), 9 + index, size)
        tasks[name] = base | {"tied": tied, "twin": tied.clone(), "vector": vector.bfloat16()}
    masks = None
    if run.pop("masked", False):
        masks = {t: {"vector": torch.arange(7) % 3 > i} for i, t in enumerate(("a", "b"))}
        run["min_mask_size"] = 1
    if run.get("weighting") == "performance":
        run["performance_file"] = tmp_path / "accuracies.json"
        run["performance_file"].write_text('{"a": 0.5, "b": 0.75, "c": 1}')
    write_family(tmp_path, base, tasks, masks)
    return compress_family(tmp_path, list(tasks), **run)


def test_every_document_conforms_to_its_schema(artifact):
    names = {path.name for path in artifact.iterdir() if path.suffix == ".json"}
    assert names >= set(SCHEMA_OF) - {layout.CLUSTERS}
    for name in names:
        validate(json.loads((artifact / name).read_bytes()), SCHEMA_OF[name], name)


def test_documents_are_spelled_as_the_format_says(artifact):
    for name in (layout.CONFIG, layout.WEIGHTS, layout.CLUSTERS):
        if (artifact / name).exists():
            data = (artifact / name).read_bytes()
            assert readable_json(json.loads(data)) == data
    data = (artifact / layout.DIAGNOSTICS).read_bytes()
    assert len(data) % 64 == 0
    record = json.loads(data)
    assert data.rstrip() + b"\n" == canonical_json(record)
    assert record["bytes"]["bytes_artifact"] == directory_bytes(artifact)
    assert sum(record["bytes"]["breakdown"].values()) == directory_bytes(artifact)


def test_documents_agree_with_the_manifest(artifact):
    def load(name: str) -> Any:
        return json.loads((artifact / name).read_bytes())

    manifest, diagnostics = read_record(artifact), read_diagnostics(artifact)
    merge = manifest["merges"][manifest["default_merge"]]
    once = [1.0] * len(manifest["tasks"])  # a stored merge has no weights; each task counts once
    weights = dict(zip(manifest["tasks"], merge.get("weights", once), strict=True))
    assert load(layout.WEIGHTS) == weights == diagnostics["task_weights"]
    assert load(layout.CONFIG)["tasks"] == manifest["tasks"] == list(diagnostics["tasks"])
    if (artifact / layout.CLUSTERS).exists():
        assert load(layout.CLUSTERS) == diagnostics["cluster_assignments"]
    stored = {
        tensor["name"]: [part for part in sorted(tensor["parts"]) if not part.startswith("m0.")]
        for tensor in manifest["tensors"]
        if "parts" in tensor
    }
    measured = diagnostics["per_parameter"]
    assert stored == {name: sorted(measured[name].get("bytes", [])) for name in stored}
    if merge["kind"] == "stored":
        assert diagnostics["merge"]["name"] == manifest["default_merge"]
        kept = sum(facts["merge"]["bytes"] for facts in measured.values() if "merge" in facts)
        assert diagnostics["merge"]["bytes"] == kept


def test_verify_and_inspect_accept_it(artifact, capsys):
    base = artifact.parent / "base.safetensors"
    assert main(["verify", "--artifact-dir", str(artifact), "--base-model-path", str(base)]) == 0
    capsys.readouterr()
    assert main(["inspect", "--artifact-dir", str(artifact), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes_artifact"] == directory_bytes(artifact)


def test_inspect_refuses_diagnostics_that_do_not_conform(artifact, capsys):
    path = artifact / layout.DIAGNOSTICS
    path.write_bytes(path.read_bytes().replace(b'"notes":', b'"thoughts":'))
    assert main(["inspect", "--artifact-dir", str(artifact), "--json"]) == 4
    assert "thoughts" in capsys.readouterr().err
    assert main(["verify", "--artifact-dir", str(artifact)]) == 4


def test_the_configuration_schema_is_up_to_date():
    command = [sys.executable, str(ROOT / "scripts" / "make_schemas.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stale_configuration_schema_is_noticed(tmp_path, monkeypatch, capsys):
    from scripts import make_schemas

    stale = tmp_path / "config-v1.schema.json"
    monkeypatch.setattr(make_schemas, "TARGET", stale)
    assert make_schemas.main(["--check"]) == 1
    stale.write_text(schema_path("config-v1.schema.json").read_text().replace("softmax", "hard"))
    assert make_schemas.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err


def test_the_configuration_schema_knows_every_key_and_its_default():
    schema = load_schema("config-v1")
    every = [CompressConfig(method=name).to_json() for name in METHODS]
    every += [CompressConfig(profile=name).to_json() for name in PROFILE_PARAMS]
    assert set(schema["properties"]) == {"tasks"}.union(*every)
    own = {field.name for field in fields(CompressConfig)} - {
        "method",
        "parameters",
        "profile_implied",
    }
    for key in own:
        assert schema["properties"][key]["default"] == every[0][key]
        assert schema["properties"][key]["description"]


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_of_every_method_conform_and_foreign_parameters_do_not(method):
    config = CompressConfig(method=method).to_json() | {"tasks": ["cars"]}
    validate(config, "config-v1", "test")
    foreign = next(name for name in ("density", "num_iters") if name not in config)
    with pytest.raises(ArtifactError):
        validate(config | {foreign: 0.5}, "config-v1", "test")


def test_parameters_of_another_method_are_not_allowed():
    from dataclasses import dataclass, field

    from scripts.make_schemas import choices

    @dataclass(frozen=True)
    class First:
        density: float = field(default=0.2, metadata={"help": "kept share"})
        seed: int = field(default=0, metadata={"help": "seed"})

    @dataclass(frozen=True)
    class Second:
        seed: str = field(default="x", metadata={"help": "seed"})

    keys, rules = choices("method", {"first": First, "second": Second})
    schema = {"properties": {"method": True} | keys, "allOf": rules, "additionalProperties": False}

    def conforms(**record: Any) -> bool:
        import jsonschema

        return bool(jsonschema.Draft202012Validator(schema).is_valid(record))

    assert conforms(method="first", density=0.5, seed=3)
    assert conforms(method="second", seed="y")
    assert not conforms(method="first", density=0.5, seed="y")
    assert not conforms(method="first", density=0.5)
    assert not conforms(method="second", seed="y", density=0.5)
