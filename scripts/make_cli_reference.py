"""Write docs/cli.md from the commands' own help, or check that it is up to date (`--check`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import click

from svd_hybrid.cli.app import COMMANDS, app

TARGET = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
WIDTH = 100


def reference() -> str:
    """The whole page."""
    sections = [
        "# Command line reference",
        "Made from `--help` by `scripts/make_cli_reference.py`; do not edit.",
    ]
    for name in ("", *COMMANDS):
        command = app.get_command(click.Context(app), name) if name else app
        assert command is not None  # COMMANDS lists what exists
        sections.append(section(command, f"svdh {name}".strip()))
        if name and isinstance(command, click.Group):
            verbs = command.commands.items()
            sections += [section(verb, f"svdh {name} {title}") for title, verb in verbs]
    return "\n\n".join(sections) + "\n"


def section(command: click.Command, title: str) -> str:
    """The help of one command."""
    context = click.Context(command, info_name=title, max_content_width=WIDTH)
    context.terminal_width = WIDTH
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```"


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the page is out of date")
    wanted = reference()
    if parser.parse_args().check:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != wanted:
            print(f"{TARGET} is out of date: run scripts/make_cli_reference.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
