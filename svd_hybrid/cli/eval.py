"""`svdh eval`: scores of base, fine-tunes, and what an artifact gives back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svd_hybrid.cli.evaluating import (
    evaluator_options,
    family_options,
    opened_cache,
    resolve,
    scored_names,
)
from svd_hybrid.cli.options import WordsCommand
from svd_hybrid.cli.reporter import print_table
from svd_hybrid.console import PATH, common_options, note, print_json, progress_bar

if TYPE_CHECKING:
    from svd_hybrid.evaluation.result import EvalResult
    from svd_hybrid.evaluation.subjects import Kind

KINDS: tuple[Kind, ...] = ("base", "fine-tuned", "recovered", "merge", "weights")


@click.command("eval", cls=WordsCommand, short_help="Score base, fine-tunes and merges.")
@click.option("--artifact-dir", type=PATH, metavar="DIR", help="Score what this gives back.")
@family_options
@click.option("--merge", "merges", multiple=True, metavar="NAME", help="Of the merges, this one.")
@click.option(
    "--weights",
    "weights_file",
    type=PATH,
    metavar="FILE",
    help="JSON object task → weight: score this weighting of the stored fine-tunes too.",
)
@click.option(
    "--only",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    help="Score models of this kind alone, and others so named.",
)
@click.option("--cross", is_flag=True, help="Score every fine-tune on every task.")
@click.option(
    "--on-missing",
    type=click.Choice(["error", "zero"]),
    default="error",
    help="A fine-tune lacks a base tensor: refuse, or count as unchanged.",
)
@click.option(
    "--on-extra",
    type=click.Choice(["error", "ignore"]),
    default="error",
    help="A fine-tune has a tensor the base lacks: refuse or leave it out.",
)
@evaluator_options
@common_options
def eval_command(quiet: bool, as_json: bool, debug: bool, **values: Any) -> None:
    """Score the base, every fine-tune and every merge on the tasks' data.

    Models come straight from base and artifact; no checkpoint is written. Prints a table; with
    --checkpoint-dir (or --family) the original fine-tunes are scored too, and normalised scores
    refer to them.

    Example: svdh eval --artifact-dir art --family ../shared/families/vit-tiny
    """
    result = _run(values, quiet=quiet or as_json)
    if as_json:
        print_json(result.as_json())
        return
    for line in result.notes:
        note(line)
    print_result(result, quiet=quiet)


eval = eval_command  # what the group looks up


def _run(values: dict[str, Any], *, quiet: bool) -> EvalResult:
    from svd_hybrid.artifact.files import read_manifest
    from svd_hybrid.evaluation.run import EvalRequest, asked_tasks, run_eval
    from svd_hybrid.io.family import FamilyPolicy
    from svd_hybrid.reload.selection import load_weights

    artifact: Path | None = values["artifact_dir"]
    stored = () if artifact is None else read_manifest(artifact).tasks
    found = resolve(values, stored)
    known = tuple(dict.fromkeys([*stored, *found.checkpoints, *found.head_tasks]))
    tasks = asked_tasks(scored_names(values), known)
    with progress_bar(quiet) as progress:
        request = EvalRequest(
            found.base,
            found.choice.build(tasks),
            artifact,
            found.checkpoints,
            tasks,
            tuple(values["merges"]),
            load_weights(values["weights_file"]) if values["weights_file"] else None,
            tuple(kind for kind in KINDS if kind in (values["kinds"] or KINDS)),
            values["cross"],
            FamilyPolicy(on_missing=values["on_missing"], on_extra=values["on_extra"]),
            opened_cache(values),
        )
        return run_eval(request, progress)


def print_result(result: EvalResult, *, quiet: bool) -> None:
    """The table on stdout; where numbers come from on stderr."""
    from svd_hybrid.evaluation.table import header, rows

    title = result.metric.name + (f", {result.metric.unit}" if result.metric.unit else "")
    title += "" if result.metric.higher_is_better else " (lower is better)"
    print_table(title, header(result), list(rows(result)), to_stdout=True, width=240)
    if not quiet:
        scores = sum(len(row.tasks) for row in result.subjects)
        against = f"; normalised by {result.references.kind}" if result.references.kind else ""
        click.echo(
            f"{scores} scores, {result.kept} of them kept from before{against}; "
            f"{result.cpu_s:.1f} s CPU",
            err=True,
        )
