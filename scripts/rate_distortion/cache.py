"""Rows that were measured, one file each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rate_distortion.families import Family
from rate_distortion.measure import Row
from rate_distortion.points import Point

REFERENCES = "references"


@dataclass(frozen=True, slots=True)
class Cache:
    """The rows of one family.

    Args:
        folder: of their files; made when something is kept.
        stamp: what they depend on besides the point: the family's weights and how it is scored.
    """

    folder: Path
    stamp: str

    @classmethod
    def of(cls, family: Family, out: Path, limit: int | None) -> Cache:
        """That of a family, scored on `limit` examples a task."""
        return cls(out / "cache" / family.name, f"{family.fingerprint} limit {limit}")

    def row(self, point: Point, *, scored: bool) -> Row | None:
        """A row that was kept, if it was scored or need not be."""
        value = self._load(_file_name(point.name), _key(point))
        row = None if value is None else Row(**value)
        return None if row is None or (scored and row.drops is None) else row

    def keep(self, point: Point, row: Row) -> None:
        """Keep a row."""
        self._save(_file_name(point.name), _key(point), row.as_json())

    def references(self) -> tuple[dict[str, float], dict[str, float]] | None:
        """Scores of the fine-tunes and of the base that were kept."""
        found = self._load(REFERENCES, "")
        return None if found is None else (found["originals"], found["base"])

    def keep_references(self, originals: dict[str, float], base: dict[str, float]) -> None:
        """Keep the scores of the fine-tunes and of the base."""
        self._save(REFERENCES, "", {"originals": originals, "base": base})

    def _load(self, name: str, key: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        fits = found["stamp"] == self.stamp and found["key"] == key
        return found["value"] if fits else None

    def _save(self, name: str, key: str, value: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"stamp": self.stamp, "key": key, "value": value}, indent=1)
        path = self.folder / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)


def _file_name(point: str) -> str:
    digest = hashlib.sha256(point.encode()).hexdigest()[:8]
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in point) + f"-{digest}"


def _key(point: Point) -> str:
    return json.dumps(dict(point.parameters), sort_keys=True)
