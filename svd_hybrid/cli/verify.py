"""`svdh verify`: is the artifact whole, and is this its base?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from svd_hybrid.console import (
    artifact_option,
    base_option,
    common_options,
    expect_option,
    print_json,
    progress_bar,
)

if TYPE_CHECKING:
    from svd_hybrid.artifact.verify import VerifyReport

MOST_SHOWN = 10


@click.command(short_help="Check every file of an artifact, and the base if given.")
@artifact_option
@base_option
@click.option(
    "--deep",
    is_flag=True,
    help="Decode every part too; with the base, rebuild every task and stored merge and compare "
    "them with the digests recorded by compress.",
)
@expect_option
@common_options
def verify(
    artifact_dir: Path,
    base: Path | None,
    deep: bool,
    expect: str | None,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Check every file's size and content, and with a base every tensor of it.

    Exit code 0 when all is well, 4 when the artifact is damaged, 5 when only the base is wrong.
    Prints one line, or one for every problem.
    """
    from svd_hybrid.artifact.stable import read_stable
    from svd_hybrid.artifact.verify import verify as run_verify

    def check() -> VerifyReport:
        if deep:
            return _deep(artifact_dir, base, expect, quiet=quiet or as_json)
        return run_verify(artifact_dir, base, expect)

    report = read_stable(artifact_dir, check, lambda report: not report.problems)
    fault = report.fault()
    if as_json:
        print_json(report.as_json())
    elif fault is None:
        base_part = f", base of {report.tensors} tensors" if base else ""
        deep_part = f", {report.slices} slices decoded" if deep else ""
        if deep and base:
            deep_part += f", {report.rebuilt} models rebuilt to the recorded digest"
        facts = f"{report.files + 1} files{base_part}{deep_part}"
        click.echo(f"ok: {facts}, id {report.artifact_id}")
    else:
        for problem in report.problems[:MOST_SHOWN]:
            said = problem.facts()
            click.echo(f"problem: {said['where']}: {said['error']}")
        if len(report.problems) > MOST_SHOWN:
            more = len(report.problems) - MOST_SHOWN
            click.echo(f"and {more} more problems; --json lists them all")
    if fault is not None:
        raise fault


def _deep(
    artifact_dir: Path, base: Path | None, expect: str | None, *, quiet: bool
) -> VerifyReport:
    from svd_hybrid.reload.deep import verify_deep

    with progress_bar(quiet) as progress:
        return verify_deep(artifact_dir, base, progress, expect)
