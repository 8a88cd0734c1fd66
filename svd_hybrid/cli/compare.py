"""`svdh compare`: several methods and their grids on one family, by one evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svd_hybrid.cli.evaluating import (
    Resolved,
    evaluator_options,
    family_options,
    opened_cache,
    resolve,
    scored_names,
)
from svd_hybrid.cli.options import WordsCommand
from svd_hybrid.cli.reporter import print_table
from svd_hybrid.console import (
    PATH,
    common_options,
    note,
    overwrite_option,
    print_json,
    progress_bar,
)
from svd_hybrid.errors import UsageError

if TYPE_CHECKING:
    from svd_hybrid.comparison.result import CompareResult
    from svd_hybrid.comparison.search import SearchSettings
    from svd_hybrid.evaluation.base import Evaluator

RULES = ("normalised", "worst", "mean")
WIDE = 240
"""Columns of a table that nobody sees on a terminal."""


@click.command(cls=WordsCommand, short_help="Compare merge methods, and keep the best.")
@family_options
@click.option(
    "--from-artifact",
    type=PATH,
    metavar="DIR",
    help="Merge the fine-tunes that this artifact stores; the originals are not needed.",
)
@click.option("--method", "methods", multiple=True, metavar="NAME", help="A method to try.")
@click.option(
    "--grid",
    "grids",
    multiple=True,
    metavar="[METHOD.]KEY=VALUES",
    help="Values of a parameter, 0.1,0.2 or FIRST:LAST:STEP, for METHOD or all that have it.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any configuration key of compress, for every method that has it.",
)
@click.option(
    "--search-weights",
    is_flag=True,
    help="Also search the weight of each task of --from-artifact, by trying.",
)
@click.option(
    "--search-budget",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="Weightings tried at most.",
)
@click.option(
    "--weights-out",
    type=PATH,
    metavar="FILE",
    help="Write the weights found, as svdh reload --weights and svdh eval --weights read them.",
)
@click.option(
    "--rule",
    type=click.Choice(RULES),
    default="normalised",
    show_default=True,
    help="What is best on validation data: mean share of the fine-tunes' scores, the share of the "
    "task that suffers most, or the mean score.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Scalings in a row without a better mean score before the rest is left out; 0 for none.",
)
@click.option(
    "--validation-data",
    multiple=True,
    metavar="[TASK=]SOURCE",
    help="Data to choose by; --data are then all test data.  [default: a share of --data]",
)
@click.option(
    "--validation-share",
    type=float,
    default=0.5,
    show_default=True,
    help="Share of each task's samples to choose by; the others are test data.",
)
@click.option(
    "--split-seed", type=int, default=0, show_default=True, help="Draws the validation samples."
)
@click.option(
    "--statistics-dir",
    type=PATH,
    metavar="DIR",
    help="Layer statistics, for methods that read them.",
)
@click.option("--mask-dir", type=PATH, metavar="DIR", help="Masks, for methods that take them.")
@click.option("--artifact-dir", type=PATH, metavar="DIR", help="Write the best merge here.")
@overwrite_option
@evaluator_options
@common_options
def compare(quiet: bool, as_json: bool, debug: bool, **values: Any) -> None:
    """Merge a family by several methods and parameters, and say which merge is best.

    Candidates are chosen on validation data and reported on test data, which no choice has seen.
    Each merge is computed once, in memory, and tried at every scaling. Bytes are those of an
    artifact with that merge alone.

    Example: svdh compare --family F --method ties --method iso-c --grid scaling=0.1:3.0:0.1
    """
    result = _run(values, quiet=quiet or as_json)
    if values["weights_out"]:
        _write_weights(result, values["weights_out"], overwrite=values["overwrite"])
    if as_json:
        print_json(result.as_json())
        return
    for line in result.notes:
        note(line)
    print_result(result, quiet=quiet)


def _run(values: Mapping[str, Any], *, quiet: bool) -> CompareResult:
    from svd_hybrid.artifact.files import read_manifest
    from svd_hybrid.comparison.grid import combinations, parse_axis
    from svd_hybrid.comparison.rule import RULES as TABLE
    from svd_hybrid.comparison.run import CompareRequest, run_compare
    from svd_hybrid.compress.config import resolve_config
    from svd_hybrid.compress.request import CompressRequest

    search = _search(values)
    if not values["methods"] and search is None:
        raise UsageError("nothing to compare", fix="pass --method NAME, or --search-weights")
    fixed = dict(_assignment(text) for text in values["assignments"])
    axes = [parse_axis(text) for text in values["grids"]]
    merges = tuple(combinations(values["methods"], axes, fixed))
    artifact: Path | None = values["from_artifact"]
    stored = () if artifact is None else read_manifest(artifact).tasks
    found = resolve(values, stored)
    tasks = dict(found.checkpoints) if artifact is None else {}
    if artifact is None and not tasks:
        raise UsageError(
            "no fine-tunes given", fix="pass --family, --checkpoint-dir or --from-artifact"
        )
    validation, test = _evaluators(values, found, scored_names(values) or stored or tuple(tasks))
    policies = {k: v for k, v in fixed.items() if k.startswith("on_") or k == "nonfinite"}
    family = CompressRequest(
        found.base,
        tasks,
        values["artifact_dir"] or Path(),
        resolve_config(policies, "command line"),
        mask_dir=values["mask_dir"],
        statistics_dir=values["statistics_dir"],
        from_artifact=artifact,
        overwrite=values["overwrite"],
    )
    with progress_bar(quiet) as progress:
        request = CompareRequest(
            family,
            merges,
            validation,
            test,
            TABLE[values["rule"]],
            values["artifact_dir"] is not None,
            scored_names(values),
            values["patience"],
            found.checkpoints,
            search,
            opened_cache(values),
        )
        return run_compare(request, progress)


def _search(values: Mapping[str, Any]) -> SearchSettings | None:
    from svd_hybrid.comparison.search import SearchSettings
    from svd_hybrid.io.outputs import check_free

    if not values["search_weights"]:
        if values["weights_out"]:
            raise UsageError("--weights-out without --search-weights", fix="pass both, or neither")
        return None
    if values["weights_out"]:
        check_free(values["weights_out"], values["overwrite"])  # again when they are written
    return SearchSettings(budget=values["search_budget"])


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} has no '='", fix="write --set KEY=VALUE")
    return key.strip().replace("-", "_"), value.strip()


def _evaluators(
    values: Mapping[str, Any], found: Resolved, tasks: tuple[str, ...]
) -> tuple[Evaluator, Evaluator]:
    """Those of validation and test data."""
    from dataclasses import replace

    from svd_hybrid.evaluation.split import Part

    whole = found.choice.build(tasks)
    if values["validation_data"]:
        other = replace(found.choice, data=tuple(values["validation_data"]))
        return other.build(tasks), whole
    share, seed = values["validation_share"], values["split_seed"]
    return (
        whole.restricted(Part("validation", share, seed)),
        whole.restricted(Part("test", share, seed)),
    )


def _write_weights(result: CompareResult, path: Path, *, overwrite: bool) -> None:
    from svd_hybrid.artifact.jsonfile import readable_json
    from svd_hybrid.comparison.result import SEARCHED
    from svd_hybrid.io.new_file import write_file
    from svd_hybrid.io.outputs import check_free
    from svd_hybrid.io.staging import staged_file

    check_free(path, overwrite)
    row = next(f for f in result.finalists if f.candidate.method == SEARCHED)
    with staged_file(path, overwrite) as staged:
        write_file(staged, readable_json(dict(row.candidate.parameters["weights"])))


def print_result(result: CompareResult, *, quiet: bool) -> None:
    """The table, the best and its artifact on stdout; how much was tried on stderr."""
    from svd_hybrid.comparison.table import header, parameters, rows, title

    print_table(title(result), header(result), list(rows(result)), to_stdout=True, width=WIDE)
    if result.best is not None:
        chosen = parameters(result.best.candidate)
        print(f"best by rule {result.rule.name}: {result.best.candidate.method} {chosen}")
    if result.shipped is not None:
        print(result.shipped.folder)
    if not quiet:
        click.echo(
            f"{len(result.candidates)} candidates on validation data, {len(result.finalists)} on "
            f"test data; {result.cpu_s:.1f} s CPU",
            err=True,
        )
