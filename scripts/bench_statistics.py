"""Do layer statistics help? Merges with and without them, on a family with test data of its own.

    python scripts/bench_statistics.py vision FAMILY
    python scripts/bench_statistics.py language FAMILY

FAMILY holds `base/`, a folder per task and `test_data.npz`; for `vision` also
`heads.safetensors` with a linear head `<task>.weight`, `<task>.bias` per task on the class token.
`vision` measures accuracy in percent, `language` perplexity.

Every task's data is cut in two: statistics are collected on the first half, on which the factor on
each merged delta is chosen too, the same way for every method; the second half is measured. Rows
are printed as a Markdown table, the best factor beside each.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from svd_hybrid import Artifact, compress
from svd_hybrid.collect.run import CollectRequest, run_collect
from svd_hybrid.data.source import Source
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.methods import METHODS
from svd_hybrid.models.inputs import InputSettings, open_task_data
from svd_hybrid.models.live import LiveModel
from svd_hybrid.models.load import live_model

FACTORS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
KINDS: tuple[Literal["moment", "gram"], ...] = ("moment", "gram")
SEARCHED = 100
"""Samples per task, of the calibration half, on which a factor is judged."""
PATIENCE = 2
"""The search stops after so many factors without a better one."""
LEAN = 0.9
"""Share of the parameters that low rank + sparse gives up, beside the default of 0.1."""

SCORES: dict[str, dict[str, Any]] = {
    "magnitude": {"score": "magnitude"},
    "wanda": {"score": "wanda"},
    "obs": {},
    "obs, compensated": {"compensate": True},
    "obs_seq, compensated": {"score": "obs_seq", "compensate": True},
}
"""Ways to rank entries, at the default density of 0.2."""
DRAWN = {"selection": "sample"}


@dataclass(frozen=True)
class Row:
    """One merge.

    Args:
        label: what the table calls it.
        method: its name.
        parameters: of the method.
        statistics: kind it reads; empty for none.
    """

    label: str
    method: str
    parameters: Mapping[str, Any]
    statistics: str = ""


def rows() -> list[Row]:
    """Every merge that is compared."""
    made = [
        Row("task arithmetic", "task-arithmetic", {}),
        Row("TIES", "ties", {}),
        Row("DARE", "dare", {}),
        Row("Iso-C", "iso-c", {}),
        Row("SVD-Hybrid", "svd-hybrid", {}),
    ]
    for name, label in (("scale-svd", "Scale-SVD"), ("iso-iasad", "Iso-IASAD")):
        for sparsity in (0.1, LEAN):
            budget = {"sparsity": sparsity}
            kept = f"{label}, {1 - sparsity:.0%} kept"
            made.append(Row(f"{kept}, no statistics", name, {"input_scaling": False, **budget}))
            made.append(Row(f"{kept}, moments", name, budget, "moment"))
    for name, label in (("sparsegpt-ties", "TIES"), ("sparsegpt-dare", "DARE")):
        for text, parameters in SCORES.items():
            reads = "" if parameters.get("score") == "magnitude" else "gram"
            made.append(Row(f"{label}-SparseGPT, {text}", name, parameters, reads))
    made.append(Row("DARE-SparseGPT, drawn by obs", "sparsegpt-dare", DRAWN, "gram"))
    return made


class Family:
    """A family with test data, half of which calibrates.

    Args:
        folder: of the family.
        kind: `vision` or `language`.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        with np.load(folder / "test_data.npz") as stored:
            sizes = {
                name.removesuffix("_images"): len(stored[name])
                for name in stored.files
                if kind == "language" or name.endswith("_images")
            }
        self.tasks = {task: folder / task for task in sorted(sizes)}
        self.data = folder / "test_data.npz"
        self.halves = {task: sizes[task] // 2 for task in self.tasks}
        self.base = load_file(folder / "base" / "model.safetensors")
        self.live: LiveModel = live_model(open_checkpoint(folder / "base"))
        self.heads = load_file(folder / "heads.safetensors") if kind == "vision" else {}

    def source(self, task: str, *, calibration: bool) -> Source:
        """One half of a task's data."""
        half = self.halves[task]
        return Source(str(self.data), "", *((0, half) if calibration else (half, None)))

    def put(self, state: Mapping[str, Tensor], factor: float = 1.0) -> None:
        """The base plus a factor times deltas into the live model."""
        found = ((name, x.float() + factor * state[name]) for name, x in self.base.items())
        self.live.put(found, "merge")

    def scores(self, *, calibration: bool) -> dict[str, float]:
        """Accuracy in percent, or perplexity, of what is in the live model."""
        return {task: self._score(task, calibration=calibration) for task in self.tasks}

    def _score(self, task: str, *, calibration: bool) -> float:
        source = self.source(task, calibration=calibration)
        half = self.halves[task]
        samples = min(half, SEARCHED) if calibration else None
        data = open_task_data(self.live, source, task, InputSettings(samples, batch_size=64))
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in data:
                output = self.live(batch.inputs)
                if self.kind == "vision":
                    features = output.last_hidden_state[:, 0]
                    head, bias = self.heads[f"{task}.weight"], self.heads[f"{task}.bias"]
                    found = (features @ head.float().T + bias.float()).argmax(1)
                    assert batch.labels is not None
                    total += int((found == batch.labels).sum())
                    count += len(batch)
                else:
                    ids = batch.inputs["input_ids"]
                    logits, wanted = output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
                    total += float(functional.cross_entropy(logits, wanted, reduction="sum"))
                    count += wanted.numel()
        return 100 * total / count if self.kind == "vision" else math.exp(total / count)

    def goodness(self, scores: Mapping[str, float]) -> float:
        """One number, more is better: mean accuracy, or minus the mean log perplexity."""
        values = list(scores.values())
        if self.kind == "vision":
            return sum(values) / len(values)
        return -sum(math.log(value) for value in values) / len(values)

    def mean(self, scores: Mapping[str, float]) -> float:
        """What the table's last column holds: mean accuracy, or geometric mean perplexity."""
        return self.goodness(scores) if self.kind == "vision" else math.exp(-self.goodness(scores))


def deltas(
    family: Family, row: Row, statistics: Mapping[str, Path], work: Path
) -> dict[str, Tensor]:
    """The merged delta at factor 1, as the artifact gives it back.

    Averages are made sums, so that a factor means the same for all; task sums need no artifact.
    """
    if row.method == "task-arithmetic":
        states = [load_file(folder / "model.safetensors") for folder in family.tasks.values()]
        base = {name: tensor.float() for name, tensor in family.base.items()}
        return {n: sum(((s[n].float() - x) for s in states), 0 * x) for n, x in base.items()}
    art = work / "art"
    whole = len(family.tasks) if METHODS[row.method].weights == "average" else 1
    compress(
        family.folder / "base",
        family.tasks,
        art,
        method=row.method,
        profile="hybrid",
        statistics_dir=statistics[row.statistics] if row.statistics else None,
        overwrite=True,
        **{"scaling": float(whole), **row.parameters},
    )
    return {name: delta.float() for name, delta in Artifact.open(art).iter_tensors()}


def best_factor(family: Family, merged: Mapping[str, Tensor]) -> float:
    """The factor that does best on the calibration half."""
    best, found, waited = -math.inf, FACTORS[0], 0
    for factor in FACTORS:
        family.put(merged, factor)
        value = family.goodness(family.scores(calibration=True))
        waited = 0 if value > best else waited + 1
        if value > best:
            best, found = value, factor
        if waited == PATIENCE:
            break
    return found


def collected(family: Family, work: Path) -> dict[str, Path]:
    """Both kinds of statistics, of each task's calibration half under its own fine-tune."""
    sources = {task: family.source(task, calibration=True) for task in family.tasks}
    found: dict[str, Path] = {}
    for kind in KINDS:
        started = time.process_time()
        inputs = InputSettings(batch_size=64)
        base = family.folder / "base"
        run_collect(CollectRequest(family.tasks, sources, work / kind, kind, base, inputs=inputs))
        size = sum(file.stat().st_size for file in (work / kind).glob("*.safetensors"))
        print(f"{kind}: {time.process_time() - started:.1f} CPU s, {size:,} bytes", flush=True)
        found[kind] = work / kind
    return found


def line(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def shown(family: Family, label: str, factor: str, scores: Mapping[str, float]) -> str:
    """A row with its scores."""
    values = [f"{scores[task]:.1f}" for task in family.tasks]
    return line([label, factor, *values, f"{family.mean(scores):.2f}"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["vision", "language"])
    parser.add_argument("family", type=Path)
    parser.add_argument("--only", default="", help="rows whose label contains this")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    family = Family(options.family, options.kind)
    numbers: dict[str, Any] = {}
    print(line(["merge", "factor", *family.tasks, "mean"]))
    print(line(["---"] * (len(family.tasks) + 3)), flush=True)
    nothing = {name: torch.zeros_like(x, dtype=torch.float32) for name, x in family.base.items()}
    family.put(nothing)
    print(shown(family, "base", "", family.scores(calibration=False)))
    own = {}
    for task, folder in family.tasks.items():
        family.live.put_checkpoint(open_checkpoint(folder))
        own[task] = family._score(task, calibration=False)
    print(shown(family, "each task's own fine-tune", "", own), flush=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        statistics = collected(family, work)
        for row in rows():
            if options.only not in row.label:
                continue
            merged = deltas(family, row, statistics, work)
            factor = best_factor(family, merged)
            family.put(merged, factor)
            scores = family.scores(calibration=False)
            numbers[row.label] = {"factor": factor, "scores": scores, "mean": family.mean(scores)}
            print(shown(family, row.label, f"{factor:g}", scores), flush=True)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
