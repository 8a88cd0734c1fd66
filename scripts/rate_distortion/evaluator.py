"""Scores of many models by one family's `evaluate.py`, whose imports are paid for once.

`Evaluator` starts this file as a process. It imports the evaluator as a module and calls its
`main()` for every model, with the arguments in `sys.argv` and what it prints caught. An evaluator
without a `main()` is run as a program each time. One JSON line in, one out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

TASK_OPTIONS = ("--tasks", "--domains")
LIMIT = "--limit"


class Evaluator:
    """A context with a process that scores models; it starts with the first of them.

    Args:
        path: the evaluator.
        options: further arguments of every call.
        limit: examples per task, where the evaluator can be limited; None for all.
    """

    def __init__(self, path: Path, options: Sequence[str] = (), limit: int | None = None) -> None:
        self.path = path
        self.options = list(options)
        text = path.read_text(encoding="utf-8")
        self._task_option = next((o for o in TASK_OPTIONS if f'"{o}"' in text), None)
        if limit is not None and f'"{LIMIT}"' in text:
            self.options += [LIMIT, str(limit)]
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed on exit)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def scores(self, model: Path, tasks: Sequence[str]) -> dict[str, float]:
        """Task → score of one model.

        Raises:
            RuntimeError: the evaluator failed, with the end of what it said.
        """
        arguments = [str(model), *self.options]
        if self._task_option:
            arguments += [self._task_option, ",".join(tasks)]
        answer = self._ask(arguments)
        if answer is None or "error" in answer:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            reason = answer["error"] if answer else "the process ended"
            raise RuntimeError(f"{self.path} {' '.join(arguments)} failed: {reason}\n{said}")
        return {task: float(answer["scores"][task]) for task in tasks}

    def _ask(self, arguments: list[str]) -> dict[str, dict[str, float]] | None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-B", __file__, str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(arguments), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


# --- in the process -------------------------------------------------------------------------------


def load_main(path: Path) -> Callable[[], object] | None:
    """The evaluator's `main`, or None where it can only be run as a program."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("family_evaluator", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.argv = [str(path)]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (SystemExit, Exception) as error:  # works on import, with the arguments of a program
        print(f"cannot be imported: {error}", file=sys.stderr)
        return None
    found = getattr(module, "main", None)
    return found if callable(found) else None


def printed(path: Path, main: Callable[[], object] | None, arguments: list[str]) -> str:
    """What the evaluator prints for these arguments."""
    if main is None:
        command = [sys.executable, "-B", str(path), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout
    sys.argv = [str(path), *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main()
    return output.getvalue()


def serve(path: Path) -> None:
    """Answer every line of stdin with a line on what was stdout."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        main = load_main(path)
        for line in sys.stdin:
            try:
                last = printed(path, main, json.loads(line)).splitlines()[-1]
                answer = {"scores": json.loads(last)}
            except (SystemExit, Exception) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
