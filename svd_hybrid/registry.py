"""Immutable tables of named things, built once from an explicit list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from svd_hybrid.errors import UnknownNameError


class Named(Protocol):
    """Anything with an id."""

    @property
    def name(self) -> str:
        """The id, kebab-case."""


T = TypeVar("T", bound=Named)

MOST_LISTED = 12


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known names, or lists the first of them.

    >>> did_you_mean("svd_hybrd", ["svd-hybrid", "ties"])
    "did you mean 'svd-hybrid'?"
    """
    names = sorted(known)
    folded = {_fold(known_name): known_name for known_name in names}
    close = difflib.get_close_matches(_fold(name), list(folded), n=2, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(folded[c]) for c in close) + "?"
    more = f", and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return "known: " + ", ".join(names[:MOST_LISTED]) + more


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


class Registry(Mapping[str, T]):
    """Name → item; a miss raises UnknownNameError with the closest names.

    Spellings that differ only in case or in `_` against `-` find the same item, because users of
    the original commands write `svd_hybrid`; so do an item's `aliases`, if it has any.
    """

    def __init__(self, kind: str, items: Iterable[T]) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        for item in items:
            if item.name in self._items:
                raise ValueError(f"{kind} {item.name!r} is registered twice")
            self._items[item.name] = item
        self._names = {_fold(name): name for name in self._items}
        for item in self._items.values():
            for alias in getattr(item, "aliases", ()):
                if self._names.setdefault(_fold(alias), item.name) != item.name:
                    raise ValueError(f"{kind} {alias!r} would name two items")

    def __getitem__(self, name: str) -> T:
        folded = _fold(name)
        if folded not in self._names:
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}", fix=did_you_mean(name, self._items)
            )
        return self._items[self._names[folded]]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _fold(name) in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
