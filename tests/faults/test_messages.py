"""One clear message for every fault: short, printable, what, where and how to mend it."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from svd_hybrid import errors
from svd_hybrid.errors import SvdhError
from svd_hybrid.faults import run_guarded
from svd_hybrid.system_errors import as_storage_error
from tests.cli.project import SVDH, TASKS

MOST = 500
CLASSES = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SvdhError)
]


def printed(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    def body() -> None:
        raise error

    capsys.readouterr()
    code = run_guarded(body, [])
    text = capsys.readouterr().err
    assert run_guarded(body, ["--json"]) == code
    return code, text, capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(
    what=st.text(max_size=900), where=st.text(max_size=900) | st.just(""), fix=st.text(max_size=300)
)
def test_any_message_is_short_and_printable(what, where, fix):
    for kind in CLASSES:
        error = kind(what, where=where, fix=fix)
        for text in (f"error: {error}\n", json.dumps(error.facts(), ensure_ascii=False)):
            assert len(text) <= MOST
            assert all(char == "\n" or char.isprintable() for char in text)
        assert str(error).count("\n") == bool(error.facts()["where"]) + bool(error.facts()["fix"])


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_has_something_to_do_about_it(kind):
    assert kind is SvdhError or kind("x").facts()["fix"]


def test_json_says_the_same(capsys):
    error = errors.FamilyError("broken", where="x" * 3000)
    code, text, record = printed(error, capsys)
    document = json.loads(record)
    assert code == document["code"] == 3
    lines = [f"error: {document['error']}", f"  where: {document['where']}"]
    assert text.splitlines() == [*lines, f"  fix:   {document['fix']}"]
    assert len(record) <= MOST


def test_the_middle_of_a_long_path_goes_and_its_ends_stay():
    error = errors.StorageError("missing", where="/first/" + "x" * 3000 + "/last.safetensors")
    where = error.facts()["where"]
    assert where.startswith("/first/")
    assert where.endswith("/last.safetensors")
    assert " … " in where
    assert error.where.count("x") == 3000


SYSTEM = [
    OSError(errno.EMFILE, "Too many open files", "some.file"),
    PermissionError(errno.EACCES, "Permission denied", "some.file"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory", "some.file"),
    OSError(errno.ELOOP, "Too many levels of symbolic links", "some.file"),
    OSError(errno.EIO, "Input/output error", "some.file"),
    OSError(errno.ENAMETOOLONG, "File name too long", "n" * 5000),
    MemoryError(),
    MemoryError("Unable to allocate 1 TiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("Symlink loop from 'some.file'"),
    ValueError("embedded null byte"),
]


@pytest.mark.parametrize("error", SYSTEM, ids=repr)
def test_what_the_system_refuses_is_exit_code_8(error, capsys):
    code, text, record = printed(error, capsys)
    assert code == 8
    assert "internal" not in text
    assert "\n  fix:   " in text
    assert max(len(text), len(record)) <= MOST


def test_our_own_mistakes_stay_ours():
    for error in (ValueError("x"), RuntimeError("x"), KeyError("x"), ZeroDivisionError()):
        assert as_storage_error(error) is None


def test_no_memory_left_is_one_message(project):
    """A limit on the address space that torch alone nearly fills."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))

    state = {"w": torch.zeros(1).expand(2**30).as_strided((2**20, 2**10), (0, 0))}
    torch.save(state, project.root / "wide.pt")
    argv = [*SVDH, *project.reload(base_model_path=project.root / "wide.pt")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode in (5, 8)
    assert "Traceback" not in done.stderr
    assert len(done.stderr) <= MOST


def test_no_file_descriptor_left_is_one_message(project):
    code = "import sys, resource, svd_hybrid.reload.command as c, svd_hybrid.reload.run, torch\n"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4)); sys.exit(c.main())"
    argv = [sys.executable, "-c", code, *map(str, project.reload()[1:])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 8, done.stderr
    assert "Too many open files" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_thousand_long_names_are_one_message(project, svdh):
    state = {f"layer.{i}." + "n" * 300: torch.zeros(1) for i in range(1000)}
    save_file(state, project.root / "other.safetensors")
    for argv in (
        project.reload(base_model_path=project.root / "other.safetensors"),
        project.compress(base_model_path=project.root / "other.safetensors"),
        project.reload("--task", "t" * 5000),
        project.compress(tasks=[*TASKS, "t" * 5000]),
        project.reload(artifact_dir=project.root / ("a" * 200) / ("b" * 200) / ("c" * 200)),
    ):
        run = svdh(*argv)
        assert run.code in (2, 3, 5, 8)
        assert len(run.err) <= MOST
        assert run.err.startswith("error: ")
        assert "\n  fix:   " in run.err


def test_a_path_that_is_no_text_comes_through(project):
    """A file name of bytes that no encoding explains."""
    out = os.fsencode(project.root) + b"/\xff\xfe.safetensors"
    words = [os.fsencode(str(word)) for word in (*SVDH, *project.reload())]
    words[words.index(os.fsencode(project.root / "merged.safetensors"))] = out
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == out
    again = subprocess.run([*words, b"--json"], capture_output=True, check=False)
    assert again.returncode == 8
    assert "output exists" in json.loads(again.stderr)["error"]
    assert Path(os.fsdecode(out)).is_file()


def test_names_in_an_artifact_cannot_drive_a_terminal(project, svdh):
    evil = "\x1b]0;owned\x07\u202e"
    for path in (project.base, *project.ckpts.iterdir()):
        save_file({f"w{evil}": torch.randn(3, 4)}, path)
    argv = project.compress("-q", "--profile", "fast")
    assert svdh(*argv).code == 0
    for argv in (
        ["inspect", "--tensors", "--artifact-dir", project.root / "new"],
        ["verify", "--artifact-dir", project.root / "new", "--base-model-path", project.root],
        project.reload(artifact_dir=project.root / "new", base_model_path=project.art),
    ):
        run = svdh(*argv)
        assert not {"\x1b", "\x07", "\u202e"} & set(run.out + run.err)
