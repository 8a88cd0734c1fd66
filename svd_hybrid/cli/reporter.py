"""What a person sees: progress and tables on stderr, results on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from svd_hybrid.errors import printable


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    to_stdout: bool = False,
    text: bool = False,
    width: int = 120,
) -> None:
    """A table; the first column is text, the others numbers aligned to the right unless `text`.

    `width` is the most it takes where there is no terminal.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=printable(title), box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    for position, name in enumerate(header):
        table.add_column(
            name, justify="right" if position and not text else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(printable, row))
    terminal = (sys.stdout if to_stdout else sys.stderr).isatty()
    Console(
        stderr=not to_stdout, width=None if terminal else width, markup=False, highlight=False
    ).print(table)


def number(value: float | None, form: str = ".4g") -> str:
    """A number, or a dash for what was not measured."""
    return "–" if value is None else format(value, form)
