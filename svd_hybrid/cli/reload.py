"""`svdh reload`: base + artifact → a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from svd_hybrid.cli.options import (
    PATH,
    artifact_option,
    base_option,
    common_options,
    overwrite_option,
)
from svd_hybrid.cli.reporter import note, print_json, progress_bar, size
from svd_hybrid.errors import UsageError

SIZE_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


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
@click.option("--merge", metavar="NAME", help="Rebuild this stored merge.  [default: the main one]")
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

    from svd_hybrid.reload.run import load_weights, run_reload

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
            f"{result.selection}: {result.tensors} tensors, {size(result.bytes_written)}, "
            f"{result.cpu_s:.1f} s CPU",
            err=True,
        )
    click.echo(result.output_path)


def parse_size(text: str) -> int:
    """Bytes of a size such as 500MB, 5GB, 2GiB or 123456.

    Raises:
        UsageError: it is none, or zero.

    >>> parse_size("1.5KB")
    1500
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)?\s*", text, re.IGNORECASE)
    unit = (found[2] or "").upper().removesuffix("B") if found else ""
    count = int(float(found[1]) * SIZE_UNITS[f"{unit}B" if unit else ""]) if found else 0
    if count < 1:
        raise UsageError(f"{text!r} is not a size", fix="write 500MB, 5GB or a number of bytes")
    return count
