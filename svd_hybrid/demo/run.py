"""The whole main job on a small real family: train, compress, verify, reload, evaluate.

OUT/family/   base, fine-tunes and frozen heads      OUT/artifact/   what replaces the fine-tunes
OUT/rebuilt/  merged and every task, from base + artifact alone      OUT/results.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from svd_hybrid.artifact.verify import verify
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.request import CompressRequest, CompressResult
from svd_hybrid.compress.run import run_compress
from svd_hybrid.demo.evaluate import evaluate, load_state
from svd_hybrid.demo.train import TrainConfig, train_family
from svd_hybrid.errors import ArtifactError
from svd_hybrid.io.new_file import make_folder, write_file
from svd_hybrid.io.outputs import OutputKind, check_free
from svd_hybrid.io.staging import staged_directory
from svd_hybrid.reload.run import run_reload

FAMILY, ARTIFACT, REBUILT, RESULTS = "family", "artifact", "rebuilt", "results.json"
MERGED = "merged"
DEMO = OutputKind("demo", (f"{FAMILY}/", f"{ARTIFACT}/", f"{REBUILT}/", RESULTS), (RESULTS,))

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One line of the table; None where a figure has no meaning for the row.

    Args:
        model: what it is about.
        accuracy: percent, of the original checkpoint (on its own task; base: mean of all tasks).
        rebuilt_accuracy: percent, of the model rebuilt from base + artifact.
        relative_error: of the rebuilt delta.
        source_bytes: of the original weight files.
        artifact_bytes: every file of the artifact.
        ratio: source_bytes / artifact_bytes.
        bits_per_weight: of the artifact, over all weights of all tasks.
        seconds: wall time to make or rebuild it.
    """

    model: str
    accuracy: float | None = None
    rebuilt_accuracy: float | None = None
    relative_error: float | None = None
    source_bytes: int | None = None
    artifact_bytes: int | None = None
    ratio: float | None = None
    bits_per_weight: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where everything is, and the table.

    Args:
        out: the directory.
        rows: base, every task, all tasks together, merged.
        train_s: wall seconds of the training.
        wall_s: of everything.
    """

    out: Path
    rows: tuple[DemoRow, ...]
    train_s: float
    wall_s: float

    def as_json(self) -> dict[str, Any]:
        """For `--json` and results.json."""
        return {
            "out": str(self.out),
            "rows": [asdict(row) for row in self.rows],
            "train_s": self.train_s,
            "wall_s": self.wall_s,
        }


def run_demo(
    out: Path,
    *,
    overwrite: bool = False,
    training: TrainConfig | None = None,
    report: Report | None = None,
) -> DemoResult:
    """Train the digits family and run the main job on it.

    Args:
        out: directory to make.
        overwrite: replace it if it exists.
        training: step counts and sizes; the full ones by default.
        report: called with a sentence at each step.

    Raises:
        StorageError: the directory is in the way or cannot be written.
        ArtifactError: verification failed.
    """
    say = report or (lambda _: None)
    start = time.monotonic()
    check_free(out, overwrite, DEMO)
    with staged_directory(out, overwrite, DEMO) as folder:
        say("training the base and its fine-tunes on scikit-learn's digits")
        train_family(folder / FAMILY, config=training or TrainConfig(), progress=say)
        train_s = time.monotonic() - start
        rows = _main_job(folder, say)
        result = DemoResult(out, tuple(rows), train_s, time.monotonic() - start)
        text = json.dumps(result.as_json(), indent=1) + "\n"
        write_file(folder / RESULTS, text.encode())
    return result


def _main_job(folder: Path, say: Report) -> list[DemoRow]:
    family, artifact, base = folder / FAMILY, folder / ARTIFACT, folder / FAMILY / "base"
    sources = {path.name: path for path in sorted((family / "tasks").iterdir())}
    say("compressing")
    compressed = run_compress(CompressRequest(base, sources, artifact, CompressConfig()))
    say("verifying")
    problems = verify(artifact, base).problems
    if problems:
        raise ArtifactError(f"the demo's artifact does not verify: {problems[0]}")
    say("rebuilding and evaluating")
    make_folder(folder / REBUILT)
    base_accuracy = evaluate(load_state(base), family)
    tasks = [
        _task_row(folder, task, source, compressed.task_errors[task])
        for task, source in sources.items()
    ]
    merged = run_reload(artifact, base, folder / REBUILT / MERGED)
    merged_accuracy = evaluate(load_state(merged.output_path), family)
    return [
        DemoRow("base (mean)", accuracy=_mean(list(base_accuracy.values()))),
        *tasks,
        _family_row(compressed, tasks),
        DemoRow(
            "merged (mean)",
            rebuilt_accuracy=_mean(list(merged_accuracy.values())),
            seconds=merged.wall_s,
        ),
    ]


def _task_row(folder: Path, task: str, source: Path, error: float | None) -> DemoRow:
    """Rebuild one fine-tune and compare it with the original on its own task."""
    family = folder / FAMILY
    rebuilt = run_reload(
        folder / ARTIFACT, family / "base", folder / REBUILT / f"task-{task}", task=task
    )
    return DemoRow(
        task,
        accuracy=evaluate(load_state(source), family, [task])[task],
        rebuilt_accuracy=evaluate(load_state(rebuilt.output_path), family, [task])[task],
        relative_error=error,
        source_bytes=sum(path.stat().st_size for path in source.glob("*.safetensors")),
        seconds=rebuilt.wall_s,
    )


def _family_row(compressed: CompressResult, tasks: list[DemoRow]) -> DemoRow:
    sizes = compressed.bytes
    return DemoRow(
        "all fine-tunes",
        accuracy=_mean([row.accuracy for row in tasks]),
        rebuilt_accuracy=_mean([row.rebuilt_accuracy for row in tasks]),
        relative_error=compressed.relative_error,
        source_bytes=sizes["bytes_replaced"],
        artifact_bytes=sizes["bytes_artifact"],
        ratio=sizes["ratio_src"],
        bits_per_weight=sizes["bpp_all"],
        seconds=compressed.wall_s,
    )


def _mean(values: list[float] | list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
