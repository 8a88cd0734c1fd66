"""`svdh demo`: a small real family, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from svd_hybrid.cli.reporter import number, print_table
from svd_hybrid.console import PATH, common_options, overwrite_option, print_json, size

if TYPE_CHECKING:
    from svd_hybrid.demo.run import DemoRow


@click.command(short_help="Train a small real family and run everything on it.")
@click.option(
    "--out", type=PATH, default="demo", show_default=True, metavar="DIR", help="Where to put it."
)
@overwrite_option
@common_options
def demo(out: Path, overwrite: bool, quiet: bool, as_json: bool, debug: bool) -> None:
    """Train a ViT on scikit-learn's digits, fine-tune it on seven tasks, and run the main job.

    Compresses the fine-tunes, verifies the artifact, rebuilds the merged model and every fine-tune
    from base + artifact alone, evaluates all of them and prints one table. About a minute on two
    cores; needs no network.
    """
    from svd_hybrid.demo.run import run_demo

    def say(text: str) -> None:
        if not (quiet or as_json):
            click.echo(text, err=True)

    result = run_demo(out, overwrite=overwrite, report=say)
    if as_json:
        print_json(result.as_json())
        return
    header = (
        "model",
        "accuracy %",
        "rebuilt %",
        "rel. error",
        "source",
        "artifact",
        "ratio",
        "bits/weight",
        "seconds",
    )
    print_table("", header, [_cells(row) for row in result.rows], to_stdout=True)
    click.echo(
        f"{result.out}: trained in {result.train_s:.0f} s, everything in {result.wall_s:.0f} s",
        err=True,
    )


def _cells(row: DemoRow) -> tuple[str, ...]:
    return (
        row.model,
        number(row.accuracy, ".1f"),
        number(row.rebuilt_accuracy, ".1f"),
        number(row.relative_error, ".2e"),
        "–" if row.source_bytes is None else size(row.source_bytes),
        "–" if row.artifact_bytes is None else size(row.artifact_bytes),
        number(row.ratio, ".2f"),
        number(row.bits_per_weight, ".2f"),
        number(row.seconds, ".2f"),
    )
