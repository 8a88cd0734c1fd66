"""Accuracy of an encoder on the demo's tasks, each judged by its frozen head.

What goes in: an encoder state dict (a checkpoint or a merge) and the family it belongs to. What
comes out: percent of the held-out images answered correctly, per task. Promised: equal weights give
equal numbers on one machine; nothing is written and no random state is moved.

From a shell, one JSON object goes to stdout:

    python -m svd_hybrid.demo.evaluate FAMILY_DIR MODEL
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from safetensors.torch import load_file
from torch import Tensor

from svd_hybrid.demo.tasks import TASKS, held_out
from svd_hybrid.demo.vit import ViTConfig, build
from svd_hybrid.errors import SvdhError
from svd_hybrid.io.reader import open_checkpoint


def load_config(family: Path) -> ViTConfig:
    """The architecture of a family, from its base.

    Raises:
        ValueError: there is no readable config.json of a demo family.
    """
    path = family / "base" / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: no readable config ({error}); pass a directory written by `svdh demo`"
        ) from error
    return ViTConfig.from_json(document, where=str(path))


def load_heads(family: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Task name to its frozen head (weight (classes, width), bias (classes,)), in task order.

    Raises:
        ValueError: the file is missing, or its heads are not those of the tasks.
    """
    path = family / "heads.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; pass a directory written by `svdh demo`")
    tensors = load_file(path)
    expected = {f"{name}.{part}" for name in TASKS for part in ("weight", "bias")}
    if tensors.keys() != expected:
        odd = sorted(tensors.keys() ^ expected)
        raise ValueError(f"{path}: missing or unknown heads {odd}; write the family again")
    return {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in TASKS}


def evaluate(
    state: Mapping[str, torch.Tensor], family: Path, tasks: Collection[str] | None = None
) -> dict[str, float]:
    """Task name to accuracy in percent, in [0, 100], on the task's held-out images.

    Args:
        state: the encoder's tensors, any float dtype; computed in float32 on the CPU.
        family: directory that `train_family` wrote; its heads and config are used.
        tasks: the tasks to evaluate; all of them by default.

    Raises:
        ValueError: the tensors do not fit the family's encoder, or the family is incomplete.
    """
    model = build(load_config(family), state)
    accuracy: dict[str, float] = {}
    with torch.inference_mode():
        for name, head in load_heads(family).items():
            if tasks is not None and name not in tasks:
                continue
            images, answers = held_out(TASKS[name])
            right = F.linear(model(images), *head).argmax(dim=1) == answers
            accuracy[name] = 100.0 * float(right.float().mean())
    return accuracy


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, in any layout `svdh` reads.

    Raises:
        SvdhError: there is no checkpoint at `path`, or not one svdh can read.
    """
    reader = open_checkpoint(path)
    return {name: reader.read(name) for name in reader.infos}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the accuracies of a model as one JSON object; exit status 0, or 2 with a message."""
    parser = argparse.ArgumentParser(
        prog="python -m svd_hybrid.demo.evaluate",
        description="Accuracy in percent of an encoder on every task of a demo family.",
    )
    parser.add_argument("family", type=Path, help="directory that `svdh demo` wrote")
    parser.add_argument("model", type=Path, help="model directory, .safetensors or .pt file")
    args = parser.parse_args(argv)
    try:
        accuracy = evaluate(load_state(args.model), args.family)
    except (ValueError, SvdhError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({name: round(value, 2) for name, value in accuracy.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
