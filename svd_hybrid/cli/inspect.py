"""`svdh inspect`: what an artifact holds, what it costs and what was lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svd_hybrid.cli.reporter import number, print_table
from svd_hybrid.console import artifact_option, common_options, print_json, size

if TYPE_CHECKING:
    from svd_hybrid.artifact.manifest import Manifest
    from svd_hybrid.artifact.merges import Merge


ERROR_PARTS = ("relative_error", "shrink", "noise")


@click.command(short_help="Show what an artifact holds.")
@artifact_option
@click.option("--tensors", "show_tensors", is_flag=True, help="One row per tensor.")
@common_options
def inspect(
    artifact_dir: Path, show_tensors: bool, quiet: bool, as_json: bool, debug: bool
) -> None:
    """Show tasks, merges, sizes and recorded errors; nothing is decoded or checked."""
    from svd_hybrid.artifact.diagnostics import read_diagnostics
    from svd_hybrid.artifact.files import directory_bytes, read_manifest
    from svd_hybrid.artifact.stable import read_stable

    def read() -> dict[str, Any]:
        manifest = read_manifest(artifact_dir)
        diagnostics = read_diagnostics(artifact_dir, manifest)
        return _facts(manifest, directory_bytes(artifact_dir), diagnostics)

    facts = read_stable(artifact_dir, read)
    if as_json:
        print_json(facts)
        return
    _print_facts(facts)
    if show_tensors:
        _print_tensors(facts["tensors"])


def _facts(manifest: Manifest, total: int, diagnostics: dict[str, Any]) -> dict[str, Any]:
    numbers = manifest.scalars * (len(manifest.tasks) if manifest.recovers_tasks else 1)
    errors = diagnostics.get("tasks", {})
    measured = diagnostics.get("per_parameter", {})
    return {
        "artifact_id": manifest.artifact_id,
        "profile": manifest.profile,
        "tasks": {
            task: {part: errors.get(task, {}).get(part) for part in ERROR_PARTS}
            for task in manifest.tasks
        },
        "merges": {name: _merge_facts(manifest, merge) for name, merge in manifest.merges.items()},
        "default_merge": manifest.default_merge,
        "parameters": manifest.scalars,
        "bytes_artifact": total,
        "bpp_all": 8 * total / numbers if numbers else None,
        "ratio_src": diagnostics.get("summary", {}).get("ratio_src"),
        "relative_error": diagnostics.get("summary", {}).get("relative_error"),
        "files": {file.path: file.bytes for file in manifest.files},
        "tensors": {
            tensor.name: {
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "alias": tensor.alias,
                "parts": sorted(tensor.parts),
                "k": measured.get(tensor.name, {}).get("k"),
                "mean_relative_error": measured.get(tensor.name, {}).get("mean_relative_error"),
            }
            for tensor in manifest.tensors
        },
    }


def _merge_facts(manifest: Manifest, merge: Merge) -> dict[str, Any]:
    """A merge for people: single tasks of a weighting are the stored ones."""
    weights = getattr(merge, "weights", ())  # a stored merge has none
    return {
        "kind": merge.to_json()["kind"],
        "method": merge.method,
        "scaling": merge.scaling,
        "single_tasks": getattr(merge, "tasks", manifest.holds_tasks),
        "weights": dict(zip(manifest.tasks, weights, strict=False)),
        "parameters": dict(merge.parameters),
    }


def _print_facts(facts: dict[str, Any]) -> None:
    print_table(
        f"artifact sha256:{facts['artifact_id']}  profile {facts['profile']}",
        ("tensors", "parameters", "size", "bits per parameter", "ratio", "relative error"),
        [
            (
                str(len(facts["tensors"])),
                f"{facts['parameters']:,}",
                size(facts["bytes_artifact"]),
                number(facts["bpp_all"], ".3f"),
                number(facts["ratio_src"], ".2f"),
                number(facts["relative_error"], ".3e"),
            )
        ],
        to_stdout=True,
    )
    merges = facts["merges"]
    rows = [
        (
            task,
            *(number(error[part], ".3e") for part in ERROR_PARTS),
            *(number(merge["weights"][task]) for merge in merges.values() if merge["weights"]),
        )
        for task, error in facts["tasks"].items()
    ]
    titles = [f"weight in {name}" for name, merge in merges.items() if merge["weights"]]
    header = ("task", "relative error", "lost signal", "noise", *titles)
    print_table("tasks", header, rows, to_stdout=True)
    print_table(
        "merges",
        ("name", "method", "scaling", "stored as", "single tasks", "default"),
        [
            (
                name,
                merge["method"],
                number(merge["scaling"]),
                {"linear": "weights", "stored": "numbers"}[merge["kind"]],
                "yes" if merge["single_tasks"] else "no",
                "yes" if name == facts["default_merge"] else "",
            )
            for name, merge in merges.items()
        ],
        to_stdout=True,
    )


def _print_tensors(tensors: dict[str, Any]) -> None:
    rows = [
        (
            name,
            "x".join(map(str, tensor["shape"])) or "scalar",
            tensor["dtype"],
            number(tensor["k"], "d"),
            number(tensor["mean_relative_error"], ".2e"),
            f"= {tensor['alias']}" if tensor["alias"] else " ".join(tensor["parts"]) or "–",
        )
        for name, tensor in tensors.items()
    ]
    header = ("tensor", "shape", "dtype", "k", "relative error", "stored")
    print_table("tensors", header, rows, to_stdout=True)
