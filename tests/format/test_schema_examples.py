"""`valid/<schema>/*.json` conform, `invalid/<schema>/*.json` fail where they were made to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from svd_hybrid.artifact.parsing import manifest_from_json
from svd_hybrid.artifact.schema import load_schema, schema_path, validate
from svd_hybrid.errors import ArtifactError

HERE = Path(__file__).parent
SCHEMAS = sorted(
    file.name.removesuffix(".schema.json")
    for file in schema_path("FORMAT.md").parent.glob("*.schema.json")
)
VALID = sorted(path.relative_to(HERE / "valid") for path in HERE.glob("valid/*/*.json"))
INVALID = sorted(path.relative_to(HERE / "invalid") for path in HERE.glob("invalid/*/*.json"))
FAULTS: dict[str, str] = json.loads((HERE / "invalid" / "faults.json").read_text())
"""Where each invalid example breaks its schema, as a JSON path."""


def load(kind: str, path: Path) -> Any:
    return json.loads((HERE / kind / path).read_text(encoding="utf-8"))


def test_every_schema_has_examples_of_both_kinds():
    assert {path.parent.name for path in VALID} == set(SCHEMAS)
    assert {path.parent.name for path in INVALID} == set(SCHEMAS)
    assert {path.as_posix() for path in INVALID} == set(FAULTS)


@pytest.mark.parametrize("path", VALID, ids=Path.as_posix)
def test_valid(path):
    record = load("valid", path)
    validate(record, path.parent.name, str(path))
    jsonschema.Draft202012Validator(load_schema(path.parent.name)).validate(record)
    if path.parent.name == "manifest-v1":
        assert json.loads(manifest_from_json(record, str(path)).to_bytes()) == record


@pytest.mark.parametrize("path", INVALID, ids=Path.as_posix)
def test_invalid(path):
    with pytest.raises(ArtifactError) as caught:
        validate(load("invalid", path), path.parent.name, str(path))
    assert caught.value.what.startswith(f"{FAULTS[path.as_posix()]}: ")
