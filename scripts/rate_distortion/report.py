"""The table of a family's rows: Markdown for people, JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from rate_distortion.equal_bytes import comparisons
from rate_distortion.families import Metric
from rate_distortion.measure import Row, drop
from svd_hybrid.numerics.bounds import DeltaSpectrum, manifold_bits, white_bits

UNITS: dict[Metric, str] = {"accuracy": "points of accuracy", "perplexity": "% of perplexity"}
COLUMNS = (
    "point",
    "bytes",
    "bits",
    "rel. error",
    "worst task",
    "shrink",
    "noise",
    "mean drop",
    "worst drop",
    "white bits",
    "manifold bits",
    "compress CPU s",
    "reload CPU s",
)
AT_EQUAL_BYTES = (
    "at the bytes of",
    "bits",
    "its error",
    "auto, objective error",
    "its mean drop",
    "auto's mean drop",
)
LEGEND = """\
bits: of the whole directory, per parameter of every task, all tensors. rel. error: norm of the
deltas' error over that of the deltas, all tasks and the worst one; shrink is the part lost along
the deltas (a share), noise the part across them. drop: {unit} lost, mean over tasks and the worst.
white, manifold: bits such an error needs at least, by the tensors' variances alone, and by their
singular values when singular vectors have to be paid for. CPU seconds: compress with its own check,
reload of one task. At equal bytes: between the two nearest points of `auto`."""


@dataclass(frozen=True)
class FamilyReport:
    """Everything about one family.

    Args:
        family: its name.
        metric: what its evaluator prints.
        tasks: names in order.
        parameters: of one checkpoint.
        spectra: of its deltas.
        rows: what was measured, in the order of the table.
        originals: score of every fine-tune; empty if not scored.
        base: score of the base on every task; empty if not scored.
        failures: point → why there is no row.
    """

    family: str
    metric: Metric
    tasks: Sequence[str]
    parameters: int
    spectra: Sequence[DeltaSpectrum]
    rows: Sequence[Row]
    originals: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> float:
        """Share of the parameters in tensors that some task changed."""
        numbers = sum(s.count for s in self.spectra if s.energy)
        return numbers / (self.parameters * len(self.tasks))

    def bounds(self, relative_error: float) -> tuple[float, float]:
        """White and manifold bits per parameter, of all tensors."""
        share = sum(s.count for s in self.spectra) / (self.parameters * len(self.tasks))
        white = white_bits(self.spectra, relative_error)
        return share * white, share * manifold_bits(self.spectra, relative_error)

    @cached_property
    def row_bounds(self) -> list[tuple[float, float]]:
        """The bounds at the error of every row."""
        return [self.bounds(row.relative_error) for row in self.rows]

    def markdown(self) -> str:
        """Heading, table and what was left out."""
        lines = [f"## {self.family}", "", self._facts(), ""]
        lines += [_line(COLUMNS), "| --- |" + " --: |" * (len(COLUMNS) - 1)]
        rows = zip(self.rows, self.row_bounds, strict=True)
        lines += [_line(_cells(row, bounds)) for row, bounds in rows]
        lines += self._comparisons()
        lines += ["", *(f"- not measured: {p}: {why}" for p, why in self.failures.items())]
        return "\n".join(lines).rstrip() + "\n"

    def as_json(self) -> dict[str, Any]:
        """The same, with all digits."""
        return {
            "family": self.family,
            "metric": self.metric,
            "tasks": list(self.tasks),
            "parameters": self.parameters,
            "changed": self.changed,
            "originals": dict(self.originals),
            "base": dict(self.base),
            "rows": [
                row.as_json() | _derived(row, bounds)
                for row, bounds in zip(self.rows, self.row_bounds, strict=True)
            ],
            "failures": dict(self.failures),
        }

    def _comparisons(self) -> list[str]:
        """The other ways beside `auto` at their bytes."""
        found = comparisons(self.rows)
        if not any(one.error is not None or one.drop is not None for one in found):
            return []
        lines = ["", _line(AT_EQUAL_BYTES), "| --- |" + " --: |" * (len(AT_EQUAL_BYTES) - 1)]
        for one in found:
            drops = one.row.mean_drop, one.drop
            cells = [
                one.row.point,
                f"{one.row.bits:.3f}",
                _number(one.row.relative_error, 4),
                "–" if one.error is None else _number(one.error, 4),
                *("–" if drop is None else _number(drop, 2) for drop in drops),
            ]
            lines.append(_line(cells))
        return lines

    def _facts(self) -> str:
        text = f"{len(self.tasks)} tasks of {self.parameters:,} parameters"
        if self.changed < 1:
            text += f", {100 * self.changed:.1f} % of them in tensors that changed"
        if self.originals:
            mean = fmean(self.originals.values())
            drops = [drop(self.metric, self.originals[t], self.base[t]) for t in self.tasks]
            text += (
                f"; mean {self.metric} of the fine-tunes {mean:.2f}, drop of the base "
                f"{fmean(drops):.1f}"
            )
        return text + "."


def _derived(row: Row, bounds: tuple[float, float]) -> dict[str, Any]:
    white, manifold = (b if math.isfinite(b) else None for b in bounds)
    return {
        "worst_error": row.worst_error,
        "mean_drop": row.mean_drop,
        "worst_drop": row.worst_drop,
        "white_bits": white,
        "manifold_bits": manifold,
    }


def _cells(row: Row, bounds: tuple[float, float]) -> list[str]:
    worst = row.worst_drop
    errors = (row.relative_error, row.worst_error, row.shrink, row.noise)
    return [
        row.point,
        f"{row.nbytes:,}",
        f"{row.bits:.3f}",
        *(_number(error, 4) for error in errors),
        "–" if row.mean_drop is None else _number(row.mean_drop, 2),
        "–" if worst is None else f"{_number(worst[1], 2)} ({worst[0]})",
        *(f"{bits:.3f}" if math.isfinite(bits) else "–" for bits in bounds),
        f"{row.compress_cpu_s:.1f}",
        f"{row.reload_cpu_s:.2f}",
    ]


def _number(value: float, digits: int) -> str:
    """Rounded, without the sign of a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def markdown(reports: Sequence[FamilyReport]) -> str:
    """All families."""
    unit = " or ".join(sorted({UNITS[report.metric] for report in reports if report.originals}))
    legend = LEGEND.format(unit=unit or "quality")
    return "\n".join(["# Rate and distortion\n", legend + "\n", *(r.markdown() for r in reports)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
