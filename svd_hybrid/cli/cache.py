"""`svdh cache`: the results that evaluations keep."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from svd_hybrid.cli.reporter import print_table
from svd_hybrid.console import common_options, note, print_json, size

SHOWN = ("model", "task", "part", "evaluator")


@click.group(short_help="List or clear the results kept by eval and compare.")
def cache() -> None:
    """Results of `svdh eval` and `svdh compare`, kept by the content they depend on.

    They lie in $SVDH_CACHE_DIR, else in svdh below $XDG_CACHE_HOME or ~/.cache. A change of model,
    data, settings, libraries or of svdh itself leads to another entry, so none is ever stale.
    """


@cache.command("list", short_help="List the results.")
@common_options
def list_entries(quiet: bool, as_json: bool, debug: bool) -> None:
    """Every result with what it is, oldest first."""
    from svd_hybrid.cache import ResultsCache

    kept = ResultsCache()
    entries = list(kept.entries())
    damaged = kept.damaged()
    if as_json:
        records: list[dict[str, Any]] = [
            {
                "file": entry.path.name,
                "made": _when(entry.made_s),
                "bytes": entry.nbytes,
                "about": dict(entry.about),
                "value": dict(entry.value),
            }
            for entry in entries
        ]
        print_json({"folder": str(kept.folder), "entries": records, "damaged": damaged})
        return
    rows = [
        (_when(entry.made_s), *(entry.about.get(key, "") for key in SHOWN), _scores(entry.value))
        for entry in entries
    ]
    print_table("", ("made", *SHOWN, "scores"), rows, to_stdout=True, text=True)
    if not quiet:
        total = size(sum(entry.nbytes for entry in entries))
        click.echo(f"{len(entries)} results, {total}, in {kept.folder}", err=True)
    if damaged:
        note(f"{damaged} damaged files count as absent; svdh cache clear deletes them")


@cache.command(short_help="Delete the results.")
@common_options
def clear(quiet: bool, as_json: bool, debug: bool) -> None:
    """Delete every result, and no other file."""
    from svd_hybrid.cache import ResultsCache

    kept = ResultsCache()
    count, total = kept.clear()
    if as_json:
        print_json({"folder": str(kept.folder), "files": count, "bytes": total})
    elif not quiet:
        click.echo(f"{count} files, {size(total)} deleted from {kept.folder}")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _scores(value: Any) -> str:
    scores = value.get("scores", {})
    return ", ".join(f"{name} {number:.6g}" for name, number in scores.items())
