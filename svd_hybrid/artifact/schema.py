"""The JSON Schemas that ship with the package, and validation against them."""

from __future__ import annotations

import json
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from svd_hybrid.errors import ArtifactError

PACKAGE = Path(__file__).resolve().parents[1]
SCHEMA_FOLDERS = (PACKAGE / "schemas", PACKAGE.parent / "schemas")
"""Inside the installed package, else (editable install, source tree) beside it."""


def schema_path(name: str) -> Path:
    """The file of a schema or of FORMAT.md.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for folder in SCHEMA_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name} is not installed with svd_hybrid")


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The schema `<name>.schema.json`, parsed."""
    schema: dict[str, Any] = json.loads(schema_path(f"{name}.schema.json").read_text("utf-8"))
    return schema


@cache
def _validator_class() -> Any:
    """Draft 2020-12, but an integer is written as one: 2.0 is no size and no index."""
    import jsonschema

    draft = jsonschema.Draft202012Validator
    strict = draft.TYPE_CHECKER.redefine("integer", lambda _, x: type(x) is int)
    extend: Any = jsonschema.validators.extend
    return extend(draft, type_checker=strict)


def validate(value: Any, name: str, where: str) -> None:
    """Check a document against a schema.

    Raises:
        ArtifactError: it does not conform; the message has the path of the first problem.
    """
    import jsonschema

    validator = _validator_class()(load_schema(name))
    first = islice(validator.iter_errors(value), 1)  # to look for more may take long
    problem = jsonschema.exceptions.best_match(first)
    if problem is not None:
        raise ArtifactError(f"{problem.json_path}: {problem.message[:240]}", where=where)
