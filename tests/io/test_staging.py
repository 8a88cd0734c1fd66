"""All or nothing: whatever happens while an output is built, the target is whole or untouched."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from svd_hybrid.errors import ArtifactError, StorageError
from svd_hybrid.io.new_file import make_folder, write_file
from svd_hybrid.io.outputs import OutputKind
from svd_hybrid.io.staging import staged_directory, staged_file
from svd_hybrid.io.storage import EXCHANGE, Storage, using
from tests.faults.faulty_storage import FaultyStorage

KIND = OutputKind("thing", ("sub/", "other"), ("sub/content",))


def build(
    target: Path,
    kind: str,
    overwrite: bool = False,
    fail: BaseException | None = None,
    meanwhile: Path | None = None,
):
    """Stage `new` as a file, or as a directory that holds it; somebody else writes `meanwhile`."""
    if kind == "file":
        with staged_file(target, overwrite) as path:
            write_file(path, b"new")
            if meanwhile:
                meanwhile.write_text("mine")
            if fail:
                raise fail
    else:
        with staged_directory(target, overwrite, KIND) as folder:
            make_folder(folder / "sub")
            write_file(folder / "sub" / "content", b"new")
            if meanwhile:
                meanwhile.write_text("mine")
            if fail:
                raise fail


def content(target: Path) -> str:
    return (target / "sub" / "content" if target.is_dir() else target).read_text()


def occupy(target: Path, kind: str) -> None:
    """Something old in the way."""
    if kind == "file":
        target.write_text("old")
    elif kind == "directory":
        (target / "sub").mkdir(parents=True)
        (target / "sub" / "content").write_text("old")
        (target / "other").write_text("old too")
    else:
        elsewhere = target.parent / "elsewhere"
        occupy(elsewhere, kind.removeprefix("link to "))
        target.symlink_to(elsewhere)


KINDS = pytest.mark.parametrize("kind", ["file", "directory"])
IN_THE_WAY = pytest.mark.parametrize(
    ("kind", "old"),
    [
        (kind, old)
        for kind in ("file", "directory")
        for old in (kind, "link to file", "link to directory")
    ],
)


@KINDS
def test_the_target_appears_when_the_block_ends(tmp_path, kind):
    target = tmp_path / "out"
    build(target, kind)
    assert content(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


@KINDS
def test_the_target_is_not_visible_before(tmp_path, kind):
    target = tmp_path / "out"
    staged = staged_file(target, False) if kind == "file" else staged_directory(target, False, KIND)
    with staged as path:
        assert not target.exists()
        assert path.parent == tmp_path or path.parent.parent == tmp_path, "another file system?"
        if kind == "file":
            path.write_text("new")
    assert target.exists()


@KINDS
@pytest.mark.parametrize("fail", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_leaving_early_leaves_nothing(tmp_path, kind, fail):
    with pytest.raises(type(fail)):
        build(tmp_path / "out", kind, fail=fail)
    assert list(tmp_path.iterdir()) == []


@IN_THE_WAY
def test_overwrite_replaces_whole(tmp_path, kind, old):
    target = tmp_path / "out"
    occupy(target, old)
    build(target, kind, overwrite=True)
    assert content(target) == "new"
    assert not target.is_symlink()
    assert not (target / "other").exists()
    left = {p.name for p in tmp_path.iterdir()} - {"elsewhere"}
    assert left == {"out"}, "something was left beside the target"
    if old.startswith("link"):
        assert content(tmp_path / "elsewhere") == "old", "overwriting went through the link"


@IN_THE_WAY
def test_without_overwrite_the_old_target_stays(tmp_path, kind, old):
    target = tmp_path / "out"
    occupy(target, old)
    with pytest.raises(StorageError, match="output exists"):
        build(target, kind)
    assert content(target) == "old"
    assert {p.name for p in tmp_path.iterdir()} - {"elsewhere"} == {"out"}


@IN_THE_WAY
def test_the_old_target_is_kept_on_failure(tmp_path, kind, old):
    target = tmp_path / "out"
    occupy(target, old)
    with pytest.raises(RuntimeError):
        build(target, kind, overwrite=True, fail=RuntimeError("x"))
    assert content(target) == "old"
    assert {p.name for p in tmp_path.iterdir()} - {"elsewhere"} == {"out"}


class FailingRename(Storage):
    """Fails the n-th rename; where asked, without renameat2."""

    def __init__(self, fail_at: int, fault: BaseException, exchanges: bool) -> None:
        self.left, self.fault, self.exchanges = fail_at, fault, exchanges

    def _count(self) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.fault

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def rename_with(self, source: Path, target: Path, flag: int) -> None:
        if not self.exchanges:
            raise OSError(errno.ENOSYS, "no renameat2")
        self._count()
        super().rename_with(source, target, flag)


@IN_THE_WAY
@pytest.mark.parametrize("fail_at", range(3))
@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("fault", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt()])
def test_a_rename_that_fails_brings_the_old_target_back(
    tmp_path, kind, old, fail_at, exchanges, fault
):
    target = tmp_path / "out"
    occupy(target, old)
    with using(FailingRename(fail_at, fault, exchanges)) as disk:
        try:
            build(target, kind, overwrite=True)
        except (StorageError, KeyboardInterrupt):
            assert content(target) == "old"
        else:
            assert content(target) == "new"
            assert disk.left >= 0, "the fault was lost"
    assert {p.name for p in tmp_path.iterdir()} - {"elsewhere"} == {"out"}


@pytest.mark.parametrize(
    ("kind", "old"), [("file", "directory"), ("directory", "file"), ("file", "empty")]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_and_a_folder_never_replace_each_other(tmp_path, kind, old, overwrite):
    target = tmp_path / "out"
    target.mkdir() if old == "empty" else occupy(target, old)
    with pytest.raises(StorageError, match="in its place"):
        build(target, kind, overwrite)
    assert old == "empty" or content(target) == "old"


@pytest.mark.parametrize("name", ["notes.md", "sub.txt", "deep/other"])
def test_nobodys_other_files_are_deleted(tmp_path, name):
    target = tmp_path / "out"
    occupy(target, "directory")
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("mine")
    with pytest.raises(StorageError, match=f"holds files svdh did not write: '{name}'"):
        build(target, "directory", overwrite=True)
    assert content(target) == "old"
    assert (target / name).read_text() == "mine"


def test_a_file_that_appears_in_the_target_meanwhile_is_not_deleted(tmp_path):
    target = tmp_path / "out"
    occupy(target, "directory")
    with pytest.raises(StorageError, match="did not write: 'mine'"):
        build(target, "directory", overwrite=True, meanwhile=target / "mine")
    assert (target / "mine").read_text() == "mine"


def test_a_file_that_appears_at_the_target_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(StorageError, match="appeared"):
        build(target, "file", meanwhile=target)
    assert target.read_text() == "mine"


class Racing(Storage):
    """Somebody writes the target between our last look and the rename."""

    def rename_with(self, source: Path, target: Path, flag: int) -> None:
        target.write_text("mine")
        super().rename_with(source, target, flag)


def test_a_file_that_appears_in_the_last_moment_is_not_replaced(tmp_path):
    with using(Racing()), pytest.raises(StorageError, match="appeared"):
        build(tmp_path / "out", "file")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_of_another_kind_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").write_text("looks like ours, but shows nothing of it")
    with pytest.raises(StorageError, match="is no thing"):
        build(tmp_path / "out", "directory", overwrite=True)
    assert (tmp_path / "out" / "other").exists()


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(StorageError, match="a device or pipe is in its place"):
            build(tmp_path / name, "file", overwrite=True)


def test_an_empty_folder_is_not_in_the_way_of_a_directory(tmp_path):
    (tmp_path / "out").mkdir()
    build(tmp_path / "out", "directory")
    assert content(tmp_path / "out") == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        build(tmp_path / "file", "file")
        build(tmp_path / "folder", "directory")
    finally:
        os.umask(before)
    modes = {
        path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.exists()
    }
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, path


FULL = [errno.ENOSPC, errno.EDQUOT]
OTHER = [errno.EACCES, errno.EROFS, errno.EIO, errno.ENAMETOOLONG]


@KINDS
@pytest.mark.parametrize("code", FULL + OTHER)
def test_what_the_system_refuses_is_one_storage_error(tmp_path, kind, code):
    fault = OSError(code, os.strerror(code))
    with pytest.raises(StorageError) as caught:
        build(tmp_path / "out", kind, fail=fault)
    assert ("no space left" in caught.value.what) == (code in FULL)
    assert caught.value.where == str(tmp_path / "out")
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_our_own_errors_pass_unchanged(tmp_path):
    with pytest.raises(ArtifactError, match="x"):
        build(tmp_path / "out", "directory", fail=ArtifactError("x"))


def test_a_parent_that_is_missing_or_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for parent in ("nowhere", "file"):
        with pytest.raises(StorageError, match="cannot write"):
            build(tmp_path / parent / "out", "directory")


class Recording(Storage):
    """Writes down what is flushed and renamed, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def sync(self, descriptor: int) -> None:
        self.events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        super().sync(descriptor)

    def rename_with(self, source: Path, target: Path, flag: int) -> None:
        self.events.append("exchange" if flag == EXCHANGE else "rename")
        super().rename_with(source, target, flag)

    def remove_file(self, path: Path) -> None:
        self.events.append("remove")
        super().remove_file(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_then_folders_then_the_rename_then_its_parent(tmp_path, overwrite):
    if overwrite:
        occupy(tmp_path / "out", "directory")
    with using(Recording()) as disk:
        build(tmp_path / "out", "directory", overwrite)
    at = disk.events.index("exchange" if overwrite else "rename")
    flushed = [Path(event).name for event in disk.events[:at]]
    assert flushed[:2] == ["content", "sub"]
    assert flushed[2].startswith(".out.staging-")
    assert disk.events[at + 1] == str(tmp_path), "the rename itself is not flushed"
    assert set(disk.events[at + 2 :]) == {"remove"}, "removed before the rename is flushed"


def test_a_read_only_output_is_replaced_whole(tmp_path):
    target = tmp_path / "out"
    occupy(target, "directory")
    for path in (target / "sub" / "content", target / "sub", target):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    build(target, "directory", overwrite=True)
    assert content(target) == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_crash_set_aside_comes_back_with_the_next_run(tmp_path, overwrite):
    target = tmp_path / "out"
    occupy(target, "directory")
    aside = tmp_path / ".out.old-0123abcd"
    aside.mkdir()
    target.rename(aside / "out")
    if overwrite:
        build(target, "directory", overwrite=True, fail=None)
        assert content(target) == "new"
    else:
        with pytest.raises(StorageError, match="output exists"):
            build(target, "directory")
        assert content(target) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_only_left_overs_of_this_target_are_swept(tmp_path):
    others = [
        ".out.staging-0123abcd.txt",
        ".out.staging-mine",
        ".out2.staging-0123abcd",
        ".out.staging-0123abcd.staging-0123abcd",
        "out.staging-0123abcd",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / ".out.staging-aaaaaaaa").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".out.staging-bbbbbbbb" / "half").mkdir(parents=True)
    build(tmp_path / "out", "directory")
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {*others, "elsewhere", "out", ".out.staging-aaaaaaaa"}
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_without_locks_nothing_is_swept(tmp_path, capsys):
    """What looks like a left-over may be what another run is writing."""
    (tmp_path / ".out.staging-bbbbbbbb").mkdir()
    with using(FaultyStorage(locks=False)):
        build(tmp_path / "out", "directory")
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".out.staging-bbbbbbbb"}
    assert "without locks" in capsys.readouterr().err
