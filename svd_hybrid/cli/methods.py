"""`svdh methods`: the merge methods, what they take and where they come from."""

from __future__ import annotations

from typing import Any

import click

from svd_hybrid.cli.reporter import print_table
from svd_hybrid.console import common_options, print_json


@click.command(short_help="List merge methods and their parameters.")
@click.argument("name", required=False)
@common_options
def methods(name: str | None, quiet: bool, as_json: bool, debug: bool) -> None:
    """List the merge methods, or show one: what it does, its source and its parameters."""
    from svd_hybrid.methods import METHODS

    chosen = [METHODS[name]] if name else list(METHODS.values())
    facts: list[dict[str, Any]] = [
        {
            "name": method.name,
            "version": method.version,
            "summary": method.summary,
            "source": method.source,
            "aliases": list(method.aliases),
            "per_task_reload": method.per_task_reload,
            "statistics": method.statistics or None,
            "parameters": method.parameters,
        }
        for method in chosen
    ]
    if as_json:
        print_json({"methods": facts})
        return
    rows = [
        (
            method["name"],
            "yes" if method["per_task_reload"] else "no",
            method["statistics"] or "no",
            method["summary"],
        )
        for method in facts
    ]
    header = ("method", "per-task reload", "needs statistics", "what it does")
    print_table("merge methods", header, rows, to_stdout=True, text=True)
    if name:
        also = f"\nalso called: {', '.join(facts[0]['aliases'])}" if facts[0]["aliases"] else ""
        click.echo(f"source: {facts[0]['source']}{also}\n")
        parameters = [
            (p["name"], _shown(p["default"]), p["type"], p["help"]) for p in facts[0]["parameters"]
        ]
        columns = ("name", "default", "type", "meaning")
        print_table("parameters", columns, parameters, to_stdout=True, text=True)


def _shown(default: Any) -> str:
    """A default as one would write it on the command line."""
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "empty"
    return str(default).lower() if isinstance(default, bool) else str(default)
