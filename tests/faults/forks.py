"""Commands in child processes that need no start: forked once torch is there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch

from svd_hybrid.signals import exit_on_signals


def start(body: Callable[[], int]) -> int:
    """Process id of a child that runs `body`, set up as a program of ours is."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        exit_on_signals()
        torch.set_num_threads(1)
        code = body()
    finally:
        os._exit(code)


def wait(child: int, most_s: float = 20.0) -> int:
    """Exit code of a child; negative where a signal ended it."""
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"child did not end in {most_s} s")


def run(body: Callable[[], int]) -> int:
    """Exit code of a child that runs `body`."""
    return wait(start(body))
