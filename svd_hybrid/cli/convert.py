"""`svdh convert`: an artifact in the original .pt layout → ours."""

from __future__ import annotations

from pathlib import Path

import click

from svd_hybrid.cli.compress import report
from svd_hybrid.console import (
    PATH,
    artifact_option,
    base_option,
    common_options,
    overwrite_option,
    progress_bar,
)
from svd_hybrid.errors import UsageError


@click.command(short_help="Convert an artifact in the original .pt layout.")
@click.option(
    "--legacy-dir",
    required=True,
    type=PATH,
    metavar="DIR",
    help="The original artifact: basis/, coeffs/, config.json, weights.json.",
)
@base_option
@artifact_option
@click.option(
    "--mask-dir", type=PATH, metavar="DIR", help="The masks of the run; the original kept none."
)
@overwrite_option
@common_options
def convert(
    legacy_dir: Path,
    base: Path | None,
    artifact_dir: Path,
    mask_dir: Path | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Convert an artifact that the original program wrote; the numbers stay the same.

    Needs the base it was made from. Ends with one list of what is missing when it cannot be done.
    Prints the new directory.
    """
    if base is None:
        raise UsageError("no base given", fix="pass --base-model-path PATH")
    from svd_hybrid.legacy.convert import ConvertRequest, run_convert

    request = ConvertRequest(legacy_dir, base, artifact_dir, mask_dir, overwrite)
    with progress_bar(quiet or as_json) as progress:
        result = run_convert(request, progress)
    report(result, quiet=quiet, as_json=as_json)
