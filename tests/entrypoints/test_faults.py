"""From exceptions to exit codes, for every entry point."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import click
import pytest

from svd_hybrid import errors
from svd_hybrid.faults import run_guarded


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", [k for k in CLASSES if issubclass(k, errors.SvdhError)])
def test_every_error_ends_with_its_code(
    kind: type[errors.SvdhError], capsys: pytest.CaptureFixture[str]
):
    error = kind("it broke", where="here", fix="mend it")
    assert run_guarded(raising(error), []) == kind.exit_code
    assert capsys.readouterr().err == "error: it broke\n  where: here\n  fix:   mend it\n"
    assert run_guarded(raising(error), ["--json"]) == kind.exit_code
    assert json.loads(capsys.readouterr().err) == {**error.facts(), "code": error.exit_code}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (click.UsageError("No such thing."), 2),
        (click.FileError("x"), 1),
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (click.exceptions.Exit(3), 3),
        (ZeroDivisionError("ours"), 1),
    ],
)
def test_other_exceptions(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_guarded(raising(error), []) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_shows_its_traceback_only_with_debug(capsys: pytest.CaptureFixture[str]):
    assert run_guarded(raising(ZeroDivisionError("ours")), []) == 1
    assert "internal error: ZeroDivisionError: ours" in capsys.readouterr().err
    assert run_guarded(raising(ZeroDivisionError("ours")), ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_termination_unwinds(capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGTERM)
    assert run_guarded(lambda: os.kill(os.getpid(), signal.SIGTERM), []) == 143
    assert "nothing was left half-written" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_body_that_returns_a_number_ends_with_it():
    assert run_guarded(lambda: 4, []) == 4
    assert run_guarded(lambda: "path", []) == 0


@pytest.mark.parametrize(("module", "code"), [("sklearn.cluster", 2), ("svd_hybrid.nothing", 1)])
def test_a_package_that_is_missing_is_named_and_is_no_bug(
    module: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert run_guarded(raising(error), []) == code
    said = capsys.readouterr().err
    assert ("pip install svd-hybrid" in said) == (code == 2)
