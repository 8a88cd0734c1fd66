"""Two writers of one output: one waits, or ends with exit code 7; no update is lost."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from svd_hybrid import Artifact
from svd_hybrid.errors import LockedError
from svd_hybrid.io import locks
from svd_hybrid.io.locks import locked
from svd_hybrid.io.storage import Storage, using
from tests.families import FamilyFiles, write_family
from tests.faults import forks
from tests.faults.cases import append, compress, make_inputs, reload, run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(locks, "WAIT_S", 0.1)


@pytest.mark.parametrize("verb", ["compress", "append", "reload"])
def test_a_second_writer_ends_with_7_and_says_who_holds_it(tmp_path, inputs, hurried, capsys, verb):
    target = tmp_path / "out"
    if verb == "append":
        assert run(compress(inputs, "ant", target)) == 0
    before = sorted(tmp_path.rglob("*"))
    argv = {
        "compress": compress(inputs, "ant", target),
        "append": [*append(inputs, target), "--overwrite"],
        "reload": reload(inputs, inputs.ant, target),
    }[verb]
    capsys.readouterr()
    with locked(target):
        assert run(argv) == 7
        said = capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / ".out.lock"])
    assert "error: another run is writing this output\n" in said
    assert f"{target} (process {os.getpid()} on " in said
    assert sorted(tmp_path.rglob("*")) == before
    assert run(argv) == 0


def test_a_second_writer_waits_for_one_that_ends_soon(tmp_path):
    entered, times = threading.Event(), {}

    def hold() -> None:
        with locked(tmp_path / "out"):
            entered.set()
            time.sleep(0.2)
            times["left"] = time.monotonic()

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    with locked(tmp_path / "out") as alone:
        assert alone
        assert time.monotonic() >= times["left"]
    holder.join()
    assert list(tmp_path.iterdir()) == []


def test_no_two_hold_it_however_often_the_file_comes_and_goes(tmp_path):
    count = tmp_path / "count"
    count.write_text("0")

    def add() -> None:
        for _ in range(15):
            with locked(tmp_path / "out"):
                value = int(count.read_text())
                time.sleep(0.0005)
                count.write_text(str(value + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


class Releasing(Storage):
    """The holder removes the lock file between our opening it and our locking it."""

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path

    def lock(self, descriptor: int) -> None:
        if self.path:
            self.path.unlink()
            self.path = None
        super().lock(descriptor)


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path, hurried):
    """Another would make the file anew, and hold it too."""
    with using(Releasing(tmp_path / ".out.lock")), locked(tmp_path / "out"):
        assert (tmp_path / ".out.lock").exists()
        with pytest.raises(LockedError), locked(tmp_path / "out"):
            pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    def die() -> int:
        with locked(tmp_path / "out"):
            os.kill(os.getpid(), 9)
        return 0

    assert forks.run(die) == -9
    assert (tmp_path / ".out.lock").exists()
    with locked(tmp_path / "out") as alone:
        assert alone
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_locks_place_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".out.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "out"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


class Interloper(Storage):
    """Runs another command to its end just before the first lock is taken."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv

    def lock(self, descriptor: int) -> None:
        argv, self.argv = self.argv, []
        if argv:
            assert run(argv) == 0
        super().lock(descriptor)


def grow(inputs: FamilyFiles, task: str, artifact: Path, *more: str) -> list[str]:
    files = ["--base", str(inputs.base), "--task", f"{task}={inputs.tasks[task]}"]
    return ["compress", "-q", *files, "--from-artifact", str(artifact), *more, "--overwrite"]


@pytest.mark.parametrize("verb", ["append", "merge"])
def test_what_another_run_added_meanwhile_is_never_lost(tmp_path, capsys, verb):
    family = write_family(tmp_path / "family", {"w": (4, 6)}, ("ant", "bee", "cat"))
    art = tmp_path / "art"
    files = ["--base", str(family.base), "--task", f"ant={family.tasks['ant']}"]
    assert run(["compress", "-q", *files, "--profile", "fast", "--artifact-dir", str(art)]) == 0
    bee = grow(family, "bee", art, "--append", "--artifact-dir", str(art))
    cat = grow(family, "cat", art, "--append", "--artifact-dir", str(art))
    if verb == "merge":
        onto = ["--from-artifact", str(art), "--artifact-dir", str(art), "--overwrite"]
        cat = ["compress", "-q", "--base", str(family.base), "--method", "ties", *onto]
    capsys.readouterr()
    with using(Interloper(bee)):
        from svd_hybrid.cli.app import main

        assert main(cat) == 7
    assert "was replaced by another run while this one read it" in capsys.readouterr().err
    assert Artifact.open(art).tasks == ("ant", "bee")
    assert run(cat) == 0
    opened = Artifact.open(art)
    assert opened.tasks == (("ant", "bee", "cat") if verb == "append" else ("ant", "bee"))


def test_the_error_has_its_own_exit_code():
    assert LockedError.exit_code == 7
