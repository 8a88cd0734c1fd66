"""`svdh compress`: a family of checkpoints → an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svd_hybrid.artifact.merges import LinearMerge
from svd_hybrid.cli.options import WordsCommand, config_options, given
from svd_hybrid.cli.recipe import from_recipe
from svd_hybrid.cli.reporter import number, print_table
from svd_hybrid.compress.config import MOST_WORKERS, OPTIONAL_PATHS, CompressConfig, resolve_config
from svd_hybrid.compress.config_file import read_config_file
from svd_hybrid.compress.recipe.record import METHOD_KEY
from svd_hybrid.console import (
    PATH,
    base_option,
    common_options,
    note,
    overwrite_option,
    print_json,
    progress_bar,
    size,
)
from svd_hybrid.errors import UsageError
from svd_hybrid.methods import METHODS

if TYPE_CHECKING:
    from svd_hybrid.compress.request import CompressRequest, CompressResult

APPEND_OPTIONS = ("append", "replace")
TASK_OPTIONS = ("tasks", "task_paths", "checkpoint_dir")


@click.command(cls=WordsCommand, short_help="Compress fine-tunes of one base into an artifact.")
@base_option
@click.option(
    "--checkpoint-dir", type=PATH, metavar="DIR", help="Folder with the tasks' checkpoints."
)
@click.option(
    "--tasks",
    multiple=True,
    metavar="NAME …",
    help="Tasks, looked up in --checkpoint-dir; their order is kept.",
)
@click.option(
    "--task", "task_paths", multiple=True, metavar="NAME=PATH", help="A task with its checkpoint."
)
@click.option("--artifact-dir", type=PATH, metavar="DIR", help="The directory to make.")
@click.option("--mask-dir", type=PATH, metavar="DIR", help="Per-task masks, or one TALL_mask file.")
@click.option(
    "--performance-file", type=PATH, metavar="FILE", help="JSON object: task → accuracy in [0, 1]."
)
@click.option(
    "--statistics-dir",
    type=PATH,
    metavar="DIR",
    help="Layer statistics, <task>.safetensors each: for methods that read them, and for profile "
    "auto, which rounds with regard to Gram matrices.",
)
@click.option(
    "--from-artifact",
    type=PATH,
    metavar="DIR",
    help="An artifact of this base: its content is kept beside the new merge, and without --tasks "
    "its fine-tunes are what is merged.",
)
@click.option(
    "--append",
    is_flag=True,
    help="Add the tasks to those of --from-artifact, which stay bit for bit as they are; no merge "
    "is made. They are stored as the artifact's own tasks, or as --profile says.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="With --append: a task takes the place of the stored one of its name.",
)
@click.option(
    "--config",
    "config_file",
    type=PATH,
    metavar="FILE",
    help="YAML or JSON with any of these keys, or a mergekit recipe; the command line wins.",
)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any configuration key."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    help="Where to compute. Encoding runs on the CPU, so that equal inputs give equal bytes; "
    "cuda is accepted and says so.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    default=1,
    show_default=True,
    help="Processes that encode tensors side by side; each takes about a second to start and the "
    "memory of three tensors of all tasks. They change no bit of the artifact.",
)
@config_options
@overwrite_option
@common_options
def compress(
    quiet: bool, as_json: bool, debug: bool, overwrite: bool, device: str, **values: Any
) -> None:
    """Compress fine-tunes of one base into an artifact directory.

    Prints the directory; a summary goes to stderr.

    Example: svdh compress --base-model-path base --checkpoint-dir ckpts --tasks cars dtd eurosat
    --artifact-dir art
    """
    append, replace = (values.pop(option) for option in APPEND_OPTIONS)
    if device == "cuda":
        note("encoding runs on the CPU: --device cuda changes nothing")
    if append or replace:
        result = _append(values, append, replace, overwrite, quiet=quiet or as_json)
    else:
        request = build_request(values, overwrite)
        from svd_hybrid.compress.run import run_compress

        with progress_bar(quiet or as_json) as progress:
            result = run_compress(request, progress)
    report(result, quiet=quiet, as_json=as_json)


def _append(
    values: dict[str, Any], append: bool, replace: bool, overwrite: bool, *, quiet: bool
) -> CompressResult:
    """Run `--append`.

    Raises:
        UsageError: something needed is missing, or has no meaning here.
    """
    from svd_hybrid.artifact.files import read_manifest
    from svd_hybrid.artifact.stable import read_stable
    from svd_hybrid.compress.append.config import append_config
    from svd_hybrid.compress.append.run import AppendRequest, run_append

    if not append:
        raise UsageError("--replace without --append", fix="pass both, or neither")
    for option in ("mask_dir", "performance_file", "statistics_dir"):
        if values.get(option):
            flag = f"--{option.replace('_', '-')}"
            raise UsageError(f"{flag} has no meaning with --append", fix=f"drop {flag}")
    if values["workers"] != 1:
        raise UsageError("--workers has no meaning with --append", fix="drop --workers")
    file_path = values.get("config_file")
    from_file = dict(read_config_file(file_path)) if file_path else {}
    where = str(file_path) if file_path else "command line"
    paths = _taken_paths(from_file, where)
    listed = _task_list(from_file.pop("tasks", []), where)
    needed = {
        "--base-model-path": values["base"] or paths.get("base_model_path"),
        "--artifact-dir": values["artifact_dir"] or paths.get("artifact_dir"),
        "--from-artifact": values["from_artifact"] or paths.get("from_artifact"),
    }
    for option, path in needed.items():
        if path is None:
            raise UsageError(f"--append needs {option}", fix=f"pass {option} PATH")
    base, artifact_dir, artifact = (path for path in needed.values() if path is not None)
    names = list(values["tasks"]) or listed
    checkpoint_dir = values["checkpoint_dir"] or paths.get("checkpoint_dir")
    tasks = resolve_tasks(names, values["task_paths"], checkpoint_dir)
    wanted = from_file | _assigned(values) | given(values)
    manifest = read_stable(artifact, lambda: read_manifest(artifact))
    config = append_config(wanted, where, artifact, manifest)
    request = AppendRequest(base, tasks, artifact, artifact_dir, config, replace, overwrite)
    with progress_bar(quiet) as progress:
        return run_append(request, progress)


def build_request(
    values: dict[str, Any],
    overwrite: bool,
    record: Mapping[str, Any] | None = None,
    where: str = "",
) -> CompressRequest:
    """The run that command line and configuration file ask for together.

    Args:
        values: the command line's, by parameter name.
        overwrite: replace an existing artifact.
        record: a configuration already read, in our spelling, instead of `values["config_file"]`.
        where: what to call that configuration in errors.

    Raises:
        UsageError: something needed is missing, or a key is unknown.
    """
    from svd_hybrid.compress.request import CompressRequest
    from svd_hybrid.compress.task_weights import weights_by_task

    file_path = values.get("config_file")
    if record is None and file_path:
        record, where = read_config_file(file_path), str(file_path)
    if record is not None and METHOD_KEY in record:
        named = values["tasks"] or values["task_paths"]
        replaced = resolve_tasks(*(values[key] for key in TASK_OPTIONS)) if named else {}
        record, values = from_recipe(record, where, values, replaced)
    from_file = dict(record or {})
    paths = _taken_paths(from_file, where)
    listed = _task_list(from_file.pop("tasks", []), where)
    base, artifact_dir, from_artifact = (
        values.get(option) or paths.get(key)
        for option, key in (
            ("base", "base_model_path"),
            ("artifact_dir", "artifact_dir"),
            ("from_artifact", "from_artifact"),
        )
    )
    if base is None:
        raise UsageError("no base given", fix="pass --base-model-path PATH")
    if artifact_dir is None:
        raise UsageError("no artifact directory given", fix="pass --artifact-dir DIR")
    names = list(values["tasks"]) or listed
    tasks: dict[str, Path] = {}
    if names or values["task_paths"] or from_artifact is None:
        checkpoint_dir = values["checkpoint_dir"] or paths.get("checkpoint_dir")
        tasks = resolve_tasks(names, values["task_paths"], checkpoint_dir)
    for given_weights, source in ((from_file, where), (values, "command line")):
        weights = given_weights.get("weights")
        if isinstance(weights, str) and "=" in weights:
            weights = dict(_assignment(entry) for entry in weights.split(","))
        if isinstance(weights, Mapping):
            given_weights["weights"] = weights_by_task(weights, list(tasks), from_artifact, source)
    config = merged_config(from_file, where, values, adds_merge=from_artifact is not None)
    return CompressRequest(
        base,
        tasks,
        artifact_dir,
        config,
        **{
            key: values.get(key) or paths.get(key)
            for key in ("mask_dir", "performance_file", "statistics_dir")
        },
        from_artifact=from_artifact,
        overwrite=overwrite,
        workers=values.get("workers") or 1,
    )


def merged_config(
    from_file: dict[str, Any], where: str, values: dict[str, Any], *, adds_merge: bool = False
) -> CompressConfig:
    """Defaults < file < `--set` < options; an added merge is named after its method by default."""
    if from_file:
        resolve_config(from_file, where)  # its own mistakes are reported against the file
    wanted = from_file | _assigned(values) | given(values)
    if adds_merge and "method" in wanted:
        wanted.setdefault("merge_name", METHODS[wanted["method"]].name)
    return resolve_config(wanted, "command line")


def _assigned(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `--set` says, by key."""
    pairs = (_assignment(text) for text in values.get("assignments", ()))
    return {key.replace("-", "_"): value for key, value in pairs}


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} has no '='", fix="write --set KEY=VALUE")
    return key.strip(), value.strip()


