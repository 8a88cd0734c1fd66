"""`svdh stats`: layer statistics of a family's tasks, collected from live models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svd_hybrid.cli.compress import resolve_tasks
from svd_hybrid.cli.options import WordsCommand
from svd_hybrid.cli.reporter import print_table
from svd_hybrid.console import (
    PATH,
    base_option,
    common_options,
    note,
    overwrite_option,
    print_json,
    progress_bar,
)
from svd_hybrid.errors import UsageError

if TYPE_CHECKING:
    from svd_hybrid.collect.record import StatisticsRecord
    from svd_hybrid.collect.run import CollectResult

SAMPLES = 128
FIELDS = ("text", "image", "label", "task")


@click.group(short_help="Collect layer statistics from live models, or show what files hold.")
def stats() -> None:
    """Layer statistics: the second moments of what goes into each weight, on real data.

    Collecting needs the extra: pip install 'svd-hybrid[eval]'.
    """


@stats.command(cls=WordsCommand, short_help="Collect the statistics of every task.")
@base_option
@click.option(
    "--checkpoint-dir", type=PATH, metavar="DIR", help="Folder with the tasks' checkpoints."
)
@click.option(
    "--tasks", multiple=True, metavar="NAME …", help="Tasks, looked up in --checkpoint-dir."
)
@click.option(
    "--task", "task_paths", multiple=True, metavar="NAME=PATH", help="A task with its checkpoint."
)
@click.option(
    "--data",
    "sources",
    multiple=True,
    required=True,
    metavar="[TASK=]SOURCE",
    help="Data of a task, or of all: a folder of images with a subfolder per class; a .npz, "
    ".parquet, .jsonl or .txt file; a dataset as NAME@SPLIT. SOURCE[10:20] takes a part.",
)
@click.option(
    "--output-dir", required=True, type=PATH, metavar="DIR", help="Folder for <task>.safetensors."
)
@click.option(
    "--kind",
    type=click.Choice(["moment", "gram"]),
    default="moment",
    show_default=True,
    help="Second moments of each input, for scale-svd and iso-iasad; or Gram matrices, for "
    "sparsegpt-ties and sparsegpt-dare.",
)
@click.option(
    "--model-path",
    "--model",
    "model",
    metavar="DIR|MODULE:FUNCTION",
    help="What the model is: a folder with config.json, or a function that returns it.  "
    "[default: the base's folder, else the task's]",
)
@click.option(
    "--weights-of",
    "ran",
    type=click.Choice(["task", "base"]),
    default="task",
    show_default=True,
    help="Whose weights run on a task's data: its own fine-tune's, or the base's.",
)
@click.option(
    "--samples",
    default=str(SAMPLES),
    show_default=True,
    metavar="N|all",
    help="Samples per task, evenly spaced over its data.",
)
@click.option(
    "--batch-size", type=int, default=16, show_default=True, help="Samples that run at a time."
)
@click.option(
    "--max-length",
    type=int,
    metavar="N",
    help="Tokens per sample.  [default: 512, or the model's positions if fewer]",
)
@click.option("--tokenizer", type=PATH, metavar="DIR", help="[default: the model's folder]")
@click.option(
    "--normalise",
    default="auto",
    show_default=True,
    metavar="HOW",
    help="Of images: auto (the model's preprocessor_config.json, else standardise), standardise "
    "(each by its own mean and deviation), none, or MEAN/DEVIATION.",
)
@click.option("--image-size", type=int, metavar="N", help="[default: the model's]")
@click.option("--image-channels", type=int, metavar="N", help="[default: the model's]")
@click.option("--text-field", default="text", show_default=True, metavar="NAME", help="Column.")
@click.option("--image-field", default="image", show_default=True, metavar="NAME", help="Column.")
@click.option("--label-field", default="label", show_default=True, metavar="NAME", help="Column.")
@click.option(
    "--task-field",
    default="task",
    show_default=True,
    metavar="NAME",
    help="Column that says which task a row belongs to, where there is one.",
)
@overwrite_option
@common_options
def collect(quiet: bool, as_json: bool, debug: bool, **values: Any) -> None:
    """Run every task's data through its model and store what its layers' inputs look like.

    Prints the folder, for svdh compress --statistics-dir. An interrupted run goes on where it
    stopped.

    Example: svdh stats collect --base-model-path base --checkpoint-dir ckpts --tasks cars dtd
    --data cars=images/cars --data dtd=images/dtd --output-dir stats
    """
    tasks = resolve_tasks(values["tasks"], values["task_paths"], values["checkpoint_dir"])
    from svd_hybrid.collect.run import CollectRequest, run_collect
    from svd_hybrid.data.source import sources_of
    from svd_hybrid.data.tables import Fields
    from svd_hybrid.models.inputs import InputSettings

    inputs = InputSettings(
        samples=_samples(values["samples"]),
        fields=Fields(**{name: values[f"{name}_field"] for name in FIELDS}),
        **{
            name: values[name]
            for name in (
                "batch_size",
                "max_length",
                "tokenizer",
                "normalise",
                "image_size",
                "image_channels",
            )
        },
    )
    request = CollectRequest(
        tasks,
        sources_of(values["sources"], list(tasks)),
        values["output_dir"],
        values["kind"],
        values["base"],
        values["model"],
        values["ran"],
        inputs,
        values["overwrite"],
    )
    with progress_bar(quiet or as_json) as progress:
        result = run_collect(request, progress)
    _report(result, quiet=quiet, as_json=as_json)


@stats.command(short_help="Show what statistics files hold.")
@click.option("--statistics-dir", required=True, type=PATH, metavar="DIR", help="The folder.")
@common_options
def inspect(statistics_dir: Path, quiet: bool, as_json: bool, debug: bool) -> None:
    """Show kind, data, counts and fingerprint of each task's statistics."""
    from svd_hybrid.collect.store import read_record
    from svd_hybrid.errors import StorageError
    from svd_hybrid.io.reader import open_checkpoint

    if not statistics_dir.is_dir():
        raise StorageError("folder does not exist", where=str(statistics_dir))
    found = {
        path.stem: read_record(open_checkpoint(path).path)
        for path in sorted(statistics_dir.glob("*.safetensors"))
    }
    if not found:
        raise StorageError(
            "folder holds no statistics", where=str(statistics_dir), fix="run svdh stats collect"
        )
    records = {task: record for task, record in found.items() if record is not None}
    for task in found.keys() - records.keys():
        note(f"{task}.safetensors has no record")
    if as_json:
        print_json({"tasks": {task: record.summary() for task, record in records.items()}})
        return
    _print_records(records, to_stdout=True)


def _samples(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(
            f"--samples {text!r} is no number", fix="write a number, or all"
        ) from error


def _report(result: CollectResult, *, quiet: bool, as_json: bool) -> None:
    for line in result.notes:
        note(line)
    if as_json:
        print_json(result.as_json())
        return
    if not quiet:
        _print_records(result.records, to_stdout=False)
    click.echo(result.folder)


def _print_records(records: Any, *, to_stdout: bool) -> None:
    print_table(
        "statistics",
        ("task", "kind", "weights of", "samples", "inputs per weight", "weights", "fingerprint"),
        [_row(task, record) for task, record in records.items()],
        to_stdout=to_stdout,
    )


def _row(task: str, record: StatisticsRecord) -> tuple[str, ...]:
    facts = record.summary()
    rows = sorted({min(facts["rows"]), max(facts["rows"])})
    return (
        task,
        record.kind,
        record.ran,
        f"{record.data['samples']:,}",
        " to ".join(f"{count:,}" for count in rows),
        f"{len(record.rows):,}",
        record.fingerprint[:12],
    )
