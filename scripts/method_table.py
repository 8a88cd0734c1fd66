"""Every merge method on one family: quality, bytes, CPU seconds and memory, as Markdown.

A family is a folder with `base/`, one folder per task and an `evaluate.py MODEL [--tasks A,B]` that
prints a JSON object task → score. Each method runs as `svdh compress` in a process of its own, with
its defaults; `--scales` also tries multiples of its default scaling and shows the best of them,
which is then chosen on the very data it is scored on.

    python scripts/method_table.py ../shared/families/vit-tiny --scales 0.5 1.5 2
    python scripts/method_table.py minilm --evaluator ../shared/families/minilm-text/evaluate.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from svd_hybrid import Artifact
from svd_hybrid.methods import METHODS

WITHOUT_STATISTICS = {
    "scale-svd": ["input_scaling=false"],
    "iso-iasad": ["input_scaling=false"],
    "sparsegpt-ties": ["score=magnitude"],
    "sparsegpt-dare": ["score=magnitude"],
}
"""How methods that read layer statistics run here, where there are none."""


@dataclass
class Row:
    """What was measured of one method."""

    name: str
    scores: dict[str, float]
    recovered: dict[str, float] = field(default_factory=dict)
    nbytes: int = 0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    best: tuple[float, float] | None = None  # scaling, mean score


@dataclass
class Family:
    """Where the checkpoints are and how they are scored."""

    folder: Path
    evaluator: Path
    tasks: list[str]

    def evaluate(self, model: Path, *tasks: str) -> dict[str, float]:
        """Scores of a model, on all tasks unless some are named."""
        command = [sys.executable, str(self.evaluator), str(model)]
        command += ["--tasks", ",".join(tasks)] if tasks else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        scores: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return scores

    def mean(self, scores: dict[str, float]) -> float:
        """Mean over the tasks."""
        return sum(scores[task] for task in self.tasks) / len(self.tasks)


def compress(family: Family, method: str, artifact: Path) -> Row:
    """Run `svdh compress`; its bytes, CPU seconds and peak memory."""
    command = [sys.executable, "-m", "svd_hybrid", "compress", "--json", "--quiet"]
    command += ["--base-model-path", str(family.folder / "base"), "--artifact-dir", str(artifact)]
    command += ["--checkpoint-dir", str(family.folder), "--tasks", *family.tasks]
    command += ["--method", method]
    for assignment in WITHOUT_STATISTICS.get(method, []):
        command += ["--set", assignment]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    facts: dict[str, Any] = json.loads(process.stdout.read() or b"{}")
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    row = Row(method, {}, nbytes=facts["bytes"]["bytes_artifact"])
    row.cpu_s = usage.ru_utime + usage.ru_stime
    row.peak_bytes = usage.ru_maxrss * 1024
    return row


def scaled_model(family: Family, artifact: Artifact, factor: float, model: Path) -> Path:
    """Base plus `factor` times the merged delta, in a folder the evaluator reads."""
    base: dict[str, Tensor] = {}
    for path in sorted((family.folder / "base").glob("*.safetensors")):
        base |= load_file(path)
    for name, delta in artifact.iter_tensors():
        if base[name].is_floating_point():
            base[name] = (base[name].float() + factor * delta).to(base[name].dtype)
    model.mkdir(exist_ok=True)
    save_file(base, model / "model.safetensors", metadata={"format": "pt"})
    return model


def measure(family: Family, method: str, scales: list[float], scratch: Path) -> Row:
    """Compress with a method, evaluate its merge and, where it has them, its single tasks."""
    row = compress(family, method, scratch / method)
    artifact = Artifact.open(scratch / method)
    model = scratch / "model"
    row.scores = family.evaluate(scaled_model(family, artifact, 1.0, model))
    found = [(1.0, family.mean(row.scores))]
    for factor in scales:
        scores = family.evaluate(scaled_model(family, artifact, factor, model))
        found.append((factor, family.mean(scores)))
    if scales:
        factor, best = max(found, key=lambda pair: pair[1])
        row.best = (factor * artifact.scalings[artifact.default_merge], best)
    if METHODS[method].per_task_reload:
        for task in family.tasks:
            model.mkdir(exist_ok=True)
            tensors = dict(artifact.iter_tensors(family.folder / "base", task=task))
            save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
            row.recovered[task] = family.evaluate(model, task)[task]
    print(f"{method}: {family.mean(row.scores):.2f}", file=sys.stderr, flush=True)
    return row


def table(family: Family, rows: list[Row]) -> str:
    """Markdown: a row per method."""
    header = ["method", *family.tasks, "mean", "best scaling: mean", "single tasks"]
    header += ["MB", "CPU s", "peak MB"]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " --: |" * (len(header) - 1)]
    for row in rows:
        best = f"{row.best[0]:.2g}: {row.best[1]:.2f}" if row.best else "–"
        recovered = f"{family.mean(row.recovered):.2f}" if row.recovered else "–"
        cells = [row.name, *(f"{row.scores[task]:.1f}" for task in family.tasks)]
        cells += [f"**{family.mean(row.scores):.2f}**", best, recovered]
        if row.nbytes:
            cells += [f"{row.nbytes / 1e6:.2f}", f"{row.cpu_s:.1f}", f"{row.peak_bytes / 1e6:.0f}"]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("family", type=Path)
    parser.add_argument("--evaluator", type=Path, help="default: FAMILY/evaluate.py")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--scales", nargs="*", type=float, default=[])
    arguments = parser.parse_args()
    folders = (path.parent.name for path in arguments.family.glob("*/model.safetensors"))
    family = Family(
        arguments.family,
        arguments.evaluator or arguments.family / "evaluate.py",
        sorted(set(folders) - {"base"}),
    )
    rows = [
        Row("base", family.evaluate(family.folder / "base")),
        Row("fine-tuned", {t: family.evaluate(family.folder / t, t)[t] for t in family.tasks}),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        rows += [measure(family, m, arguments.scales, Path(scratch)) for m in arguments.methods]
    print(table(family, rows))


if __name__ == "__main__":
    main()
