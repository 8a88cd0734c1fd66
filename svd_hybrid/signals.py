"""SIGINT, SIGTERM and SIGHUP end a run once, cleanly, and within seconds.

The first signal raises StoppedError in the main thread, which unwinds and removes what was staged;
further ones change nothing. While an output is put in place (`shielded`) it waits. If the main
thread has not come back after GRACE_S, from a long call into a library or because the exception was
lost, a watching thread removes what was staged and ends the process.

A signal that the parent has told us to ignore (nohup, a shell's background jobs) stays ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = {129: "terminal closed", 130: "interrupted", 143: "terminated"}

GRACE_S = 3.0
"""How long the main thread may take to unwind; promised is an end within 5 s."""

_cleanups: dict[int, Callable[[], None]] = {}
_active: Stopper | None = None


class StoppedError(BaseException):
    """A signal arrived; `code` is the exit code it ends with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def exit_on_signals() -> None:
    """End at once on a signal: for a program's first and last moments, with nothing staged."""
    for number in EXIT_CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, _frame: FrameType | None) -> None:
    code = EXIT_CODES[signal.Signals(number)]
    text = f"{WORDS[code]}; nothing was left half-written"
    if "--json" in sys.argv:
        line = f'{{"error": "{text}", "where": "", "fix": "", "code": {code}}}\n'
    else:
        line = f"error: {text}\n"
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(code)


def on_stop(cleanup: Callable[[], None]) -> Callable[[], None]:
    """Have `cleanup` run if a signal ends the process; returns what takes that back."""
    key = id(cleanup)
    _cleanups[key] = cleanup

    def take_back() -> None:
        _cleanups.pop(key, None)

    return take_back


def clean_up() -> None:
    """Run what `on_stop` was told and nobody took back."""
    while _cleanups:
        with suppress(KeyError):
            _cleanups.popitem()[1]()


@contextmanager
def shielded() -> Iterator[None]:
    """Hold signals back: what is inside happens whole, and StoppedError is raised after it."""
    stopper = _active
    if stopper is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    stopper.shields += 1
    try:
        yield
    finally:
        stopper.shields -= 1
        stopper.deliver()


class Stopper:
    """Catches the signals inside its block; only in the main thread, else it does nothing.

    Args:
        report: says on stderr that the run ends with that code.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self.report = report
        self.code: int | None = None
        self.shields = 0
        self._quiet = False
        self._before: dict[signal.Signals, Any] = {}
        self._back = threading.Event()

    def deliver(self) -> None:
        """Raise StoppedError if a signal came, is not yet raised, and nothing shields from it."""
        if self.code is not None and not self._quiet and not self.shields:
            self._quiet = True
            raise StoppedError(self.code)

    def disarm(self) -> None:
        """Raise nothing any more."""
        self._quiet = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.code is None:
            self.code = EXIT_CODES[signal.Signals(number)]
        self.deliver()

    def __enter__(self) -> Self:
        global _active
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        threading.Thread(target=self._watch, name="svdh-signals", daemon=True).start()
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._outer, _active = _active, self
        for number in EXIT_CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _active
        self._quiet = True
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        _active = self._outer
        self._back.set()
        os.close(self._write)  # which ends the watching thread

    def _watch(self) -> None:
        with os.fdopen(self._read, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] in EXIT_CODES:
                    break
            if not number or self._back.wait(GRACE_S):
                return
        if not self.shields:
            clean_up()
        code = EXIT_CODES[signal.Signals(number[0])]
        self.report(code)
        os._exit(code)