def _taken_paths(record: dict[str, Any], where: str) -> dict[str, Path]:
    """The paths of a configuration, taken out of it; empty ones count as not given.

    Raises:
        UsageError: one is not text, even where the command line names another.
    """
    found = {key: record.pop(key) for key in OPTIONAL_PATHS if key in record}
    for key, value in found.items():
        if not isinstance(value, str | Path | None):
            raise UsageError(
                f"key {key!r} is {value!r:.80}, must be a path", where=where, fix="write it as text"
            )
    return {key: Path(value) for key, value in found.items() if value}


def _task_list(listed: Any, where: str) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(task, str) for task in listed):
        raise UsageError(
            "key 'tasks' is not a list of names", where=where, fix="write tasks: [cars, dtd]"
        )
    return listed


def resolve_tasks(
    names: Sequence[str], task_paths: Sequence[str], checkpoint_dir: Path | None
) -> dict[str, Path]:
    """Checkpoint by task: looked up by name, then those given as NAME=PATH.

    Raises:
        UsageError: no task, a name twice, names without a folder, or a malformed NAME=PATH.
        FamilyError, StorageError: a task has no checkpoint.
    """
    from svd_hybrid.io.lookup import find_task_checkpoint

    tasks: dict[str, Path] = {}

    def add(name: str, path: Path) -> None:
        if name in tasks:
            raise UsageError(f"task {name!r} is given twice", fix="name every task once")
        tasks[name] = path

    if names and checkpoint_dir is None:
        raise UsageError("--tasks needs --checkpoint-dir", fix="pass --checkpoint-dir DIR")
    for name in names:
        assert checkpoint_dir is not None  # checked above
        add(name, find_task_checkpoint(checkpoint_dir, name))
    for text in task_paths:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"--task {text!r} is not NAME=PATH", fix="write --task cars=cars.pt")
        add(name, Path(path))
    if not tasks:
        raise UsageError("no task given", fix="pass --tasks NAME … or --task NAME=PATH")
    return tasks


