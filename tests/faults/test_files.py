"""How outputs and inputs behave as files: modes, links, read-only places, other people's files."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.output import ARTIFACT
from svd_hybrid.io.model_writer import COMPANION_PATTERNS, MODEL
from svd_hybrid.io.storage import Storage, using
from tests.faults import forks
from tests.faults.cases import append, compress, make_inputs, masks, reload, run

NOBODY = 65534
PACKAGE = Path(__file__).resolve().parents[2] / "svd_hybrid"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_every_mode_follows_the_umask(tmp_path, inputs, mask):
    before = os.umask(mask)
    try:
        assert run(compress(inputs, "ant", tmp_path / "art")) == 0
        assert run([*append(inputs, tmp_path / "art"), "--overwrite"]) == 0
        assert run(masks(inputs, tmp_path / "masks")) == 0
        for name in ("model", "m.safetensors", "m.pt"):
            assert run(reload(inputs, inputs.ant, tmp_path / name)) == 0
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask


class Durable(Storage):
    """Remembers what was written, what was flushed, and what was renamed before it was."""

    def __init__(self) -> None:
        self.dirty: set[str] = set()
        self.faults: list[str] = []

    def _touch(self, path: Path) -> None:
        self.dirty |= {str(path), str(path.parent)}

    def create(self, path: Path, flags: int) -> int:
        self._touch(path)
        return super().create(path, flags)

    def make_folder(self, path: Path) -> None:
        self._touch(path)
        super().make_folder(path)

    def sync(self, descriptor: int) -> None:
        self.dirty.discard(os.readlink(f"/proc/self/fd/{descriptor}"))

    def rename_with(self, source: Path, target: Path, flag: int) -> None:
        staged = str(source)
        self.faults += [
            path for path in self.dirty if path == staged or path.startswith(f"{staged}/")
        ]
        super().rename_with(source, target, flag)
        self._touch(target)
        self.dirty.discard(str(target))

    def rename(self, source: Path, target: Path) -> None:
        if str(source) in self.dirty and ".safetensors" not in target.name:
            self.faults.append(str(source))
        super().rename(source, target)
        self._touch(target)
        self.dirty -= {str(source), str(target)}

    def remove_file(self, path: Path) -> None:
        self.dirty.discard(str(path))
        super().remove_file(path)


def test_everything_is_flushed_before_it_is_put_in_place(tmp_path, inputs):
    with using(Durable()) as disk:
        from svd_hybrid.cli.app import main

        for argv in (
            compress(inputs, "ant", tmp_path / "art"),
            [*compress(inputs, "bee", tmp_path / "art"), "--profile", "hybrid", "--overwrite"],
            masks(inputs, tmp_path / "masks"),
            *(
                reload(inputs, inputs.ant, tmp_path / name)
                for name in ("m", "m.safetensors", "m.pt")
            ),
        ):
            disk.dirty.clear()
            assert main(argv) == 0
            assert disk.faults == []
            assert str(tmp_path) not in disk.dirty, "the rename is not flushed"


# --- links ---------------------------------------------------------------------------------------


def hub_cache(root: Path, model: Path) -> Path:
    """A model's files as blobs by digest, and a snapshot that is links to them."""
    snapshot = root / "snapshots" / "1f0e"
    (root / "blobs").mkdir(parents=True)
    for path in sorted(model.rglob("*")):
        if path.is_file():
            blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copyfile(path, blob)
            link = snapshot / path.relative_to(model)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_checkpoints_in_a_hub_cache_work(tmp_path, inputs):
    for task in ("ant", "bee"):
        argv = reload(inputs, getattr(inputs, task), tmp_path / task)
        assert run([*argv, "--max-shard-size", "1"]) == 0
    base = hub_cache(tmp_path / "base", tmp_path / "ant")
    task = hub_cache(tmp_path / "task", tmp_path / "bee")
    files = ["--base", str(base), "--task", f"bee={task}", "--artifact-dir", str(tmp_path / "art")]
    assert run(["compress", "-q", *files]) == 0
    where = ["--artifact-dir", str(tmp_path / "art"), "--base", str(base)]
    assert run(["reload", "-q", *where, "--output-path", str(tmp_path / "out")]) == 0


