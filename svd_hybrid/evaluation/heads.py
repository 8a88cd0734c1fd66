"""Classification heads: a linear layer per task on frozen features, kept beside the models.

A file holds `<task>.weight` (C, F) and, where there is one, `<task>.bias` (C,). Zero-shot heads of
the CLIP line of work are unit rows (one text embedding per class) compared by cosine, times
`<task>.logit_scale` or `logit_scale` (the factor itself, 100 unless stored).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from svd_hybrid.errors import UsageError, shorten
from svd_hybrid.evaluation.base import EvaluationError
from svd_hybrid.io.reader import CheckpointReader, open_checkpoint
from svd_hybrid.io.tensors import tensor_digest

HeadKind = Literal["linear", "zero-shot"]
ZERO_SHOT_SCALE = 100.0


@dataclass(frozen=True, slots=True)
class Head:
    """A classifier of one task.

    Args:
        weight: (C, F) float32.
        bias: (C,) float32; None without.
        scale: of cosines; None for a linear head.
        where: file and task, for errors.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float | None
    where: str

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.weight)

    @property
    def digest(self) -> str:
        """Of everything that decides logits."""
        parts = [self.weight] if self.bias is None else [self.weight, self.bias]
        return ",".join([*map(tensor_digest, parts), str(self.scale)])

    def __call__(self, features: Tensor) -> Tensor:
        """Features (B, F) → logits (B, C).

        Raises:
            EvaluationError: the features have another width.
        """
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1]:
            raise EvaluationError(
                f"head takes {self.weight.shape[1]} features, "
                f"the model gives {list(features.shape[1:])}",
                where=self.where,
                fix="pass the heads that were made for this model, or another --pooling",
            )
        if self.scale is not None:
            return self.scale * normalize(features, dim=1) @ normalize(self.weight, dim=1).T
        logits = features @ self.weight.T
        return logits if self.bias is None else logits + self.bias


def head_tasks(path: Path) -> tuple[str, ...]:
    """Tasks that a file has heads of, sorted."""
    names = open_checkpoint(path).infos
    return tuple(sorted(n.removesuffix(".weight") for n in names if n.endswith(".weight")))


def load_heads(path: Path, tasks: Iterable[str], kind: HeadKind) -> dict[str, Head]:
    """The head of every task.

    Raises:
        StorageError, FamilyError: the file cannot be read.
        EvaluationError: a task has no head, or one of an impossible shape.
        UsageError: zero-shot heads with a bias.
    """
    reader = open_checkpoint(path)
    return {task: _head(reader, path, task, kind) for task in tasks}


def _head(reader: CheckpointReader, path: Path, task: str, kind: HeadKind) -> Head:
    where = f"task {task!r} in {path}"
    names = {part: f"{task}.{part}" for part in ("weight", "bias", "logit_scale")}
    if names["weight"] not in reader.infos:
        raise EvaluationError(
            f"no head of task {task!r}; the file has heads of {shorten(list(head_tasks(path)), 8)}",
            where=str(path),
            fix=f"add {names['weight']} (classes, features), or name other tasks with --task",
        )
    weight = reader.read(names["weight"]).float().clone()
    bias = reader.read(names["bias"]).float().clone() if names["bias"] in reader.infos else None
    shapes = [list(part.shape) for part in (weight, bias) if part is not None]
    fits = bias is None or bias.shape == weight.shape[:1]
    if weight.ndim != 2 or not weight.numel() or not fits:
        raise EvaluationError(
            f"head has shapes {' and '.join(map(str, shapes))}",
            where=where,
            fix="store weight (classes, features) and bias (classes)",
        )
    if not all(bool(torch.isfinite(part).all()) for part in (weight, bias) if part is not None):
        raise EvaluationError("head holds NaN or infinity", where=where)
    if kind == "linear":
        return Head(weight, bias, None, where)
    if bias is not None:
        raise UsageError("zero-shot heads have no bias", where=where, fix="pass --head-kind linear")
    scales = (name for name in (names["logit_scale"], "logit_scale") if name in reader.infos)
    found = next(scales, None)
    scale = ZERO_SHOT_SCALE if found is None else float(reader.read(found))
    return Head(weight, None, scale, where)
