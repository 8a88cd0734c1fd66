"""What `--data` names: a file, a folder or a dataset, of which split, and which of its samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from svd_hybrid.errors import UsageError
from svd_hybrid.registry import did_you_mean

RANGE = re.compile(r"^(.+)\[(\d*):(\d*)\]$")


@dataclass(frozen=True, slots=True)
class Source:
    """`NAME[@SPLIT][[START:STOP]]`.

    Args:
        name: a path, or the name of a dataset of the package `datasets`.
        split: of a dataset; empty for files.
        start: first sample, >= 0.
        stop: one past the last sample; None for all.
    """

    name: str
    split: str = ""
    start: int = 0
    stop: int | None = None

    @property
    def path(self) -> Path:
        """As a path."""
        return Path(self.name)

    def __str__(self) -> str:
        split = f"@{self.split}" if self.split else ""
        whole = self.start == 0 and self.stop is None
        stop = "" if self.stop is None else self.stop
        return f"{self.name}{split}" + ("" if whole else f"[{self.start}:{stop}]")

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read it as it is written.

        Raises:
            UsageError: empty, or a range without samples.

        >>> Source.parse("ag_news@test[:200]")
        Source(name='ag_news', split='test', start=0, stop=200)
        """
        if not text.strip():
            raise UsageError("--data names nothing", fix="write --data task=PATH")
        if Path(text).exists():
            return cls(text)
        start, stop = 0, None
        if found := RANGE.match(text):
            text = found[1]
            start, stop = int(found[2] or 0), int(found[3]) if found[3] else None
            if stop is not None and stop <= start:
                raise UsageError(f"--data range [{start}:{stop}] holds no samples")
        if Path(text).exists() or "@" not in text:
            return cls(text, "", start, stop)
        name, _, split = text.rpartition("@")
        return cls(name, split, start, stop)


def sources_of(given: Iterable[str], tasks: Sequence[str]) -> dict[str, Source]:
    """Source by task, in task order, from `TASK=SOURCE` entries; a bare SOURCE serves all others.

    Raises:
        UsageError: a task without data, with data twice, or data of an unknown task.
    """
    own: dict[str, Source] = {}
    shared: Source | None = None
    for text in given:
        task, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            if shared is not None:
                raise UsageError(
                    "--data without TASK= is given twice", fix="write --data TASK=SOURCE"
                )
            shared = Source.parse(text)
            continue
        if task not in tasks:
            raise UsageError(
                f"--data names the task {task!r}, which is not one of this run",
                fix=did_you_mean(task, tasks),
            )
        if task in own:
            raise UsageError(f"--data of task {task!r} is given twice", fix="give it once")
        own[task] = Source.parse(source)
    lacking = [task for task in tasks if task not in own]
    if lacking and shared is None:
        raise UsageError(f"no data for task {lacking[0]!r}", fix=f"pass --data {lacking[0]}=PATH")
    return {task: own.get(task) or shared for task in tasks if own.get(task) or shared}  # type: ignore[misc]
