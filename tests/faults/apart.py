"""Running one command in a forked process: its exit code, words, seconds and memory."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from svd_hybrid.cli.app import main

LIMIT_S = 60
CRASHED = 99


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Args:
        code: exit code; negative for a signal.
        out, err: what it printed.
        seconds: of CPU.
        peak_bytes: most memory it had resident, what it shares with this process included.
    """

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int


def run_apart(argv: Sequence[object]) -> Outcome:
    """Run one command line in a copy of this process."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("out", "err")]
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_the_command([str(word) for word in argv], paths)
        _, status, usage = os.wait4(child, 0)
        assert time.monotonic() - start < LIMIT_S + 10
        texts = [path.read_text("utf-8", errors="surrogateescape") for path in paths]
    code = os.waitstatus_to_exitcode(status)
    seconds = usage.ru_utime + usage.ru_stime
    return Outcome(code, texts[0], texts[1], seconds, usage.ru_maxrss * 1024)


def _be_the_command(argv: list[str], paths: list[Path]) -> None:
    code = CRASHED
    try:
        for descriptor, path in enumerate(paths, start=1):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), descriptor)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
        signal.alarm(LIMIT_S)
        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)
