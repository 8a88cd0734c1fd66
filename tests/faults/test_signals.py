"""SIGINT, SIGTERM and SIGHUP: 130, 143, 129 within seconds, at any moment, and nothing left."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from svd_hybrid import signals
from svd_hybrid.faults import run_guarded
from svd_hybrid.io.new_file import write_file
from svd_hybrid.io.staging import staged_file
from svd_hybrid.io.storage import Storage, using
from svd_hybrid.signals import StoppedError, shielded
from tests.faults import forks
from tests.faults.cases import CASES, Place, make_inputs

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
EVERY = pytest.mark.parametrize(("sent", "code"), CODES.items(), ids=lambda value: str(int(value)))
MOST_S = 5.0


@EVERY
def test_a_signal_unwinds_and_nothing_is_left(tmp_path, capsys, sent, code):
    def body() -> None:
        with staged_file(tmp_path / "out", False) as path:
            write_file(path, b"half")
            signal.raise_signal(sent)
            pytest.fail("it went on")

    before = [signal.getsignal(number) for number in CODES]
    assert run_guarded(body, []) == code
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.endswith("; nothing was left half-written\n")
    assert [signal.getsignal(number) for number in CODES] == before


@EVERY
def test_a_second_signal_does_not_disturb_the_cleaning(tmp_path, sent, code):
    class Signalling(Storage):
        def remove_folder(self, path: Path) -> None:
            signal.raise_signal(sent)
            super().remove_folder(path)

        def remove_file(self, path: Path) -> None:
            signal.raise_signal(signal.SIGINT)
            super().remove_file(path)

    def body() -> None:
        with staged_file(tmp_path / "out", False) as path:
            write_file(path, b"half")
            signal.raise_signal(sent)

    with using(Signalling()):
        assert run_guarded(body, []) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [name for name in vars(Storage) if not name.startswith("_")])
@pytest.mark.parametrize("after", [False, True])
def test_a_signal_at_any_call(tmp_path, call, after):
    """Also between the lock and its note, in the rename, and while the old output is removed."""
    real = getattr(Storage, call)
    sent = []

    def signalling(self, *args):
        if after:
            result = real(self, *args)
        if not sent:
            sent.append(call)
            signal.raise_signal(signal.SIGTERM)
        return result if after else real(self, *args)

    def body() -> None:
        with staged_file(tmp_path / "out", True) as path:
            write_file(path, b"new")

    (tmp_path / "out").write_bytes(b"old")
    disk = type("Signalling", (Storage,), {call: signalling})()
    with using(disk):
        code = run_guarded(body, [])
    assert code == (143 if sent else 0)
    assert (tmp_path / "out").read_bytes() in (b"old", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_shield_holds_a_signal_back_until_its_end():
    done = []

    def body() -> None:
        with shielded():
            signal.raise_signal(signal.SIGTERM)
            with shielded():
                done.append("inside")
            done.append("still inside")
        done.append("after")

    assert run_guarded(body, []) == 143
    assert done == ["inside", "still inside"]


def test_an_error_that_a_library_made_of_the_signal_is_no_error_of_ours(capsys):
    def body() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except StoppedError:
            raise RuntimeError("enforce fail at inline_container.cc") from None

    assert run_guarded(body, []) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was left half-written\n"


def test_a_signal_that_is_lost_ends_the_process_all_the_same(tmp_path, monkeypatch):
    """As when it arrives in a destructor, or the main thread stays inside a library."""
    monkeypatch.setattr(signals, "GRACE_S", 0.3)

    def body() -> None:
        with staged_file(tmp_path / "out", False) as path:
            write_file(path, b"half")
            (tmp_path / "begun").touch()
            while True:
                try:
                    time.sleep(1)
                except StoppedError:
                    continue

    child = forks.start(lambda: run_guarded(body, []))
    while not (tmp_path / "begun").exists():
        time.sleep(0.005)
    began = time.monotonic()
    os.kill(child, signal.SIGTERM)
    assert forks.wait(child) == 143
    assert 0.2 < time.monotonic() - began < MOST_S
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


def test_a_call_that_does_not_come_back_ends_with_the_process(tmp_path, monkeypatch):
    """A library that computes for minutes; here it waits for a lock that it has itself."""
    monkeypatch.setattr(signals, "GRACE_S", 0.3)
    mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)

    def body() -> None:
        with staged_file(tmp_path / "out", False) as path:
            write_file(path, b"half")
            library.pthread_mutex_lock(mutex)
            (tmp_path / "begun").touch()
            library.pthread_mutex_lock(mutex)

    child = forks.start(lambda: run_guarded(body, []))
    while not (tmp_path / "begun").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGINT)
    assert forks.wait(child, MOST_S) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


def test_worker_threads_do_not_hold_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "GRACE_S", 0.3)

    def body() -> None:
        worker = threading.Thread(target=time.sleep, args=(60,))
        worker.start()
        (tmp_path / "begun").touch()
        worker.join()

    child = forks.start(lambda: run_guarded(body, []))
    while not (tmp_path / "begun").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGINT)
    began = time.monotonic()
    assert forks.wait(child) == 130
    assert time.monotonic() - began < MOST_S


def test_what_the_parent_ignores_stays_ignored():
    """nohup, and the background jobs of a shell."""

    def body() -> int:
        for number in CODES:
            signal.signal(number, signal.SIG_IGN)
        signals.exit_on_signals()

        def work() -> None:
            for number in CODES:
                signal.raise_signal(number)

        return run_guarded(work, [])

    assert forks.run(body) == 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("case", ["compress --overwrite", "append", "reload to a folder"])
def test_at_random_moments_of_a_run(tmp_path, inputs, case):
    place = Place(tmp_path, CASES[case], inputs)
    began = time.monotonic()
    place.reset()
    assert forks.run(place.run) == 0
    length = time.monotonic() - began
    chance = random.Random(0)
    stopped = 0
    for _ in range(12):
        place.reset()
        sent = chance.choice(list(CODES))
        child = forks.start(place.run)
        time.sleep(chance.uniform(0, length))
        os.kill(child, sent)
        began = time.monotonic()
        code = forks.wait(child)
        assert time.monotonic() - began < MOST_S
        assert code in (0, CODES[sent], -sent)  # the last: before the child was set up
        stopped += code == CODES[sent]
        assert place.state() in ("old", "new")
        assert place.state() == "new" or code != 0
        assert place.beside() == []
    assert stopped, "no signal came in time"


@EVERY
def test_from_the_first_moment_of_a_process(sent, code):
    """While modules are still imported; before that Python itself has not begun."""
    text = (
        "from svd_hybrid import __main__, signals; signals.exit_on_signals(); print(flush=True); "
    )
    text += "import torch; __main__.main()"
    with subprocess.Popen(
        [sys.executable, "-c", text, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.readline()
        child.send_signal(sent)
        assert child.wait(MOST_S) == code
        assert child.stderr.read().startswith('{"error": "')


def test_a_reader_that_goes_away_is_no_error():
    argv = [sys.executable, "-m", "svd_hybrid", "methods"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_result_that_cannot_be_printed_is_an_error():
    argv = [sys.executable, "-m", "svd_hybrid", "methods"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 8
    assert done.stderr.startswith("error: the system refuses: No space left on device\n")
