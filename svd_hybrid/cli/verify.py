"""`svdh verify`: is the artifact whole, and is this its base?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from svd_hybrid.console import (
    artifact_option,
    base_option,
    common_options,
    print_json,
    progress_bar,
)
from svd_hybrid.errors import BaseMismatchError

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
@common_options
def verify(
    artifact_dir: Path, base: Path | None, deep: bool, quiet: bool, as_json: bool, debug: bool
) -> int:
    """Check every file's size and content, and with a base every tensor of it.

    Exit code 0 when all is well, 4 when the artifact is damaged, 5 when only the base is wrong.
    """
    from svd_hybrid.artifact.stable import read_stable
    from svd_hybrid.artifact.verify import verify as run_verify

    def check() -> VerifyReport:
        if deep:
            return _deep(artifact_dir, base, quiet=quiet or as_json)
        return run_verify(artifact_dir, base)

    report = read_stable(artifact_dir, check, lambda report: not report.problems)
    if as_json:
        print_json(report.as_json())
    else:
        for problem in report.problems[:MOST_SHOWN]:
            click.echo(f"problem: {problem}", err=True)
        if len(report.problems) > MOST_SHOWN:
            more = len(report.problems) - MOST_SHOWN
            click.echo(f"and {more} more problems; --json lists them all", err=True)
        if not report.problems:
            base_part = f", base of {report.tensors} tensors" if base else ""
            deep_part = f", {report.slices} slices decoded" if deep else ""
            if deep and base:
                deep_part += f", {report.rebuilt} models rebuilt to the recorded digest"
            facts = f"{report.files + 1} files{base_part}{deep_part}"
            click.echo(f"ok: {facts}, id {report.artifact_id}")
    if not report.problems:
        return 0
    only_base = all(isinstance(problem, BaseMismatchError) for problem in report.problems)
    return BaseMismatchError.exit_code if only_base else 4


def _deep(artifact_dir: Path, base: Path | None, *, quiet: bool) -> VerifyReport:
    from svd_hybrid.reload.deep import verify_deep

    with progress_bar(quiet) as progress:
        return verify_deep(artifact_dir, base, progress)
