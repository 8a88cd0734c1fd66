"""`svdh export`: base + artifact → a LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svd_hybrid.cli.options import WordsCommand
from svd_hybrid.cli.reporter import print_table
from svd_hybrid.console import (
    PATH,
    artifact_option,
    base_option,
    common_options,
    note,
    overwrite_option,
    print_json,
    progress_bar,
    size,
)
from svd_hybrid.errors import UsageError

if TYPE_CHECKING:
    from svd_hybrid.export.result import ExportResult

MOST_SHOWN = 8


class ExportCommand(WordsCommand):
    """Takes `--modules-to-save norm lm_head`."""

    word_lists = ("--modules-to-save",)


@click.command(cls=ExportCommand, short_help="Write the merge or one fine-tune as a LoRA adapter.")
@artifact_option
@base_option
@click.option(
    "--output-path", required=True, type=PATH, metavar="DIR", help="The adapter's folder."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["peft"]),
    default="peft",
    show_default=True,
    help="peft: adapter_config.json and adapter_model.safetensors.",
)
@click.option(
    "--rank",
    required=True,
    type=click.IntRange(min=1),
    help="Most directions of a weight; more lose less and take more bytes.",
)
@click.option("--task", metavar="NAME", help="Export this fine-tune.")
@click.option(
    "--weights",
    "weights_file",
    type=PATH,
    metavar="FILE",
    help="JSON object task → weight: a new weighting of the stored fine-tunes.",
)
@click.option(
    "--merge",
    metavar="NAME",
    help="Export this merge; with --task or --weights, from the tasks as that merge keeps them.  "
    "[default: the main one]",
)
@click.option(
    "--modules-to-save",
    "keep",
    multiple=True,
    metavar="NAME...",
    help="Changed tensors to save whole: modules by path or its end (norm), tensors by glob "
    "(*.bias) or re:EXPRESSION, or all for what factors cannot hold.  [default: none; they are "
    "lost, and named]",
)
@click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    default="F32",
    show_default=True,
    help="Dtype of the factors.",
)
@click.option(
    "--module-prefix",
    default="",
    metavar="TEXT",
    help="Put before module names where the model's class has one more than the base, as "
    "transformer for GPT-2 from the hub.",
)
@overwrite_option
@common_options
def export(
    artifact_dir: Path,
    base: Path | None,
    output_path: Path,
    file_format: str,
    weights_file: Path | None,
    keep: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    debug: bool,
    **choices: Any,
) -> None:
    """Write the merged model (default), one fine-tune, or a new weighting as a LoRA adapter.

    Each linear weight's difference to the base becomes the best product of that rank; what this and
    the tensors without factors lose is measured and said. Prints the output path.
    """
    if base is None:
        raise UsageError("no base given", fix="pass --base-model-path PATH")
    from svd_hybrid.export.run import ExportRequest, run_export
    from svd_hybrid.reload.selection import load_weights

    request = ExportRequest(
        artifact_dir,
        base,
        output_path,
        weights=None if weights_file is None else load_weights(weights_file),
        keep=keep,
        **choices,
    )
    with progress_bar(quiet or as_json) as progress:
        result = run_export(request, progress)
    if as_json:
        print_json(result.as_json())
        return
    if not quiet:
        _show(result)
    click.echo(result.output_path)


def _show(result: ExportResult) -> None:
    """What was kept and lost, on stderr."""
    lost, whole = result.named("lost"), result.named("whole")
    shown = sorted(result.tensors, key=lambda tensor: -tensor.lost)[:MOST_SHOWN]
    print_table(
        f"{result.selection}, largest losses",
        ["tensor", "stored as", "rank", "relative error"],
        [[t.name, t.stored, str(t.rank or "–"), f"{t.relative_error:.3g}"] for t in shown],
    )
    click.echo(
        f"relative error {result.relative_error:.3g}, in factors {result.factors_error:.3g}; "
        f"{len(result.named('factors'))} weights as factors of rank {result.rank}, "
        f"{len(whole)} tensors whole, {len(lost)} lost; {size(result.bytes_written)}, "
        f"{result.cpu_s:.1f} s CPU",
        err=True,
    )
    if lost:
        reasons = ", ".join(dict.fromkeys(tensor.why for tensor in lost))
        note(f"lost tensors ({reasons}) keep the base's values; --modules-to-save all keeps them")
    for text in result.notes:
        note(text)