def test_an_artifact_in_a_hub_cache_works_and_its_damage_is_found(tmp_path, inputs, capsys):
    artifact = hub_cache(tmp_path / "hub", inputs.ant)
    assert run(["verify", "--artifact-dir", str(artifact)]) == 0
    assert run(reload(inputs, artifact, tmp_path / "m.pt")) == 0
    (shard,) = (path for path in artifact.rglob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.resolve().write_bytes(data)
    assert run(["verify", "--artifact-dir", str(artifact)]) == 4
    assert run(reload(inputs, artifact, tmp_path / "n.pt")) == 4
    assert shard.name in capsys.readouterr().err


# --- read-only -----------------------------------------------------------------------------------


@pytest.fixture
def read_only(inputs) -> Iterator[Path]:
    """A folder with an artifact in which nobody may write, parent included."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))
    shutil.copytree(inputs.ant, root / "art")
    shutil.copyfile(inputs.family.base, root / "base.safetensors")
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield root
    for path in (root, *root.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(root)


def as_nobody(body) -> int:
    def dropped() -> int:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return body()

    return forks.run(dropped)


def test_a_read_only_artifact_verifies_and_reloads(read_only, inputs):
    art, base = str(read_only / "art"), str(read_only / "base.safetensors")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        output = f"{folder}/m.pt"
        files = ["--artifact-dir", art, "--base", base]
        assert run(["inspect", "--artifact-dir", art]) == 0  # modules that nobody may not read
        assert as_nobody(lambda: run(["verify", "--deep", *files])) == 0
        assert as_nobody(lambda: run(["inspect", "--artifact-dir", art])) == 0
        assert as_nobody(lambda: run(["reload", "-q", *files, "--output-path", output])) == 0


def test_nothing_can_be_written_into_a_read_only_folder(read_only, inputs, capfd):
    output = str(read_only / "m.pt")
    files = [
        "--artifact-dir",
        str(read_only / "art"),
        "--base",
        str(read_only / "base.safetensors"),
    ]
    assert as_nobody(lambda: run(["reload", "-q", *files, "--output-path", output])) == 8
    assert capfd.readouterr().err == (
        f"error: cannot write: Permission denied\n  where: {output}\n  fix:   check the path\n"
    )


@pytest.mark.parametrize("at_most", [200, 900])
def test_a_file_that_may_not_grow_is_one_error(tmp_path, inputs, capfd, at_most):
    """RLIMIT_FSIZE; the signal that comes with it is ignored by Python."""

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (at_most, at_most))
        return run(compress(inputs, "ant", tmp_path / "art"))

    assert forks.run(limited) == 8
    said = capfd.readouterr().err
    assert said.startswith("error: cannot write: File too large\n"), said
    assert list(tmp_path.iterdir()) == []


# --- other people's files ------------------------------------------------------------------------


WRITERS = {
    "compress": lambda inputs, out: compress(inputs, "ant", out),
    "reload": lambda inputs, out: reload(inputs, inputs.ant, out),
    "masks build": masks,
}


@pytest.mark.parametrize("verb", WRITERS)
@pytest.mark.parametrize(
    "content",
    [
        ("thesis.tex",),
        ("README.md", "config.json"),
        ("manifest.json", "thesis.tex"),
        ("model.safetensors", "optimizer.pt"),
        ("TALL_mask_0.4.safetensors", "notes/today.md"),
        ("index.json.zst", "basis/notes.txt"),
    ],
    ids=" ".join,
)
def test_a_folder_of_somebody_else_is_never_replaced(tmp_path, inputs, capsys, verb, content):
    target = tmp_path / "out"
    for name in content:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("mine")
    argv = WRITERS[verb](inputs, target)
    assert run(argv) == 8
    assert "output exists" in capsys.readouterr().err
    assert run([*argv, "--overwrite"]) == 8
    assert "nothing there is touched" in capsys.readouterr().err
    assert all((target / name).read_text() == "mine" for name in content)
    assert list(tmp_path.iterdir()) == [target]


def test_an_artifact_and_a_model_do_not_replace_each_other(tmp_path, inputs, capsys):
    shutil.copytree(inputs.ant, tmp_path / "art")
    assert run([*reload(inputs, inputs.bee, tmp_path / "art"), "--overwrite"]) == 8
    assert "is no model of svdh" in capsys.readouterr().err
    assert run(reload(inputs, inputs.bee, tmp_path / "model")) == 0
    assert run([*compress(inputs, "ant", tmp_path / "model"), "--overwrite"]) == 8
    assert "is no artifact" in capsys.readouterr().err


def test_every_name_we_write_may_be_replaced_by_us():
    for name in (layout.MANIFEST, layout.INDEX, *layout.DOCUMENTS):
        assert name in ARTIFACT.files
    assert set(COMPANION_PATTERNS) <= set(MODEL.files)


def test_an_output_never_goes_into_an_input(tmp_path, inputs, capsys):
    assert run(reload(inputs, inputs.ant, tmp_path / "base")) == 0
    base = tmp_path / "base"
    files = ["compress", "-q", "--base", str(base), "--task", f"bee={inputs.family.tasks['bee']}"]
    for target in (base, base / "art", base / "deep" / "art", tmp_path):
        assert run([*files, "--artifact-dir", str(target), "--overwrite"]) == 2
        assert "input of this run" in capsys.readouterr().err
    for target in (inputs.ant / "m.pt", inputs.ant, inputs.family.base):
        assert run([*reload(inputs, inputs.ant, target), "--overwrite"]) == 2
    assert sorted(path.name for path in base.iterdir()) == ["model.safetensors"]


WRITING = re.compile(
    r"""\.(write_text|write_bytes|mkdir|rmdir|unlink|rename|touch|symlink_to|hardlink_to|chmod)\(
    | \bos\.(rename|replace|remove|unlink|mkdir|makedirs|rmdir|removedirs|fsync|f?truncate)\b
    | \bos\.(link|symlink|write|chmod|mkfifo)\( | \b(shutil|tempfile)\b | \bsave_file\(
    | \bopen\([^)]*["']b?[wax]b?\+?["'] """,
    re.VERBOSE,
)
MAY_WRITE = {
    "io/storage.py": "the storage itself",
    "signals.py": "a message to stderr, when nothing else works any more",
    "faults.py": "the same",
    "cache.py": "results that may be lost and are sealed",
    "comparison/run.py": "a merge in a scratch folder, to count its bytes",
}


def test_no_writer_goes_past_the_storage():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if WRITING.search(line) and "storage()." not in line
    }
    assert found == set(MAY_WRITE)
