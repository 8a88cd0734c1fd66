"""Errors a user can cause or meet: what went wrong, where, and how to mend it.

Every class carries the exit code the command line ends with. Our own mistakes are never one of
these: they stay ordinary exceptions with a traceback, exit code 1.
"""

from __future__ import annotations

from typing import ClassVar


class SvdhError(Exception):
    """Base of every error that is the fault of the input, the machine or the call.

    Args:
        what: one sentence, lower case, no full stop: what is wrong.
        where: the file, tensor, task or option it concerns.
        fix: what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def facts(self) -> dict[str, str]:
        """What, where and fix, as `--json` shows them."""
        return {"error": self.what, "where": self.where, "fix": self.fix}


class UsageError(SvdhError):
    """A flag, key or value of the call is wrong."""

    exit_code = 2


class ParameterError(UsageError):
    """A parameter is outside its legal range."""


class UnknownNameError(UsageError):
    """A name is not in its table (method, codec, task, key)."""


class FamilyError(SvdhError):
    """The checkpoints cannot be read, or disagree with their base."""

    exit_code = 3


class ArtifactError(SvdhError):
    """The artifact is malformed, damaged or incomplete."""

    exit_code = 4


class BaseMismatchError(SvdhError):
    """The base given is not the one the artifact was made from."""

    exit_code = 5


class VersionError(SvdhError):
    """The artifact needs a version, codec or feature this reader does not have."""

    exit_code = 6


class LockedError(SvdhError):
    """Another run is writing the same output, or replaced an input while it was read."""

    exit_code = 7


class StorageError(SvdhError):
    """A path is missing, not writable, in the way, or the disk is full."""

    exit_code = 8


class UnsafeError(SvdhError):
    """The input asks for something a reader must not do (code in a pickle, a path outside)."""

    exit_code = 9


def shorten(names: list[str], most: int = 5) -> str:
    """The first `most` names in quotes, and how many more there are.

    >>> shorten(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
