"""`kill -9` at random moments of real `svdh` processes; the figures of docs/crash-safety.md.

    python scripts/faults/kills.py --kills 60 [--signal TERM] [--workers 2]

compress (new, --overwrite), append in place and reload (folder, safetensors, pt) are started as a
user starts them and killed: a fifth at any moment of the run, the others while they hold their
lock, which is when they write. Then the target must be what it was or what it should become, byte
for byte, or absent where nothing was; the same command, run again without any cleaning, must
succeed and leave nothing beside its output. After TERM and INT nothing may be beside it at once,
and the process must end within 5 s with 143 or 130. Worker processes end with what they are at:
none may be there 30 s later. Prints one JSON document; exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from svd_hybrid.cli.app import main as svdh

SHAPE, TENSORS = (256, 256), 12
"""A run writes for some tenths of a second."""

AT_ANY_MOMENT = 0.2
POLL_S = 0.001
MOST_S = 5.0
WORKERS_MOST_S = 30.0
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


@dataclass(frozen=True, slots=True)
class Command:
    """One command and its two states.

    Args:
        name: for the figures.
        target: file or folder, by name.
        argv: its words.
        again: its words where the first run was complete; without them, the same.
        before: words that make what stands there first; none for nothing.
    """

    name: str
    target: str
    argv: list[str]
    again: list[str]
    before: list[str]


def run(
    kills: int,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
    sent: signal.Signals = signal.SIGKILL,
    workers: int = 1,
) -> dict[str, Any]:
    """Kill that many processes.

    Args:
        kills: how many; >= 1.
        seed: of the moments.
        tell: called with a line about what is broken.
        sent: the signal: KILL, TERM or INT; the run alone gets it, not its workers.
        workers: of compress; more than one leaves out append and reload, which have none.

    Returns:
        `kills` (processes that were killed; the others had ended), `after_lock` (of these, killed
        while they wrote), per command how often the target was old, new or absent then,
        `left_overs` (kills that left something beside the target), `slowest_s` (from the signal to
        the end), `outlived_s` (from the end to that of the last process it started), `broken` and
        `wall_s`.
    """
    chance, start = random.Random(seed), time.monotonic()  # noqa: S311  (moments, not secrets)
    found: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    slowest = outlived = 0.0
    with tempfile.TemporaryDirectory(prefix="svdh-kills-") as scratch:
        commands = [Rehearsed(command) for command in _commands(Path(scratch), workers)]
        for number in range(kills):
            rehearsed = commands[number % len(commands)]
            outcome = rehearsed.kill(chance, sent)
            totals.update(outcome.counts())
            slowest = max(slowest, outcome.ended_s)
            outlived = max(outlived, outcome.outlived_s)
            states = found.setdefault(rehearsed.command.name, Counter())
            states[outcome.state] += 1
            for fault in outcome.faults:
                tell(f"kill {number}, {rehearsed.command.name}: {fault}")
    return {
        "kills": totals["killed"],
        "after_lock": totals["after_lock"],
        "left_overs": totals["left_overs"],
        "states": {name: dict(sorted(states.items())) for name, states in found.items()},
        "slowest_s": round(slowest, 2),
        "outlived_s": round(outlived, 2),
        "broken": totals["broken"],
        "wall_s": round(time.monotonic() - start, 1),
    }


@dataclass(slots=True)
class Outcome:
    """What one kill led to."""

    state: str
    killed: bool
    after_lock: bool
    left_overs: bool
    ended_s: float
    outlived_s: float
    faults: list[str]

    def counts(self) -> dict[str, int]:
        """For the totals."""
        return {
            "killed": self.killed,
            "after_lock": self.after_lock and self.killed,
            "left_overs": self.left_overs,
            "broken": bool(self.faults),
        }


class Rehearsed:
    """A command whose states before and after, and whose duration, are known."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.target = Path(command.target)
        self.folder = self.target.parent
        self.folder.mkdir()
        if command.before:
            _call(command.before)
        self.template = self.folder.with_name(f"{self.folder.name}.before")
        shutil.copytree(self.folder, self.template)
        self.old = self.digest()
        start = time.monotonic()
        child = self._start()
        self._await_lock(child, there=True)
        locked = time.monotonic()
        self._await_lock(child, there=False)
        self.locked_s = time.monotonic() - locked
        if child.wait():
            raise SystemExit(f"{command.name} fails")
        self.whole_s = time.monotonic() - start
        self.new = self.digest()

    def digest(self) -> str:
        """Of every name and byte of the target; `absent` where there is none."""
        if not self.target.exists():
            return "absent"
        digest = hashlib.sha256()
        for path in (self.target, *sorted(self.target.rglob("*"))):
            if path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(self.folder)} {content}\n".encode())
        return digest.hexdigest()

    def kill(self, chance: random.Random, sent: signal.Signals) -> Outcome:
        """Start it, kill it, look, and run it again."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.template, self.folder)
        child = self._start()
        after_lock = chance.random() >= AT_ANY_MOMENT
        if after_lock:
            self._await_lock(child, there=True)
            time.sleep(chance.uniform(0, self.locked_s))
        else:
            time.sleep(chance.uniform(0, self.whole_s))
        child.send_signal(sent)
        began = time.monotonic()
        code = child.wait()
        ended_s = time.monotonic() - began
        outlived_s = _await_children(child)
        names = {self.new: "new", self.old: "old" if self.command.before else "absent"}
        state = names.get(self.digest(), "neither")
        left = bool(self._beside())
        outcome = Outcome(state, code != 0, after_lock, left, ended_s, outlived_s, [])
        if code not in (0, -sent, CODES[sent]):
            outcome.faults.append(f"it ended with {code}")
        if outlived_s > WORKERS_MOST_S:
            outcome.faults.append("processes that it started are still there")
        if sent != signal.SIGKILL and (ended_s > MOST_S or self._beside()):
            outcome.faults.append(f"after {ended_s:.1f} s it left {self._beside()}")
        if state == "neither":
            outcome.faults.append("the target is neither what it was nor what it should be")
        try:
            _call(self.command.again if state == "new" else self.command.argv)
        except RuntimeError as error:
            outcome.faults.append(f"the next run fails: {error}")
        if self._beside():
            outcome.faults.append(f"the next run leaves {self._beside()}")
        if self.digest() != self.new and state != "new":
            outcome.faults.append("the next run gives something else")
        return outcome

    def _start(self) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        argv = [sys.executable, "-m", "svd_hybrid", *self.command.argv]
        return subprocess.Popen(argv, stdout=quiet, stderr=quiet, start_new_session=True)

    def _await_lock(self, child: subprocess.Popen[bytes], *, there: bool) -> None:
        """Wait until its lock is there, or gone, or it has ended."""
        lock = self.target.with_name(f".{self.target.name}.lock")
        while child.poll() is None and lock.exists() is not there:
            time.sleep(POLL_S)

    def _beside(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path != self.target)


def _await_children(child: subprocess.Popen[bytes]) -> float:
    """Wait until nothing of an ended process's group is there, at most WORKERS_MOST_S; seconds."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) <= WORKERS_MOST_S:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(POLL_S)
    return waited


