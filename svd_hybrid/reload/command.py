"""The reload command: base + artifact → a model.

`svdh reload`, `python -m svd_hybrid.reload` and `python load_and_merge.py` are this one command.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from svd_hybrid.console import (
    PATH,
    artifact_option,
    base_option,
    common_options,
    expect_option,
    note,
    overwrite_option,
    parse_size,
    print_json,
    progress_bar,
    size,
)
from svd_hybrid.errors import UsageError, printable
from svd_hybrid.faults import run_guarded


@click.command(short_help="Rebuild the merged model, one fine-tune, or a new weighting.")
@artifact_option
@base_option
@click.option(
    "--output-path",
    required=True,
    type=PATH,
    metavar="PATH",
    help="*.safetensors, *.pt, *.pth or *.bin for one file; anything else is an HF folder.",
)
@click.option("--task", metavar="NAME", help="Rebuild this fine-tune.")
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
    help="Rebuild this merge; with --task or --weights, from the tasks as that merge keeps them.  "
    "[default: the main one]",
)
@click.option(
    "--dtype",
    type=click.Choice(["F64", "F32", "F16", "BF16"], case_sensitive=False),
    help="Dtype of float tensors.  [default: as in the base]",
)
@click.option(
    "--max-shard-size",
    default="5GB",
    show_default=True,
    metavar="SIZE",
    help="Largest weight file of an HF folder, e.g. 500MB.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Threads to compute with; the result is the same for any number.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    help="Reload runs on the CPU; cuda is accepted and says so.",
)
@expect_option
@overwrite_option
@common_options
def reload(
    artifact_dir: Path,
    base: Path | None,
    output_path: Path,
    weights_file: Path | None,
    max_shard_size: str,
    threads: int,
    device: str,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **choices: Any,
) -> None:
    """Rebuild the merged model (default), one fine-tune, or a new weighting.

    Needs the base and the artifact, nothing else; refuses any other base. Prints the output path.
    """
    if base is None:
        raise UsageError("no base given", fix="pass --base-model-path PATH")
    shard_bytes = parse_size(max_shard_size)
    if device == "cuda":
        note("reload runs on the CPU: --device cuda changes nothing")
    import torch

    from svd_hybrid.reload.run import run_reload
    from svd_hybrid.reload.selection import load_weights

    torch.set_num_threads(threads)
    with progress_bar(quiet or as_json) as progress:
        result = run_reload(
            artifact_dir,
            base,
            output_path,
            weights=None if weights_file is None else load_weights(weights_file),
            max_shard_bytes=shard_bytes,
            progress=progress,
            **choices,
        )
    if as_json:
        print_json(result.as_json())
        return
    if not quiet:
        click.echo(
            f"{printable(result.selection)}: {result.tensors} tensors, "
            f"{size(result.bytes_written)}, {result.cpu_s:.1f} s CPU",
            err=True,
        )
    click.echo(result.output_path)


def main(argv: list[str] | None = None, prog_name: str = "python -m svd_hybrid.reload") -> int:
    """Run the command as a program of its own; returns its exit code."""
    args = sys.argv[1:] if argv is None else argv
    return run_guarded(lambda: reload.main(args, prog_name=prog_name, standalone_mode=False), args)