def report(result: CompressResult, *, quiet: bool, as_json: bool) -> None:
    """Notes and summary on stderr, the directory (or one JSON document) on stdout."""
    for line in result.notes:
        note(line)
    if as_json:
        print_json(result.as_json())
        return
    if not quiet:
        print_summary(result)
    click.echo(result.artifact_dir)


def print_summary(result: CompressResult) -> None:
    """Sizes, ratios, weights and errors on stderr."""
    facts = result.bytes
    rows = [
        (task, number(result.weights[task]), number(result.task_errors[task], ".3e"))
        for task in result.weights
    ]
    rows.append(("all", "", number(result.relative_error, ".3e")))
    print_table("tasks", ("task", "weight", "relative error"), rows)
    made = result.manifest.merge(None)
    print_table(
        "merge",
        ("name", "method", "scaling", "stored as", "relative error"),
        [
            (
                result.manifest.default_merge,
                made.method,
                number(made.scaling),
                "weights of the tasks" if isinstance(made, LinearMerge) else "numbers of its own",
                number(result.merge_error, ".1e"),
            )
        ],
    )
    print_table(
        "bytes",
        ("artifact", "replaces", "ratio", "vs fp32", "vs fp16", "bits per parameter", "CPU s"),
        [
            (
                size(facts["bytes_artifact"]),
                size(facts["bytes_replaced"]),
                number(facts["ratio_src"], ".2f"),
                number(facts["ratio_fp32"], ".2f"),
                number(facts["ratio_fp16"], ".2f"),
                number(facts["bpp_all"], ".2f"),
                number(result.cpu_s, ".1f"),
            )
        ],
    )
