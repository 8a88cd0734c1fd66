"""A worker process: calls on stdin, answers on stdout, until stdin ends (`workers` starts it)."""

from __future__ import annotations

import os
import signal
import traceback
from typing import Any

import torch

from svd_hybrid.compress.messages import receive, send
from svd_hybrid.errors import SvdhError
from svd_hybrid.system_errors import as_storage_error


def main() -> None:
    """Answer calls."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this one ends it
    torch.set_num_threads(1)
    with os.fdopen(os.dup(0), "rb") as calls, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        while True:
            try:
                function, arguments = receive(calls)
            except EOFError:
                return
            try:
                send(answers, _answer(function, arguments))
            except BrokenPipeError:
                return


def _answer(function: Any, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """What the function returns, and None; or None, and what it raised."""
    try:
        return function(*arguments), None
    except SvdhError as error:
        return None, error
    except Exception as error:
        return None, as_storage_error(error) or traceback.format_exc()


if __name__ == "__main__":
    main()
