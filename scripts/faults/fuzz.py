"""Damage artifacts at random and look at what every command makes of them.

    from faults.fuzz import run
    run(2000)

Promises that are counted, and must all be 0: `silent` (reload ends well with other bits), `missed`
(verify ends well, or does not name the file), `crashed` (anything but one of our errors),
`long_messages`, `wrong_codes`, `leftovers` (something was written by a command that failed), and
for damage whose digests were made to fit again `unpinned` (reload --expect did not refuse it) and
`hidden` (stored numbers were changed, other bits come back of a task or merge that has a digest,
and verify --deep ends well). `forged_rounding` counts beside it what verify --deep cannot see:
every task comes back as it was, and a weighting of them, which has no digest, does not.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from faults.mutations import Mutation, damage, files_of, forge
from svd_hybrid.artifact.files import read_manifest
from svd_hybrid.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "artifacts"
SHARE_FORGED = 0.3
REFUSALS = (4, 5, 6, 9)
MOST_CHARACTERS = 500
PROMISES = (
    *("silent", "missed", "crashed", "long_messages", "wrong_codes", "leftovers"),
    *("unpinned", "hidden"),
)
Report = Callable[[str], object]


def golden_pairs(folder: Path = GOLDEN) -> list[tuple[Path, Path]]:
    """Every golden artifact with its base."""
    bases = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["bases"]
    return [
        (artifact, folder / bases.get(artifact.name, "golden-base") / "model.safetensors")
        for artifact in sorted(folder.glob("golden-v1-*"))
    ]


class Bench:
    """One artifact that is damaged over and over.

    Args:
        artifact: whole; it is copied.
        base: its base.
        scratch: an empty directory.
        rng: decides everything.
        tell: called with a line for every promise that was broken.
    """

    def __init__(
        self, artifact: Path, base: Path, scratch: Path, rng: random.Random, tell: Report
    ) -> None:
        self.artifact, self.base, self.scratch = artifact, base, scratch
        self.rng, self.tell = rng, tell
        manifest = read_manifest(artifact)
        self.id = manifest.artifact_id
        self.digested: list[tuple[str, str]] = []
        if manifest.rebuilt is not None:
            self.digested += [("--task", name) for name in manifest.rebuilt.tasks]
            self.digested += [("--merge", name) for name in manifest.rebuilt.merges]
        task = ("--task", manifest.tasks[0])
        self.selections: dict[tuple[str, ...], bytes] = {}
        for selection in ((), task) if manifest.recovers_tasks else ((),):
            code, _, err = self._reload(artifact, *selection)
            if code:
                raise AssertionError(err)
            self.selections[selection] = self._result()
        self.figures: Counter[str] = Counter()
        self.slowest_s = 0.0

    def round(self, path: str, donor: Path) -> None:
        """Damage a fresh copy once and run every command on it."""
        copy = self.scratch / "artifact"
        shutil.copytree(self.artifact, copy)
        try:
            if self.rng.random() < SHARE_FORGED:
                self._judge_forged(copy, forge(copy, self.rng))
            else:
                self._judge_damaged(copy, damage(copy, path, donor, self.rng))
        finally:
            shutil.rmtree(copy)

    def _judge_damaged(self, copy: Path, mutation: Mutation) -> None:
        self.figures["damaged"] += 1
        code, out, err = self._run("verify", "--artifact-dir", copy)
        named = any(str(copy / path) in out + err for path in mutation.paths)
        if "manifest.json" in mutation.paths:  # a whole one of another artifact contradicts files
            named = named or "the manifest" in err
            named = named or (mutation.kind == "foreign" and f"{copy}/" in err)
        if code == 0 or not named:
            self._broken("missed", mutation, f"verify {code}: {err}")
        self._judge(code, err, mutation)
        self._rebuild(copy, mutation)

    def _judge_forged(self, copy: Path, mutation: Mutation) -> None:
        self.figures["forged"] += 1
        code, _, err = self._reload(copy, "--expect", f"sha256:{self.id}")
        self._judge(code, err, mutation)
        if code == 0 and self._result() != self.selections[()]:
            self._broken("unpinned", mutation, "reload --expect")
        other = self._rebuild(copy, mutation)
        deep = ("verify", "--deep", "--artifact-dir", copy, "--base-model-path", self.base)
        code, _, err = self._run(*deep)
        self._judge(code, err, mutation)
        if other:
            self.figures["forged_other_bits"] += 1
            self.figures["forged_found_by_deep"] += code != 0
            if code == 0 and mutation.kind == "shard" and self.digested:
                self._judge_hidden(copy, mutation)
        elif code:
            self.figures["forged_refused"] += 1

    def _judge_hidden(self, copy: Path, mutation: Mutation) -> None:
        """Whether other bits come back of anything that has a digest."""
        for selection in self.digested:
            if self._bits(copy, *selection) != self._bits(self.artifact, *selection):
                self._broken("hidden", mutation, f"verify --deep, reload {selection}")
                return
        self.figures["forged_rounding"] += 1

    def _bits(self, artifact: Path, *selection: str) -> bytes:
        """What comes back; nothing where reload refuses it."""
        code, _, _ = self._reload(artifact, *selection)
        return b"" if code else self._result()

    def _rebuild(self, copy: Path, mutation: Mutation) -> bool:
        """Reload every selection; whether one ends well with other bits."""
        other = False
        for selection, wanted in self.selections.items():
            code, _, err = self._reload(copy, *selection)
            self._judge(code, err, mutation)
            if code == 0 and self._result() != wanted:
                other = True
                if not mutation.resealed:
                    self._broken("silent", mutation, f"reload {selection}")
        return other

    def _reload(self, artifact: Path, *more: str) -> tuple[int, str, str]:
        output = self.scratch / "out.safetensors"
        output.unlink(missing_ok=True)
        words = ("reload", "--artifact-dir", artifact, "--base-model-path", self.base)
        return self._run(*words, "--output-path", output, *more)

    def _result(self) -> bytes:
        return (self.scratch / "out.safetensors").read_bytes()

    def _run(self, *argv: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        start = time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in argv])
        self.slowest_s = max(getattr(self, "slowest_s", 0.0), time.monotonic() - start)
        return code, out.getvalue(), err.getvalue()

    def _judge(self, code: int, err: str, mutation: Mutation) -> None:
        """What every command promises, whatever it met."""
        if code == 1 or "Traceback" in err:
            self._broken("crashed", mutation, err)
        elif code not in (0, *REFUSALS, *((2,) if mutation.resealed else ())):
            self._broken("wrong_codes", mutation, f"{code}: {err}")
        if len(err) > MOST_CHARACTERS and code:
            self._broken("long_messages", mutation, err)
        left = {path.name for path in self.scratch.iterdir()} - {"artifact", "out.safetensors"}
        if left:
            self._broken("leftovers", mutation, str(left))

    def _broken(self, promise: str, mutation: Mutation, detail: str) -> None:
        self.figures[promise] += 1
        self.tell(f"{promise}: {self.artifact.name}: {mutation}: {detail[:600]}")


def run(
    count: int,
    seed: int = 0,
    pairs: Sequence[tuple[Path, Path]] | None = None,
    tell: Report = print,
) -> dict[str, float]:
    """Damage artifacts `count` times, every file of every one in turn.

    Args:
        count: mutations.
        seed: of all chance.
        pairs: artifacts and their bases; the golden ones when left out.
        tell: called with a line for every broken promise.

    Returns:
        Figures by name; those of PROMISES must be 0.
    """
    rng = random.Random(seed)  # noqa: S311
    pairs = golden_pairs() if pairs is None else pairs
    figures: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="svdh-fuzz-") as folder:
        benches = []
        for number, (artifact, base) in enumerate(pairs):
            scratch = Path(folder, str(number))
            scratch.mkdir()
            benches.append(Bench(artifact, base, scratch, rng, tell))
        turns = [(bench, path) for bench in benches for path in files_of(bench.artifact)]
        for number in range(count):
            bench, path = turns[number % len(turns)]
            bench.round(path, rng.choice([artifact for artifact, _ in pairs]))
        for bench in benches:
            figures += bench.figures
            slowest = max(slowest, bench.slowest_s)
    listed = {promise: float(figures[promise]) for promise in PROMISES}
    return {"files": float(len(turns)), **figures, **listed, "slowest_s": round(slowest, 2)}
