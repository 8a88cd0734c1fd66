"""From exceptions to one clear message and the right exit code, for every entry point."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import click

from svd_hybrid.console import let_any_name_out, note, one_json
from svd_hybrid.errors import StorageError, SvdhError, UsageError
from svd_hybrid.signals import WORDS, StoppedError, Stopper, clean_up
from svd_hybrid.system_errors import as_storage_error

OUR_BUG = 1
USAGE = 2
INTERRUPTED = 130
CLEAN = "nothing was left half-written"


def run_guarded(body: Callable[[], object], argv: list[str]) -> int:
    """Run a command; print what goes wrong to stderr and return the exit code.

    Args:
        body: the command.
        argv: its arguments; `--json` makes errors one JSON object, `--debug` adds tracebacks.
    """
    as_json, debug = "--json" in argv, "--debug" in argv
    let_any_name_out()
    try:
        return _stoppable(body, as_json, debug)
    except OSError as error:  # no pipe is to be had, by which signals are told
        refused = as_storage_error(error) or StorageError(str(error))
        return _report(refused, refused.exit_code, as_json, debug)


def _stoppable(body: Callable[[], object], as_json: bool, debug: bool) -> int:
    """Run it guarded, until a signal comes."""

    def at_the_limit(code: int) -> None:
        os.write(2, (_text(_stopped(code), code, as_json) + "\n").encode())

    with Stopper(at_the_limit) as stopper:
        try:
            code = _guarded(lambda: _call(body, stopper), as_json, debug)
            stopper.disarm()
        except StoppedError as stop:  # while another error was being reported
            code = stop.code
        if stopper.code is not None:
            clean_up()
    return code


def _guarded(body: Callable[[], object], as_json: bool, debug: bool) -> int:
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
        return _report(_stopped(INTERRUPTED), INTERRUPTED, as_json)
    except StoppedError as stop:
        return _report(_stopped(stop.code), stop.code, as_json)
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
        if isinstance(error, ModuleNotFoundError) and not _is_ours(error.name):
            missing = UsageError(
                f"the package {error.name!r} is not installed", fix="run pip install svd-hybrid"
            )
            return _report(missing, missing.exit_code, as_json, debug)
        what = f"internal error: {type(error).__name__}: {error}"[:400]
        bug = SvdhError(what, fix="report it with the output of --debug")
        return _report(bug, OUR_BUG, as_json, debug)
    return result if isinstance(result, int) else 0


def _is_ours(module: str | None) -> bool:
    return module is None or module.partition(".")[0] == __package__


def _call(body: Callable[[], object], stopper: Stopper) -> object:
    """Run it, and see that what it printed is out."""
    try:
        result = body()
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # what click makes of one
            raise error.__context__ from None
        raise
    except Exception as error:
        if stopper.code is not None:  # a library made an error of its own of StoppedError
            raise StoppedError(stopper.code) from error
        raise
    return result


def _stopped(code: int) -> SvdhError:
    return SvdhError(f"{WORDS[code]}; {CLEAN}")


def _report(error: SvdhError, code: int, as_json: bool, debug: bool = False) -> int:
    with contextlib.suppress(OSError):  # nobody reads stderr any more
        if debug:
            traceback.print_exc()
        notes = getattr(error, "__notes__", [])
        if not as_json:
            for line in notes:
                note(line)
        print(_text(error, code, as_json, notes), file=sys.stderr)
    return code


def _text(error: SvdhError, code: int, as_json: bool, notes: Sequence[str] = ()) -> str:
    if not as_json:
        return f"error: {error}"
    return one_json({**error.facts(), "code": code, **({"notes": list(notes)} if notes else {})})
