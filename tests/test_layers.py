"""The layer rule of docs/architecture.md, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "svd_hybrid"
LAYERS = [
    {"errors", "registry", "patterns", "_callable", "_lazy", "console", "frames"}
    | {"faults", "signals", "system_errors", "consent", "limits", "strict_json"},
    {"numerics"},
    {"codec"},
    {"delta"},
    {"io"},
    {"artifact"},
    {"reload"},
    {"methods"},
    {"data"},
    {"models"},
    {"collect"},
    {"compress"},
    {"legacy", "demo", "export"},
    {"cache"},
    {"evaluation"},
    {"comparison"},
    {"cli", "hydra_entry", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
METHODS_MAY_IMPORT = {"numerics", "delta", "registry", "patterns", "errors", "_lazy", "methods"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def imported_layers(path: Path) -> set[str]:
    inside = (name.split(".") for name in imported(path) if name.startswith("svd_hybrid."))
    return {parts[1] for parts in inside}


def test_every_module_belongs_to_a_layer():
    assert {layer_of(path) for path in modules()} <= set(LEVEL)


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    upward = {name for name in imported_layers(path) if LEVEL[name] > LEVEL[layer_of(path)]}
    assert not upward, f"{path} imports upwards: {upward}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda p: p.name)
def test_methods_are_pure(path):
    assert imported_layers(path) <= METHODS_MAY_IMPORT


def test_reload_needs_nothing_of_compression():
    seen: set[str] = set()
    todo = [*(PACKAGE / "reload").glob("*.py"), PACKAGE.parent / "load_and_merge.py"]
    while todo:
        path = todo.pop()
        for name in imported(path):
            assert not name.startswith("sklearn"), f"{path} imports {name}"
            if name.startswith("svd_hybrid.") and name not in seen:
                seen.add(name)
                stem = PACKAGE.parent / Path(*name.split("."))
                candidates = (stem.with_suffix(".py"), stem / "__init__.py")
                todo += [file for file in candidates if file.is_file()]
    for forbidden in ("methods", "compress", "cli"):
        assert not any(name.split(".")[1] == forbidden for name in seen)
