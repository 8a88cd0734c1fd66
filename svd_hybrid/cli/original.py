"""The original launcher: merge a family into an output folder, in one command.

`python scripts/run_svd_hybrid.py` and `python -m svd_hybrid.hydra_entry` end here. It is `svdh
compress` into the artifact directory (or into a temporary one) followed by `svdh reload`; there is
no merge of its own. The output folder appears whole or not at all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svd_hybrid.artifact.diagnostics import read_diagnostics
from svd_hybrid.artifact.jsonfile import readable_json
from svd_hybrid.artifact.layout import CLUSTERS, DIAGNOSTICS, MANIFEST, WEIGHTS
from svd_hybrid.cli.compress import APPEND_OPTIONS, build_request, compress, print_summary
from svd_hybrid.cli.options import WordsCommand
from svd_hybrid.compress.config import OPTIONAL_PATHS, CompressConfig, known_keys
from svd_hybrid.compress.config_file import read_config_file
from svd_hybrid.console import PATH, note, print_json, progress_bar
from svd_hybrid.errors import StorageError, UsageError, shorten
from svd_hybrid.faults import run_guarded
from svd_hybrid.methods import METHODS
from svd_hybrid.registry import did_you_mean

if TYPE_CHECKING:
    from svd_hybrid.compress.request import CompressRequest, CompressResult

ORIGINAL_PROFILE = "hybrid"
OUTPUT_DIR = Path("svd_hybrid_output")
ARTIFACT_DIR = Path("artifacts")
MERGED_MODEL = "merged_state_dict.pt"
OUTPUT_FILES = (MERGED_MODEL, WEIGHTS, DIAGNOSTICS, CLUSTERS)
LAUNCHER_KEYS = ("device", "store_artifacts")
IGNORED_KEYS = ("randomized_svd_threshold",)
"""Keys of the original's own configuration file that it never used either."""


@click.command(cls=WordsCommand)
@click.option(
    "--output-dir",
    type=PATH,
    metavar="DIR",
    help=f"The folder to make: {', '.join(OUTPUT_FILES)}.  [default: {OUTPUT_DIR}]",
)
@click.option(
    "--store-artifacts/--no-store-artifacts",
    default=None,
    help="Keep the artifact, from which svdh reload rebuilds every task.  [default: off]",
)
@click.option(
    "--artifact-dir",
    type=PATH,
    metavar="DIR",
    help="Where to keep it; inside, under the model's name, when DIR holds other things.  "
    f"[default: {ARTIFACT_DIR}]",
)
def original(
    overwrite: bool, quiet: bool, as_json: bool, debug: bool, device: str, **values: Any
) -> None:
    """Merge fine-tunes of one base, with the command line of the original SVD-Hybrid.

    Writes the merged model, the task weights and the diagnostics into a folder and prints it.

    Example: run_svd_hybrid.py --tasks Cars DTD EuroSAT --checkpoint-dir ckpts --base-model-path
    base.pt --output-dir out
    """
    record, where = None, ""
    if values["config_file"]:
        record, where = read_config_file(values["config_file"]), str(values["config_file"])
    values["device"] = device
    run(values, record, where, overwrite=overwrite, quiet=quiet, as_json=as_json)


original.params += [
    option
    for option in compress.params
    if option.name not in {*(own.name for own in original.params), *APPEND_OPTIONS}
]


