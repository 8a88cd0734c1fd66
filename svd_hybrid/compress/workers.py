"""Calls that several processes work on at once, answered in the order in which they were made.

A call is a function of this package with its arguments; what it answers depends on them alone, so
the number of processes changes no bit. Processes and not threads, for half of the encoder's time is
Python's own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast

from svd_hybrid.compress.config import MOST_WORKERS
from svd_hybrid.compress.messages import receive, send
from svd_hybrid.errors import StorageError, SvdhError, UsageError
from svd_hybrid.signals import EXIT_CODES

AHEAD = 2
"""Calls under way or waiting, for each process: what they are given lies in memory."""
MODULE = "svd_hybrid.compress.worker"

Item = TypeVar("Item")
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Workers:
    """Processes that are started when they are first needed and ended with the block.

    Args:
        count: of processes; with one, calls are made in this process.

    Raises:
        UsageError: no number of processes.
    """

    def __init__(self, count: int = 1) -> None:
        if not 1 <= count <= MOST_WORKERS:
            raise UsageError(f"workers is {count}, outside 1..{MOST_WORKERS}")
        self.count = count
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._all: list[_Worker] = []
        self._threads: ThreadPoolExecutor | None = None

    def answers(
        self, items: Iterable[Item], call_of: Callable[[Item], Call | None]
    ) -> Iterator[tuple[Item, Any]]:
        """Every item with the answer to its call, in order; items are taken as they are needed.

        Args:
            items: anything.
            call_of: the call of an item; None for none, whose answer is None.

        Raises:
            SvdhError: what a call raised.
            StorageError: a process ended by itself.
        """
        if self.count == 1:
            for item in items:
                call = call_of(item)
                yield item, None if call is None else call[0](*call[1])
                del item, call  # before memory is taken for the next
            return
        waiting: deque[tuple[Item, Future[Any] | None]] = deque()
        for item in items:
            call = call_of(item)
            waiting.append((item, None if call is None else self._submit(call)))
            del item, call  # their memory belongs to whoever gets the answer
            if len(waiting) >= AHEAD * self.count:
                yield _answered(waiting.popleft())
        while waiting:
            yield _answered(waiting.popleft())

    def _submit(self, call: Call) -> Future[Any]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.count, "svdh-worker")
            for _ in range(self.count):
                self._all.append(_Worker())
                self._idle.put(self._all[-1])
        return self._threads.submit(self._ask, call)

    def _ask(self, call: Call) -> Any:
        worker = self._idle.get()
        try:
            return worker.answer(call)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._all:
            worker.end()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


def _answered(waiting: tuple[Item, Future[Any] | None]) -> tuple[Item, Any]:
    item, future = waiting
    return item, None if future is None else future.result()


class _Worker:
    """One process."""

    def __init__(self) -> None:
        paths = [path for path in sys.path if path]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)  # a process inherits it
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._calls = cast("BinaryIO", self._process.stdin)
        self._answers = cast("BinaryIO", self._process.stdout)

    def answer(self, call: Call) -> Any:
        try:
            send(self._calls, call)
            answer, error = receive(self._answers)
        except (EOFError, OSError) as failure:
            code = self._process.wait()
            raise StorageError(
                f"a worker process ended by itself ({_how(code)})",
                fix="if memory ran out, pass fewer --workers",
            ) from failure
        if isinstance(error, SvdhError):
            raise error
        if error is not None:
            raise RuntimeError(f"in a worker process:\n{error}")
        return answer

    def end(self) -> None:
        """Kill it: what it was doing is not wanted any more."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError):  # it ended before it had read all
            self._calls.close()
        self._answers.close()


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
