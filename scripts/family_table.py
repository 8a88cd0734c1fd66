"""Compress a family, rebuild everything from the artifact, evaluate it, print one Markdown table.

A family is a folder with `base/`, one folder per task and an `evaluate.py MODEL` that prints a JSON
object task → score. Its evaluator needs what it imports (transformers for the shared families).

    python scripts/family_table.py ../shared/families/vit-tiny
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from svd_hybrid.compress.api import compress
from svd_hybrid.compress.request import CompressResult
from svd_hybrid.reload.api import reload


def find_tasks(family: Path) -> list[str]:
    """Names of the task folders: those with weights, except the base."""
    folders = (path.parent.name for path in family.glob("*/model.safetensors"))
    return sorted(set(folders) - {"base"})


def evaluate(family: Path, model: Path) -> dict[str, float]:
    """Scores of one model by the family's own evaluator."""
    command = [sys.executable, str(family / "evaluate.py"), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    scores: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return scores


def rebuilt_scores(
    family: Path, artifact: Path, tasks: list[str], scratch: Path
) -> tuple[dict[str, float], dict[str, float], float]:
    """Each recovered task on its own data, the merged model on all, and CPU seconds per reload."""
    cpu_s = []
    recovered: dict[str, float] = {}
    for task in tasks:
        cpu_s.append(reload(artifact, family / "base", scratch / f"task-{task}", task=task).cpu_s)
        recovered[task] = evaluate(family, scratch / f"task-{task}")[task]
    cpu_s.append(reload(artifact, family / "base", scratch / "merged").cpu_s)
    return recovered, evaluate(family, scratch / "merged"), sum(cpu_s) / len(cpu_s)


def table(
    tasks: list[str],
    columns: dict[str, dict[str, float]],
    errors: dict[str, float | None],
) -> str:
    """Markdown: a row per task and the mean."""
    names = [*columns, "relative error"]
    lines = ["| task | " + " | ".join(names) + " |", "| --- |" + " --: |" * len(names)]
    for task in tasks:
        cells = [f"{scores[task]:.2f}" for scores in columns.values()]
        error = errors[task]
        cells.append("–" if error is None else f"{error:.2e}")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    means = [sum(s[task] for task in tasks) / len(tasks) for s in columns.values()]
    lines.append("| **mean** | " + " | ".join(f"{mean:.2f}" for mean in means) + " | |")
    return "\n".join(lines)


def facts(result: CompressResult, reload_cpu_s: float) -> str:
    """One line of sizes and times."""
    sizes = result.bytes
    return (
        f"{sizes['tasks']} checkpoints of {sizes['parameters']:,} parameters, "
        f"{sizes['bytes_replaced']:,} bytes → {sizes['bytes_artifact']:,} bytes "
        f"({sizes['ratio_src']:.2f}x, {sizes['bpp_all']:.2f} bits per parameter, all tensors and "
        f"all files); relative error {result.relative_error:.2e}; compress {result.cpu_s:.1f} s, "
        f"reload {reload_cpu_s:.1f} s CPU"
    )


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("family", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    family: Path = arguments.family
    tasks = find_tasks(family)
    parameters = dict(text.split("=", 1) for text in arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sources = {task: family / task for task in tasks}
        result = compress(family / "base", sources, scratch / "artifact", **parameters)
        recovered, merged, reload_cpu_s = rebuilt_scores(
            family, scratch / "artifact", tasks, scratch
        )
    columns = {
        "base": evaluate(family, family / "base"),
        "fine-tuned": {task: evaluate(family, family / task)[task] for task in tasks},
        "recovered": recovered,
        "merged": merged,
    }
    print(table(tasks, columns, dict(result.task_errors)))
    print(f"\n{facts(result, reload_cpu_s)}")


if __name__ == "__main__":
    main()