def _call(argv: list[str]) -> None:
    """Run a command in this process.

    Raises:
        RuntimeError: it fails, with what it says.
    """
    with redirect_stderr(StringIO()) as said, redirect_stdout(StringIO()):
        code = svdh(argv)
    if code:
        raise RuntimeError(said.getvalue())


def _commands(root: Path, workers: int) -> list[Command]:
    generator = torch.Generator().manual_seed(0)
    base = {f"w{i:02}": torch.randn(SHAPE, generator=generator) for i in range(TENSORS)}
    save_file(base, root / "base.safetensors")
    for task in ("ant", "bee"):
        tuned = {n: t + 0.01 * torch.randn(SHAPE, generator=generator) for n, t in base.items()}
        save_file(tuned, root / f"{task}.safetensors")
    given = ["-q", "--base", str(root / "base.safetensors")]
    encoding = ["--workers", str(workers)]

    def compress(task: str, target: str) -> list[str]:
        files = ["--task", f"{task}={root / task}.safetensors", "--artifact-dir", target]
        return ["compress", *given, *files, "--profile", "fast", *encoding]

    def append(target: str) -> list[str]:
        files = ["--task", f"bee={root / 'bee'}.safetensors", "--from-artifact", target]
        return ["compress", *given, *files, "--append", "--artifact-dir", target, "--overwrite"]

    def reload(artifact: str, target: str) -> list[str]:
        return ["reload", *given, "--artifact-dir", artifact, "--output-path", target]

    sources = {task: str(root / f"art-{task}") for task in ("ant", "bee")}
    for task, target in sources.items():
        _call(compress(task, target))
    new, over, grown = (str(root / place / "art") for place in ("new", "over", "grown"))
    made = compress("ant", new)
    replaced = [*compress("bee", over), "--overwrite"]
    grows = append(grown)
    commands = [
        Command("compress", new, made, [*made, "--overwrite"], []),
        Command("compress --overwrite", over, replaced, replaced, compress("ant", over)),
        Command("append", grown, grows, [*grows, "--replace"], compress("ant", grown)),
    ]
    if workers > 1:
        return commands[:2]
    for name in ("model", "m.safetensors", "m.pt"):
        target = str(root / f"for-{name}" / name)
        argv = [*reload(sources["bee"], target), "--overwrite"]
        first = reload(sources["ant"], target)
        commands.append(Command(f"reload to {name}", target, argv, argv, first))
    return commands


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--workers", type=int, default=1, help="of compress, then alone")
    args = parser.parse_args(argv)
    sent = signal.Signals[f"SIG{args.signal}"]
    say = partial(print, file=sys.stderr)
    figures = run(args.kills, args.seed, say, sent, args.workers)
    print(json.dumps(figures, indent=1))
    return 1 if figures["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
