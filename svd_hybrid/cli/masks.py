"""`svdh masks`: TALL masks of a family as files, and what masks select."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from svd_hybrid.cli.compress import resolve_tasks
from svd_hybrid.cli.options import WordsCommand
from svd_hybrid.cli.reporter import number, print_table
from svd_hybrid.compress.values import coerce
from svd_hybrid.console import (
    PATH,
    base_option,
    common_options,
    overwrite_option,
    print_json,
    progress_bar,
)
from svd_hybrid.errors import UsageError

if TYPE_CHECKING:
    from svd_hybrid.compress.masks.build import MaskFiles
    from svd_hybrid.compress.masks.coverage import MaskFacts, TensorFacts

GRID = "0.2,0.3,0.4,0.5,0.6"


@click.group(short_help="Build TALL masks of a family, or measure masks.")
def masks() -> None:
    """Masks say which scalars of the model a task needs, a bit for each."""


@masks.command(cls=WordsCommand, short_help="Build the TALL masks of a family.")
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
@click.option("--output", required=True, type=PATH, metavar="DIR", help="The folder to make.")
@click.option(
    "--lambdas",
    default=GRID,
    show_default=True,
    metavar="L,L,…",
    help="Thresholds, a file for each; smaller is denser.",
)
@click.option(
    "--vector",
    type=click.Choice(["sum", "ties"]),
    default="sum",
    show_default=True,
    help="Multi-task vector the masks are taken from: sum of the deltas, or TIES.",
)
@overwrite_option
@common_options
def build(
    base: Path | None,
    checkpoint_dir: Path | None,
    tasks: tuple[str, ...],
    task_paths: tuple[str, ...],
    output: Path,
    lambdas: str,
    vector: str,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Write TALL_mask_<lambda>.safetensors for each threshold; svdh compress --mask-dir FILE.

    Prints the files; their coverage goes to stderr.

    Example: svdh masks build --base-model-path base --checkpoint-dir ckpts --tasks cars dtd
    --output masks --lambdas 0.4
    """
    checkpoints = resolve_tasks(tasks, task_paths, checkpoint_dir)
    values = coerce("lambdas", lambdas, tuple[float, ...], "command line")
    from svd_hybrid.compress.masks.build import write_masks

    with progress_bar(quiet or as_json) as progress:
        made = write_masks(
            _given(base),
            checkpoints,
            output,
            values,
            vector=vector,
            overwrite=overwrite,
            progress=progress,
        )
    _report_build(made, quiet=quiet, as_json=as_json)


@masks.command(cls=WordsCommand, short_help="Show what masks select.")
@click.option(
    "--mask-dir", required=True, type=PATH, metavar="PATH", help="Mask folder, or one packed file."
)
@base_option
@click.option("--tasks", multiple=True, required=True, metavar="NAME …", help="Whose masks.")
@click.option("--tensors", "show_tensors", is_flag=True, help="One row per tensor.")
@common_options
def inspect(
    mask_dir: Path,
    base: Path | None,
    tasks: tuple[str, ...],
    show_tensors: bool,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Show the share of scalars each task's mask selects, and how many tasks share a scalar."""
    if len(set(tasks)) < len(tasks):
        raise UsageError("a task is named twice", fix="name every task once")
    checkpoint = _given(base)
    from svd_hybrid.compress.masks.coverage import mask_facts
    from svd_hybrid.io.reader import open_checkpoint

    facts = mask_facts(mask_dir, tasks, open_checkpoint(checkpoint).infos)
    if as_json:
        print_json(facts.as_json(tensors=show_tensors))
        return
    _print_facts(facts)
    if show_tensors:
        header = ("tensor", "scalars", *tasks, *_shares(len(tasks)))
        rows = [(name, *_row(tensor)) for name, tensor in facts.tensors.items()]
        print_table("tensors", header, rows, to_stdout=True)


def _given(base: Path | None) -> Path:
    if base is None:
        raise UsageError("no base given", fix="pass --base-model-path PATH")
    return base


def _report_build(made: MaskFiles, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        files = {label: str(path) for label, path in made.files.items()}
        print_json({"files": files, "coverage": made.coverage})
        return
    if not quiet:
        rows = [
            (label, *(number(share, ".2%") for share in shares.values()))
            for label, shares in made.coverage.items()
        ]
        header = ("lambda", *next(iter(made.coverage.values())))
        print_table("selected scalars", header, rows)
    for path in made.files.values():
        click.echo(path)


def _print_facts(facts: MaskFacts) -> None:
    total = facts.total
    rows = [
        (task, f"{count:,}", f"{total.scalars:,}", number(share, ".2%"))
        for task, count, share in zip(facts.tasks, total.selected, total.coverage, strict=True)
    ]
    header = ("task", "selected", "of scalars", "coverage")
    print_table(f"masks of {len(facts.tensors)} tensors", header, rows, to_stdout=True)
    shares = [
        (str(tasks), f"{count:,}", number(count / total.scalars if total.scalars else 0.0, ".2%"))
        for tasks, count in enumerate(total.shared)
    ]
    print_table("sharing", ("tasks", "scalars", "share"), shares, to_stdout=True)


def _shares(tasks: int) -> list[str]:
    return [f"by {count}" for count in range(tasks + 1)]


def _row(tensor: TensorFacts) -> list[str]:
    shared = (count / tensor.scalars if tensor.scalars else 0.0 for count in tensor.shared)
    return [f"{tensor.scalars:,}", *(number(x, ".1%") for x in (*tensor.coverage, *shared))]
