"""What every entry point of the command line shares: options, notes, progress, JSON.

In the lowest layer, because `python -m svd_hybrid.reload` and `load_and_merge.py` use it too, and
these import nothing of compression.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from svd_hybrid.consent import allow_module_pickles
from svd_hybrid.errors import UsageError, printable

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)

_SURROGATES = re.compile("[\ud800-\udfff]")
"""Bytes of file names that are no text, as Python holds them."""

LARGEST_SIZE = 2.0**63
"""In bytes; more is a slip of the hand."""
SIZE_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def base_option(command: F) -> F:
    """--base-model-path, alias --base; and --allow-module-pickle, for it and other checkpoints."""
    command = click.option(
        "--allow-module-pickle",
        is_flag=True,
        expose_value=False,
        callback=_consent,
        help="Read the tensors of checkpoints that are whole pickled modules; no class is imported "
        "and nothing in them is run.",
    )(command)
    return click.option(
        "--base-model-path",
        "--base",
        "base",
        type=PATH,
        metavar="PATH",
        help="Base checkpoint: safetensors or torch file, or HF folder.",
    )(command)


def _consent(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        ctx.with_resource(allow_module_pickles())


def artifact_option(command: F) -> F:
    """--artifact-dir."""
    return click.option(
        "--artifact-dir", required=True, type=PATH, metavar="DIR", help="The artifact directory."
    )(command)


def expect_option(command: F) -> F:
    """--expect."""
    return click.option(
        "--expect",
        metavar="sha256:ID",
        help="Refuse any artifact but that of this id, which svdh verify and inspect print.",
    )(command)


def overwrite_option(command: F) -> F:
    """--overwrite."""
    return click.option("--overwrite", is_flag=True, help="Replace an existing output, whole.")(
        command
    )


def common_options(command: F) -> F:
    """--json, --quiet, --debug."""
    for option in (
        click.option("--debug", is_flag=True, help="Show tracebacks."),
        click.option("-q", "--quiet", is_flag=True, help="No progress and no table on stderr."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print exactly one JSON document on stdout."
        ),
    ):
        command = option(command)
    return command


def print_json(document: Mapping[str, Any]) -> None:
    """Exactly one JSON document on stdout."""
    print(one_json(document, indent=1))


def one_json(document: Mapping[str, Any], indent: int | None = None) -> str:
    """The document as JSON that any encoding can hold what a file name holds of."""
    text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def let_any_name_out() -> None:
    """Let stdout carry file names that are no text: as they are, or escaped if it is no UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


def note(text: str) -> None:
    """One line for the user, on stderr."""
    print(f"note: {printable(text)}", file=sys.stderr)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback that draws progress on stderr; None (nothing drawn) when quiet or no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        steps: dict[str, Any] = {}

        def advance(step: str, done: int, total: int) -> None:
            if step not in steps:
                steps[step] = bar.add_task(step, total=total)
            bar.update(steps[step], completed=done)

        yield advance


def size(count: float) -> str:
    """Bytes for people: three digits and a binary unit.

    >>> size(15307818)
    '14.6 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def parse_size(text: str) -> int:
    """Bytes of a size such as 500MB, 5GB, 2GiB or 123456.

    Raises:
        UsageError: it is none, or zero.

    >>> parse_size("1.5KB")
    1500
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)?\s*", text, re.IGNORECASE)
    unit = (found[2] or "").upper().removesuffix("B") if found else ""
    amount = float(found[1]) * SIZE_UNITS[f"{unit}B" if unit else ""] if found else 0.0
    count = int(amount) if amount < LARGEST_SIZE else 0
    if count < 1:
        raise UsageError(
            f"{text[:80]!r} is not a size", fix="write 500MB, 5GB or a number of bytes"
        )
    return count
