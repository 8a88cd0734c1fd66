"""All or nothing: whatever happens while an output is built, the target is whole or untouched."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from svd_hybrid.errors import ArtifactError, StorageError
from svd_hybrid.io import staging
from svd_hybrid.io.staging import staged_directory, staged_file


def build(target: Path, kind: str, overwrite: bool = False, fail: BaseException | None = None):
    """Stage `new` as a file, or as a directory that holds it."""
    if kind == "file":
        with staged_file(target, overwrite) as path:
            path.write_text("new")
            if fail:
                raise fail
    else:
        with staged_directory(target, overwrite) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "content").write_text("new")
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
    "old", ["file", "directory", "link to file", "link to directory"]
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
    with (staged_file if kind == "file" else staged_directory)(target, False) as path:
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


@KINDS
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


@KINDS
@IN_THE_WAY
def test_without_overwrite_the_old_target_stays(tmp_path, kind, old):
    target = tmp_path / "out"
    occupy(target, old)
    with pytest.raises(StorageError, match="appeared while this run was writing"):
        build(target, kind)
    assert content(target) == "old"
    assert {p.name for p in tmp_path.iterdir()} - {"elsewhere"} == {"out"}


@KINDS
@IN_THE_WAY
def test_the_old_target_is_kept_on_failure(tmp_path, kind, old):
    target = tmp_path / "out"
    occupy(target, old)
    with pytest.raises(RuntimeError):
        build(target, kind, overwrite=True, fail=RuntimeError("x"))
    assert content(target) == "old"
    assert {p.name for p in tmp_path.iterdir()} - {"elsewhere"} == {"out"}


@KINDS
@IN_THE_WAY
@pytest.mark.parametrize("fail_at", range(3))
@pytest.mark.parametrize("fault", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt()])
def test_a_rename_that_fails_brings_the_old_target_back(
    tmp_path, monkeypatch, kind, old, fail_at, fault
):
    target = tmp_path / "out"
    occupy(target, old)
    calls = []

    def failing(real):
        def rename(self, other):
            calls.append((self, other))
            if len(calls) == fail_at + 1:
                raise fault
            return real(self, other)

        return rename

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing(Path.rename))
        patch.setattr(Path, "replace", failing(Path.replace))
        try:
            build(target, kind, overwrite=True)
        except (StorageError, KeyboardInterrupt):
            assert content(target) == "old"
        else:
            assert content(target) == "new"
    assert {p.name for p in tmp_path.iterdir()} - {"elsewhere"} == {"out"}


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


def test_files_and_folders_are_flushed_before_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.rename

    def record_sync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def record_rename(self, other):
        events.append("rename")
        return rename(self, other)

    monkeypatch.setattr(staging.os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    build(tmp_path / "out", "directory")
    at = events.index("rename")
    flushed = [Path(event).name for event in events[:at]]
    assert "content" in flushed
    assert "sub" in flushed
    assert events[at + 1 :] == [str(tmp_path)], "the rename itself is not flushed"
