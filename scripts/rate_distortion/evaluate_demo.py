"""Accuracy of an encoder of the demo family: its evaluator in the form of the shared families'."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from svd_hybrid.demo.evaluate import evaluate, load_state


def main() -> None:
    """Print one JSON object task → accuracy in percent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--family", type=Path, required=True)
    parser.add_argument("--tasks")
    arguments = parser.parse_args()
    tasks = arguments.tasks.split(",") if arguments.tasks else None
    scores = evaluate(load_state(arguments.model), arguments.family, tasks)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
