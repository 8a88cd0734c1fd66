"""Patterns over tensor names, as configurations write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from svd_hybrid.errors import ParameterError

REGEX = "re:"


def matches(pattern: str, name: str) -> bool:
    """Whether a tensor name fits a glob (`*.mlp.*`), or a regular expression after `re:`.

    A glob has to fit the whole name; a regular expression is searched for in it.

    Raises:
        ParameterError: an empty pattern, or a malformed regular expression.

    >>> matches("*.bias", "fc.bias"), matches("re:^fc", "fc.bias"), matches("fc", "fc.bias")
    (True, True, False)
    """
    if not pattern.removeprefix(REGEX):
        raise ParameterError("a tensor pattern is empty", fix="write a glob, or re:EXPRESSION")
    if not pattern.startswith(REGEX):
        return fnmatchcase(name, pattern)
    try:
        return re.search(pattern.removeprefix(REGEX), name) is not None
    except re.error as error:
        raise ParameterError(
            f"tensor pattern {pattern!r} is no regular expression: {error}"
        ) from error


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether at least one of the patterns fits."""
    return any(matches(pattern, name) for pattern in patterns)