def run(
    values: dict[str, Any],
    record: Mapping[str, Any] | None = None,
    where: str = "",
    *,
    overwrite: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Merge into an output folder, and keep the artifact if asked for.

    Args:
        values: the command line's, by parameter name; they win.
        record: a configuration, in our spelling.
        where: what to call that configuration in errors.
        overwrite: replace an earlier output, and an earlier artifact.
        quiet: nothing but errors and notes on stderr.
        as_json: print one JSON document instead of the folder.

    Raises:
        SvdhError: as `build_request`, `run_compress` and `run_reload` raise it.
    """
    config = dict(record or {})
    for method in (config.get("method"), values.get("method")):
        _refuse_unknown_method(method)
    _check_keys(config, where)
    own = {key: config.pop(key, None) for key in (*LAUNCHER_KEYS, *IGNORED_KEYS)}
    if "cuda" in (values.get("device"), own["device"]):
        note("merging runs on the CPU: device cuda changes nothing")
    output_dir = Path(values["output_dir"] or config.get("output_dir") or OUTPUT_DIR)
    store = _flag(own["store_artifacts"], where)
    if values["store_artifacts"] is not None:
        store = values["store_artifacts"]
    if values["artifact_dir"] and not store:
        note("--artifact-dir has no effect without --store-artifacts")
    config.setdefault("profile", ORIGINAL_PROFILE)
    if not config.get("artifact_dir"):
        config["artifact_dir"] = str(ARTIFACT_DIR)
    request = build_request(values, overwrite, config, where)
    kept = None
    if store:
        if request.artifact_dir.absolute() == output_dir.absolute():
            raise UsageError(
                "--artifact-dir and --output-dir are the same folder", fix="name two folders"
            )
        kept = _artifact_place(request.artifact_dir, request.config.model or output_dir.name)
    result = _merge(request, output_dir, kept, quiet or as_json)
    for line in result.notes:
        note(line)
    if as_json:
        places = {
            "output_dir": str(output_dir),
            "artifact_dir": None if kept is None else str(kept),
        }
        print_json(result.as_json() | places)
        return
    if not quiet:
        print_summary(result)
    if kept is not None:
        note(f"artifact kept in {kept}")
    click.echo(output_dir)


def _merge(
    request: CompressRequest, output_dir: Path, kept: Path | None, quiet: bool
) -> CompressResult:
    """Compress and reload into a staged output folder, and put it in place."""
    from svd_hybrid.compress.run import run_compress
    from svd_hybrid.io.new_file import copy_file, delete_tree, write_file
    from svd_hybrid.io.outputs import OutputKind, protect_inputs
    from svd_hybrid.io.staging import staged_directory
    from svd_hybrid.reload.run import run_reload

    replaces = _may_replace(output_dir, request.overwrite, kept)
    extras = [path for path in (request.mask_dir, request.performance_file) if path]
    protect_inputs(output_dir, [request.base, *request.tasks.values(), *extras])
    _make_parent(output_dir)
    kept_inside = "" if kept is None else _relative(kept, output_dir)
    files = (*OUTPUT_FILES, f"{kept_inside}/") if kept_inside else OUTPUT_FILES
    kind = OutputKind("output of this command", files, OUTPUT_FILES)
    with progress_bar(quiet) as progress, staged_directory(output_dir, replaces, kind) as staging:
        artifact_dir = staging / "artifact" if kept is None else _inside(kept, output_dir, staging)
        _make_parent(artifact_dir)
        result = run_compress(replace(request, artifact_dir=artifact_dir), progress)
        run_reload(artifact_dir, request.base, staging / MERGED_MODEL, progress=progress)
        for name in (WEIGHTS, DIAGNOSTICS, CLUSTERS):
            if (artifact_dir / name).is_file() and name != DIAGNOSTICS:
                copy_file(artifact_dir / name, staging / name)
        write_file(staging / DIAGNOSTICS, readable_json(read_diagnostics(artifact_dir)))
        if kept is None:
            delete_tree(artifact_dir)
    return result


def _check_keys(config: Mapping[str, Any], where: str) -> None:
    """Refuse keys that mean nothing, with the closest that do."""
    chosen = CompressConfig()
    known = {
        *known_keys(config.get("method", chosen.method), config.get("profile", ORIGINAL_PROFILE)),
        *("tasks", *OPTIONAL_PATHS, *LAUNCHER_KEYS, *IGNORED_KEYS),
    }
    for key in config:
        if key not in known:
            raise UsageError(f"unknown key {key!r}", where=where, fix=did_you_mean(key, known))


def _refuse_unknown_method(method: Any) -> None:
    if method is not None and method not in METHODS:
        raise UsageError(
            f"there is no merge method {method!r} here", fix="use one of: " + ", ".join(METHODS)
        )


def _flag(value: Any, where: str) -> bool:
    if value not in (None, True, False):
        raise UsageError(f"store_artifacts is {value!r}, must be true or false", where=where)
    return bool(value)


def _may_replace(output_dir: Path, overwrite: bool, kept: Path | None) -> bool:
    """Whether something stands at the output's place that this run may replace.

    Only an empty folder or, with `overwrite`, an earlier output is ever replaced: never a folder
    with other things in it.

    Raises:
        StorageError: something else stands there.
    """
    if not output_dir.exists():
        return False
    if not output_dir.is_dir():
        raise StorageError("output folder is a file", where=str(output_dir))
    artifact = None if kept is None or not (kept / MANIFEST).is_file() else kept.absolute()
    foreign = [
        entry.name
        for entry in sorted(output_dir.iterdir())
        if entry.name not in OUTPUT_FILES and entry.absolute() != artifact
    ]
    if foreign:
        raise StorageError(
            f"output folder holds other things: {shorten(foreign)}",
            where=str(output_dir),
            fix="choose another --output-dir; nothing in this one is touched",
        )
    if not overwrite and any(output_dir.iterdir()):
        raise StorageError(
            "output exists",
            where=str(output_dir),
            fix="choose another --output-dir, or pass --overwrite",
        )
    return True


def _artifact_place(folder: Path, label: str) -> Path:
    """Where the artifact goes: `folder` itself, or inside it when it holds other things.

    Raises:
        StorageError: something that is no artifact is in the way.
    """
    if not folder.exists() or (folder / MANIFEST).is_file():
        return folder
    inside = folder / (re.sub(r"[^\w.-]+", "-", label).strip(".-") or "merged")
    if inside.exists() and not (inside / MANIFEST).is_file():
        raise StorageError(
            "what stands at the artifact's place is no artifact",
            where=str(inside),
            fix="choose another --artifact-dir; nothing there is touched",
        )
    note(f"{folder} is there already and is no artifact, so the artifact goes to {inside}")
    return inside


def _inside(kept: Path, output_dir: Path, staging: Path) -> Path:
    """Where to write an artifact now: beside the staged files when it belongs into the output."""
    relative = _relative(kept, output_dir)
    return staging / relative if relative else kept


def _relative(kept: Path, output_dir: Path) -> str:
    """The artifact's place inside the output; empty when it is elsewhere."""
    place, output = kept.absolute(), output_dir.absolute()
    return place.relative_to(output).as_posix() if place.is_relative_to(output) else ""


def _make_parent(path: Path) -> None:
    from svd_hybrid.io.new_file import make_folders

    try:
        make_folders(path.absolute().parent)
    except OSError as error:
        raise StorageError(f"cannot make the folder: {error.strerror}", where=str(path)) from error


def main(argv: list[str] | None = None, prog_name: str = "python scripts/run_svd_hybrid.py") -> int:
    """Run the command; returns its exit code."""
    args = sys.argv[1:] if argv is None else argv
    return run_guarded(
        lambda: original.main(args, prog_name=prog_name, standalone_mode=False), args
    )
