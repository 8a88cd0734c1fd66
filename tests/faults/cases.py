"""The commands whose every call is made to fail, and what stands where they write."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from svd_hybrid import signals
from svd_hybrid.artifact.verify import verify
from svd_hybrid.cli.app import main
from svd_hybrid.cli.original import main as original
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.io.storage import using
from tests.families import FamilyFiles, write_family
from tests.faults.faulty_storage import Crash, FaultyStorage

CRASHED = -1
LAUNCHER = "run_svd_hybrid.py"


@dataclass(frozen=True)
class Inputs:
    """What every case reads: a base, two fine-tunes, an artifact of each."""

    family: FamilyFiles
    ant: Path
    bee: Path


def make_inputs(folder: Path) -> Inputs:
    family = write_family(folder / "family", {"w": (4, 6)}, ("ant", "bee"))
    inputs = Inputs(family, folder / "art-ant", folder / "art-bee")
    assert run(compress(inputs, "ant", inputs.ant)) == 0
    assert run(compress(inputs, "bee", inputs.bee)) == 0
    return inputs


def compress(inputs: Inputs, task: str, target: Path) -> list[str]:
    files = ["--base", str(inputs.family.base), "--task", f"{task}={inputs.family.tasks[task]}"]
    return ["compress", "-q", *files, "--profile", "fast", "--artifact-dir", str(target)]


def append(inputs: Inputs, target: Path) -> list[str]:
    files = ["--base", str(inputs.family.base), "--task", f"bee={inputs.family.tasks['bee']}"]
    onto = ["--from-artifact", str(target), "--append", "--artifact-dir", str(target)]
    return ["compress", "-q", *files, *onto]


def reload(inputs: Inputs, artifact: Path, target: Path) -> list[str]:
    files = ["--base", str(inputs.family.base), "--artifact-dir", str(artifact)]
    return ["reload", "-q", *files, "--output-path", str(target)]


def masks(inputs: Inputs, target: Path) -> list[str]:
    files = [f"--task={task}={path}" for task, path in inputs.family.tasks.items()]
    base = ["--base", str(inputs.family.base), "--lambdas", "0.4"]
    return ["masks", "build", "-q", *base, *files, "--output", str(target)]


def launch(inputs: Inputs, task: str, target: Path) -> list[str]:
    files = ["--base", str(inputs.family.base), "--task", f"{task}={inputs.family.tasks[task]}"]
    kept = ["--store-artifacts", "--artifact-dir", str(target / "artifact")]
    return [LAUNCHER, "-q", *files, "--profile", "fast", "--output-dir", str(target), *kept]


@dataclass(frozen=True)
class Case:
    """One command.

    Args:
        name: of its target.
        argv: its words, given inputs and target.
        before: what stands at the target first; None for nothing.
        overwrite: whether it may be replaced.
        stride: 1 to try every call, 2 every other, ...
    """

    name: str
    argv: Callable[[Inputs, Path], list[str]]
    before: Callable[[Inputs, Path], list[str]] | None = None
    overwrite: bool = True
    stride: int = 1

    def words(self, inputs: Inputs, target: Path) -> list[str]:
        return [*self.argv(inputs, target), *(["--overwrite"] if self.overwrite else [])]


def _ant(inputs: Inputs, target: Path) -> list[str]:
    return compress(inputs, "ant", target)


def _bee(inputs: Inputs, target: Path) -> list[str]:
    return compress(inputs, "bee", target)


def _model_of_ant(inputs: Inputs, target: Path) -> list[str]:
    return reload(inputs, inputs.ant, target)


def _model_of_bee(inputs: Inputs, target: Path) -> list[str]:
    return reload(inputs, inputs.bee, target)


def _launch_ant(inputs: Inputs, target: Path) -> list[str]:
    return launch(inputs, "ant", target)


def _launch_bee(inputs: Inputs, target: Path) -> list[str]:
    return launch(inputs, "bee", target)


CASES = {
    "compress": Case("art", _ant, overwrite=False),
    "compress --overwrite": Case("art", _bee, _ant),
    "append": Case("art", append, _ant),
    "reload to a folder": Case("model", _model_of_bee, _model_of_ant),
    "reload to safetensors": Case("m.safetensors", _model_of_bee, _model_of_ant),
    "reload to a new folder": Case("model", _model_of_bee, overwrite=False),
    "reload to pt": Case("m.pt", _model_of_bee, _model_of_ant),
    "masks build": Case("masks", masks, overwrite=False),
    "the original launcher": Case("out", _launch_bee, _launch_ant, stride=5),
}


def run(argv: list[str], disk: FaultyStorage | None = None) -> int:
    """Exit code of a command run in this process; CRASHED where its storage ended it."""
    try:
        with using(disk or FaultyStorage()):
            return original(argv[1:]) if argv[0] == LAUNCHER else main(argv)
    except Crash:
        signals._cleanups.clear()  # a killed process cleans nothing up
        return CRASHED


class Place:
    """A folder with a target in it, put back to its first state before each run."""

    def __init__(self, folder: Path, case: Case, inputs: Inputs) -> None:
        self.folder = folder / "place"
        self.template = folder / "template"
        self.target = self.folder / case.name
        self.case = case
        self.inputs = inputs
        self.folder.mkdir()
        if case.before:
            assert run(case.before(inputs, self.target)) == 0
        shutil.copytree(self.folder, self.template)
        self.states = {self.digest(): "old"}
        assert self.run() == 0
        assert self.states.setdefault(self.digest(), "new") == "new", "old and new are the same"

    def reset(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.template, self.folder)

    def run(self, *more: str, disk: FaultyStorage | None = None) -> int:
        return run([*self.case.words(self.inputs, self.target), *more], disk)

    def digest(self) -> str:
        """Of every name and byte of the target."""
        paths = [self.target, *sorted(self.target.rglob("*"))]
        facts = [
            (path.relative_to(self.folder).as_posix(), path.read_bytes())
            for path in paths
            if path.is_file()
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def state(self) -> str:
        """absent, old or new, and read back whole; else what it is."""
        if not self.target.exists():
            return "absent"
        if (self.target / "manifest.json").exists():
            assert verify(self.target).problems == []
        elif self.target.name not in ("masks", "out"):
            reader = open_checkpoint(self.target)
            assert [reader.read(name).isfinite().all() for name in reader.infos]
        return self.states.get(self.digest(), "neither")

    def beside(self) -> list[str]:
        """What lies beside the target."""
        return sorted(path.name for path in self.folder.iterdir() if path != self.target)
