"""The picture of a family: error over bits, and lost quality over bits, a line per series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rate_distortion.measure import Row
from rate_distortion.points import POINTS
from rate_distortion.report import UNITS, FamilyReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP<>Xdph"
MISSING = "no plots: matplotlib is not installed (pip install 'svd-hybrid[report]')"
LINE_POINTS = 40
LEAST_ERROR = 3e-3
"""Lower end of the error axis; what is below it, such as the exact profile, is left out there."""
LINEAR_DROP = 1.0
"""Lost quality is drawn on a linear scale up to this, on a logarithmic one beyond."""
DROPS = (-5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def draw(report: FamilyReport, path: Path) -> bool:
    """Write the picture; False without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    scored = any(row.drops for row in report.rows)
    figure, panels = plt.subplots(
        1, 1 + scored, figsize=(7 + 6 * scored, 5.6), layout="constrained", squeeze=False
    )
    error, *quality = panels[0]
    _draw_bounds(error, report)
    _draw_series(error, report.rows, lambda row: row.relative_error)
    error.set(yscale="log", ylabel="relative error of the deltas", ylim=(LEAST_ERROR, 1.3))
    for panel in quality:
        _draw_series(panel, report.rows, lambda row: row.mean_drop)
        drops = [row.mean_drop for row in report.rows if row.mean_drop is not None]
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_yscale("symlog", linthresh=LINEAR_DROP)
        panel.set_ylim(min(-0.1, 1.2 * min(drops)), max(LINEAR_DROP, 1.3 * max(drops)))
        panel.yaxis.set_major_locator(FixedLocator(DROPS))
        panel.set_ylabel(f"mean drop, {UNITS[report.metric]}")
    ends = [row.bits for row in report.rows]
    for panel in panels[0]:
        panel.set(xscale="log", xlabel="bits per parameter: all tensors, all bytes")
        panel.set_xlim(0.7 * min(ends, default=0.1), 1.4 * max(ends, default=10))
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.grid(visible=True, alpha=0.3)
    error.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    figure.suptitle(
        f"{report.family}: {len(report.tasks)} tasks of {report.parameters:,} parameters"
    )
    handles, labels = error.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _draw_series(axes: Axes, rows: Sequence[Row], value: Callable[[Row], float | None]) -> None:
    """A line per series that was measured."""
    for series in dict.fromkeys(row.series for row in rows):
        own = sorted((row for row in rows if row.series == series), key=lambda row: row.bits)
        found = [(row.bits, y) for row in own if (y := value(row)) is not None]
        axes.plot([x for x, _ in found], [y for _, y in found], label=series, **_style(series))


def _style(series: str) -> dict[str, Any]:
    """Colour and marker, the same in every picture; `auto` stands out."""
    from matplotlib import colormaps

    index = list(dict.fromkeys(point.series for point in POINTS)).index(series)
    style: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "markersize": 5}
    if series == "auto":
        return style | {"color": "black", "linewidth": 2.5, "zorder": 3}
    return style | {"color": colormaps["tab20"](index * 2 % 20 + index // 10), "linewidth": 1.2}


def _draw_bounds(axes: Axes, report: FamilyReport) -> None:
    """The two reference lines, by relative error."""
    ratio = LEAST_ERROR ** (1 / LINE_POINTS)
    errors = [ratio**step for step in range(1, LINE_POINTS + 1)]
    white, manifold = zip(*(report.bounds(error) for error in errors), strict=True)
    axes.plot(white, errors, "--", color="0.6", label="white line")
    axes.plot(manifold, errors, "-", color="0.6", label="manifold line")
