"""Size, error and lost quality of every way to store a family, as tables and pictures.

    python scripts/bench_rate_distortion.py --family ../shared/families/vit-tiny --out /tmp/rd
    python scripts/bench_rate_distortion.py --family demo B --profiles auto fast tvq
    python scripts/bench_rate_distortion.py --family ../shared/families/llama-nano --points 'auto*'

A family is a folder with `base/`, a folder per task and an `evaluate.py MODEL` that prints a JSON
object task → score, or with a `materialize.py OUT` that writes such folders; `demo` is that of
`svdh demo`, `B` the synthetic one of `make_family_b.py`. Every task is rebuilt and scored on its
own data. OUT holds `rate_distortion.md` and `.json`, a PNG per family (needs matplotlib), families
that had to be made, and what was measured: a second run goes on where the first one was stopped,
and `--fresh` measures again. Results do not notice that the package has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rate_distortion.cache import Cache
from rate_distortion.evaluator import Evaluator
from rate_distortion.families import Family, open_measured_family
from rate_distortion.measure import Row, measure, scores_of_originals
from rate_distortion.plot import MISSING, draw
from rate_distortion.points import Point, select
from rate_distortion.report import FamilyReport, markdown

from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.errors import SvdhError

MADE = "families"


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line, measure what is missing, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", nargs="+", metavar="DIR", help="folders, `demo` or `B`")
    parser.add_argument("--profiles", nargs="+", default=[], metavar="NAME", help="only these")
    parser.add_argument("--points", nargs="+", default=[], metavar="PATTERN", help="only these")
    parser.add_argument("--out", type=Path, default=Path("rate-distortion"))
    parser.add_argument("--no-evaluate", action="store_true", help="sizes and errors alone")
    parser.add_argument("--limit", type=int, help="examples per task, for a quick look")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--list", action="store_true", help="print the points and stop")
    arguments = parser.parse_args()
    points = select(arguments.profiles, arguments.points)
    if arguments.list:
        for point in points:
            print(f"{point.name:20} {json.dumps(dict(point.parameters))}")
        return
    if not arguments.family:
        parser.error("--family: name one or more")
    out: Path = arguments.out
    reports = []
    for text in arguments.family:
        family = open_measured_family(text, out / MADE)
        if arguments.no_evaluate:
            family = replace(family, evaluator=None)
        cache = Cache.of(family, out, arguments.limit)
        reports.append(measure_family(family, points, cache, arguments.limit, arguments.fresh))
        write(reports, out)
    print(markdown(reports))


def measure_family(
    family: Family, points: Sequence[Point], cache: Cache, limit: int | None, fresh: bool
) -> FamilyReport:
    """Measure the points that are not in the cache, and keep them there."""
    rows: list[Row] = []
    failures: dict[str, str] = {}
    originals: dict[str, float] = {}
    base: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        evaluator = None
        if family.evaluator:
            evaluator = stack.enter_context(Evaluator(family.evaluator, family.options, limit))
            originals, base = reference_scores(family, evaluator, cache)
        for point in points:
            row = None if fresh else cache.row(point, scored=evaluator is not None)
            if row is None and point.profile not in {None, *PROFILE_PARAMS}:
                failures[point.name] = f"there is no profile {point.profile!r}"
            elif row is None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                try:
                    row = measure(family, point, scratch, evaluator, originals)
                except SvdhError as error:
                    failures[point.name] = str(error).splitlines()[0]
                else:
                    cache.keep(point, row)
            if row is not None:
                rows.append(row)
                say(f"{family.name}: {row.point}: {row.bits:.3f} bits, {row.relative_error:.4f}")
    opened = family.open()
    parameters = sum(info.count for info in opened.base.infos.values())
    return FamilyReport(
        family.name,
        family.metric,
        list(family.tasks),
        parameters,
        family.spectra(),
        rows,
        originals,
        base,
        failures,
    )


def reference_scores(
    family: Family, evaluator: Evaluator, cache: Cache
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of every fine-tune on its own task, and of the base on all."""
    kept = cache.references()
    if kept is None:
        kept = (
            scores_of_originals(family, evaluator),
            evaluator.scores(family.base, [*family.tasks]),
        )
        cache.keep_references(*kept)
    return kept


def write(reports: Sequence[FamilyReport], out: Path) -> None:
    """Everything measured so far."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rate_distortion.md").write_text(markdown(reports), encoding="utf-8")
    text = json.dumps([report.as_json() for report in reports], indent=1)
    (out / "rate_distortion.json").write_text(text + "\n", encoding="utf-8")
    if not draw(reports[-1], out / f"{reports[-1].family}.png"):
        say(MISSING)


if __name__ == "__main__":
    main()
