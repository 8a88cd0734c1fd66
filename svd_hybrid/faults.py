"""From exceptions to one clear message and the right exit code, for every entry point."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

import click

from svd_hybrid.console import let_any_name_out, note, one_json
from svd_hybrid.errors import SvdhError
from svd_hybrid.system_errors import as_storage_error

OUR_BUG = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143
CLEAN = "nothing was left half-written"


def run_guarded(body: Callable[[], object], argv: list[str]) -> int:
    """Run a command; print what goes wrong to stderr and return the exit code.

    Args:
        body: the command.
        argv: its arguments; `--json` makes errors one JSON object, `--debug` adds tracebacks.
    """
    as_json, debug = "--json" in argv, "--debug" in argv
    let_any_name_out()
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        result = body()
    except SvdhError as error:
        return _report(error, error.exit_code, as_json, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "svdh"
        message = error.format_message().rstrip(".")
        what = message[:1].lower() + message[1:]
        return _report(SvdhError(what, fix=f"see {command} --help"), USAGE, as_json, debug)
    except click.ClickException as error:
        return _report(SvdhError(error.format_message()), error.exit_code, as_json, debug)
    except (KeyboardInterrupt, click.Abort):
        return _report(SvdhError(f"interrupted; {CLEAN}"), INTERRUPTED, as_json)
    except _TerminatedError:
        return _report(SvdhError(f"terminated; {CLEAN}"), TERMINATED, as_json)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except Exception as error:  # the last line of defence: our own mistakes
        refused = as_storage_error(error)
        if refused is not None:
            return _report(refused, refused.exit_code, as_json, debug)
        what = f"internal error: {type(error).__name__}: {error}"[:400]
        bug = SvdhError(what, fix="report it with the output of --debug")
        return _report(bug, OUR_BUG, as_json, debug)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return result if isinstance(result, int) else 0


class _TerminatedError(BaseException):
    """SIGTERM arrived; unwinds the stack so that staged output is removed."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _TerminatedError


def _report(error: SvdhError, code: int, as_json: bool, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    notes = getattr(error, "__notes__", [])
    if as_json:
        listed = {"notes": notes} if notes else {}
        print(one_json({**error.facts(), "code": code, **listed}), file=sys.stderr)
        return code
    for line in notes:
        note(line)
    print(f"error: {error}", file=sys.stderr)
    return code
