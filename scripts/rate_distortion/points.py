"""What is measured: the table of points, each a profile or method with its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

TARGET_BITS = (14, 8, 4, 2.7, 2, 1.35, 1, 0.66, 0.35, 0.25, 0.21, 0.157, 0.1, 0.05)
ERROR_BITS = (8, 4, 2.7, 2, 1.35, 1, 0.66, 0.35, 0.21, 0.1)
MAX_BITS = (2, 1)
MERGE_ALONE = {"store_tasks": "off", "merged_dtype": "fp16"}
"""What is stored is the merge, in the form its paper rebuilds every task from."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting.

    Args:
        name: unique; `--points` matches it.
        series: line of the plot it belongs to; `--profiles` matches it or the profile or method.
        parameters: of `compress()`.
    """

    name: str
    series: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def profile(self) -> str | None:
        """The profile it sets."""
        return self.parameters.get("profile")

    def is_of(self, names: Sequence[str]) -> bool:
        """Whether it belongs to one of these series, profiles or methods; no names are all."""
        own = {self.series, self.profile, self.parameters.get("method")}
        return not names or not own.isdisjoint(names)

    def matches(self, patterns: Sequence[str]) -> bool:
        """Whether its name is like one of the patterns; no patterns are all."""
        return not patterns or any(fnmatchcase(self.name, pattern) for pattern in patterns)


def _of(profile: str, name: str, series: str | None = None, **parameters: Any) -> Point:
    return Point(name, series or profile, {"profile": profile, **parameters})


POINTS = (
    *(_of("auto", f"auto {bits:g}", target_bits=bits) for bits in TARGET_BITS),
    *(
        _of(
            "auto", f"auto-error {bits:g}", "auto, least error", target_bits=bits, objective="error"
        )
        for bits in ERROR_BITS
    ),
    *(_of("max", f"max {bits:g}", target_bits=bits) for bits in MAX_BITS),
    _of("hybrid", "hybrid"),
    _of("hybrid", "hybrid int8", basis_dtype="int8", rtvq_stages=1, center=False),
    _of("hybrid", "hybrid int4", basis_dtype="int4", rtvq_stages=1, center=False, low_bits=2),
    _of(
        "hybrid",
        "hybrid high int4",
        basis_dtype="int4",
        keep_low=False,
        center=False,
        energy_threshold=0.8,
    ),
    *(_of("tvq", f"tvq {bits} g64", bits=bits, group_size=64) for bits in (4, 3, 2)),
    _of("rtvq", "rtvq B3O2 g64", group_size=64),
    _of("bitdelta", "bitdelta row", scale_per="row"),
    _of("compeft", "compeft 5 %"),
    _of("compeft", "compeft 20 %", kept_share=0.2),
    *(_of("delta-come", f"delta-come {bits}", code_bpp=bits) for bits in (1.0, 0.5)),
    *(_of("fast", f"fast {bits}", bits=bits) for bits in (8, 4, 3, 2)),
    _of("exact", "exact"),
    Point("tsv-c 1/N", "tsv-compress", {"method": "tsv-compress", **MERGE_ALONE}),
    Point(
        "tsv-c 1/16",
        "tsv-compress",
        {"method": "tsv-compress", "rank_fraction": 1 / 16, **MERGE_ALONE},
    ),
    Point("tall", "tall-masks", {"method": "tall-masks", **MERGE_ALONE}),
    Point("emr", "emr", {"method": "emr", **MERGE_ALONE}),
)
"""Every point, in the order of the table."""


def select(profiles: Sequence[str], patterns: Sequence[str]) -> list[Point]:
    """The points of some profiles whose names match, in order.

    Raises:
        SystemExit: a name or a pattern fits none of them.
    """
    for name in profiles:
        if not any(point.is_of([name]) for point in POINTS):
            known = sorted({point.series for point in POINTS})
            raise SystemExit(f"no points of {name!r}; there are {', '.join(known)}")
    for pattern in patterns:
        if not any(point.matches([pattern]) for point in POINTS):
            raise SystemExit(f"no point like {pattern!r}; --list names them")
    return [point for point in POINTS if point.is_of(profiles) and point.matches(patterns)]
