"""Worker processes end with the run that started them, however it ends, and write nothing."""

from __future__ import annotations

import os
import signal
import time

import pytest

from svd_hybrid.compress.workers import Workers
from svd_hybrid.faults import run_guarded
from svd_hybrid.io.new_file import write_file
from svd_hybrid.io.staging import staged_file
from tests.faults import forks


@pytest.mark.parametrize(
    ("sent", "code", "work_s"),
    [(signal.SIGTERM, 143, 60.0), (signal.SIGKILL, -signal.SIGKILL, 1.0)],
    ids=["TERM", "KILL"],
)
def test_worker_processes_end_with_the_run(tmp_path, sent, code, work_s):
    """At once after a signal, which stops their work; after a kill, with the work they are at."""

    def body() -> None:
        os.setsid()
        with staged_file(tmp_path / "out", False) as path, Workers(2) as workers:
            write_file(path, b"half")
            list(workers.answers([0, 0], lambda _: (os.getpid, ())))
            (tmp_path / "begun").touch()
            list(workers.answers([0, 0], lambda _: (time.sleep, (work_s,))))

    child = forks.start(lambda: run_guarded(body, []))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    assert group_is_there(child)
    os.kill(child, sent)
    assert forks.wait(child) == code
    ended = time.monotonic()
    while group_is_there(child):
        assert time.monotonic() - ended < 20
        time.sleep(0.01)
    if sent == signal.SIGTERM:
        assert [path.name for path in tmp_path.iterdir()] == ["begun"]
    with staged_file(tmp_path / "out", False) as path:
        write_file(path, b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "out"]


def group_is_there(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True
