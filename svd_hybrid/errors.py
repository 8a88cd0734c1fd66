"""Errors a user can cause or meet: what went wrong, where, and how to mend it.

Every class carries the exit code the command line ends with. Our own mistakes are never one of
these: they stay ordinary exceptions with a traceback, exit code 1.
"""

from __future__ import annotations

import json
from typing import ClassVar

from svd_hybrid import __version__

MOST_CHARACTERS = 480
"""Of a message, as text or as JSON; longer ones lose the middle of their longest field."""
ELLIPSIS = " … "


class SvdhError(Exception):
    """Base of every error that is the fault of the input, the machine or the call.

    Args:
        what: one sentence, lower case, no full stop: what is wrong.
        where: the file, tensor, task or option it concerns.
        fix: what to do about it; left out, what helps against most errors of the class.
    """

    exit_code: ClassVar[int] = 1
    usual_fix: ClassVar[str] = ""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        facts = self.facts()
        lines = [facts["error"]]
        if facts["where"]:
            lines.append(f"  where: {facts['where']}")
        if facts["fix"]:
            lines.append(f"  fix:   {facts['fix']}")
        return "\n".join(lines)

    def facts(self) -> dict[str, str]:
        """What, where and fix, as `--json` shows them: short, and fit to be put on a terminal."""
        texts = {"error": self.what, "where": self.where, "fix": self.fix or self.usual_fix}
        return fitted({key: printable(text) for key, text in texts.items()})


class UsageError(SvdhError):
    """A flag, key or value of the call is wrong."""

    exit_code = 2
    usual_fix = "see --help of the command"


class ParameterError(UsageError):
    """A parameter is outside its legal range."""


class UnknownNameError(UsageError):
    """A name is not in its table (method, codec, task, key)."""


class FamilyError(SvdhError):
    """The checkpoints cannot be read, or disagree with their base."""

    exit_code = 3
    usual_fix = "repair the checkpoint, or copy or download it again"


class DataError(FamilyError):
    """Images, text or labels cannot be read, or are not what the task needs."""

    usual_fix = "repair the data, or pass others"


class ArtifactError(SvdhError):
    """The artifact is malformed, damaged or incomplete."""

    exit_code = 4
    usual_fix = "copy or download the artifact again"


class BaseMismatchError(SvdhError):
    """The base given is not the one the artifact was made from."""

    exit_code = 5
    usual_fix = "pass the base the artifact was compressed with"


class VersionError(SvdhError):
    """The artifact needs a version, codec or feature this reader does not have."""

    exit_code = 6
    usual_fix = f"read it with an svdh newer than {__version__}: pip install --upgrade svd-hybrid"


class LockedError(SvdhError):
    """Another run is writing the same output, or replaced an input while it was read."""

    exit_code = 7
    usual_fix = "run it again when the other run has ended"


class StorageError(SvdhError):
    """A path is missing, not writable, in the way, or the disk is full."""

    exit_code = 8
    usual_fix = "check the path and its permissions"


class UnsafeError(SvdhError):
    """The input asks for something a reader must not do (code in a pickle, a path outside)."""

    exit_code = 9
    usual_fix = "do not use this file; ask whoever made it for one that holds data alone"


def printable(text: str) -> str:
    r"""The text with every character that a terminal could obey written as an escape.

    >>> printable("a\x1b[31m\u202eb")
    'a\\x1b[31m\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fitted(texts: dict[str, str]) -> dict[str, str]:
    """The texts, the longest cut in their middle until the whole fits into one message."""
    texts = {key: _cut(text, MOST_CHARACTERS) for key, text in texts.items()}
    while len(json.dumps(texts, ensure_ascii=False)) > MOST_CHARACTERS:
        longest = max(texts, key=lambda key: len(texts[key]))
        texts[longest] = _cut(texts[longest], len(texts[longest]) * 7 // 8)
    return texts


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    kept = (most - len(ELLIPSIS)) // 2
    return text[:kept] + ELLIPSIS + text[len(text) - kept :]


def shorten(names: list[str], most: int = 5) -> str:
    """The first `most` names in quotes, and how many more there are.

    >>> shorten(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
