"""Accuracy of image and text encoders with a head per task, and of models with their own head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from svd_hybrid.data.examples import Examples
from svd_hybrid.evaluation.base import DivergedError, EvaluationError, Metric, Scorer, Scores, State
from svd_hybrid.evaluation.features import Pooling, features
from svd_hybrid.evaluation.heads import Head, HeadKind, load_heads
from svd_hybrid.evaluation.live import LiveData, LiveSettings, by_length
from svd_hybrid.evaluation.split import ALL, Part

METRICS = (Metric("accuracy", True, "percent"), Metric("loss", False))
DEFAULT_POOLING: Mapping[str, Pooling] = {"vision": "cls", "text": "mean"}
KINDS = {"vision": ("images",), "text": ("text", "tokens")}


@dataclass(frozen=True, slots=True)
class ClassificationSettings:
    """How outputs become classes.

    Args:
        heads: file with a head per task; None for the model's own logits.
        head_kind: how heads are applied.
        pooling: which features heads get.
    """

    heads: Path | None = None
    head_kind: HeadKind = "linear"
    pooling: Pooling = "auto"


class ClassificationEvaluator:
    """Share of samples whose largest logit is their label's, and mean cross-entropy.

    Args:
        name: `vision` or `text`.
        settings: of outputs.
        data: of the live model.
        part: of the data.

    Raises (on construction):
        EvaluationError: a task without labels or head, or labels that its head does not have.
    """

    metrics = METRICS

    def __init__(
        self, name: str, settings: ClassificationSettings, data: LiveData, part: Part = ALL
    ) -> None:
        self.name = name
        self.settings = settings
        self.data = data
        self.part = part
        self.tasks = data.settings.tasks
        self.heads: dict[str, Head] = {}
        if settings.heads is not None:
            self.heads = load_heads(settings.heads, self.tasks, settings.head_kind)
        self._examples = {task: self._checked(task) for task in self.tasks}

    @classmethod
    def build(
        cls, name: str, settings: ClassificationSettings, live: LiveSettings
    ) -> ClassificationEvaluator:
        """The evaluator of data and model that are yet to be read."""
        return cls(name, settings, LiveData(live))

    def _checked(self, task: str) -> Examples:
        examples = self.data.examples[task]
        where = examples.source
        if examples.kind not in KINDS[self.name]:
            raise EvaluationError(
                f"data of task {task!r} are {examples.kind}, evaluator {self.name} scores "
                + " or ".join(KINDS[self.name]),
                where=where,
                fix="choose another --evaluator",
            )
        if examples.labels is None:
            raise EvaluationError(f"data of task {task!r} have no labels", where=where)
        low, high = int(examples.labels.min()), int(examples.labels.max())
        classes = self.heads[task].classes if task in self.heads else math.inf
        if low < 0 or high >= classes:
            raise EvaluationError(
                f"task {task!r} has labels {low} to {high}, its head has {classes} classes",
                where=f"{where}; {self.heads[task].where if task in self.heads else ''}",
                fix="pass the heads that were made for these data",
            )
        examples = examples.spread(self.data.settings.inputs.samples)
        return by_length(examples.selected(self.part.rows(task, len(examples))))

    @property
    def notes(self) -> list[str]:
        """Of model and data."""
        return [*self.data.live.notes, *self.data.notes]

    def count(self, task: str) -> int:
        """Samples."""
        return len(self._examples[task])

    def identity(self, task: str) -> Mapping[str, Any] | None:
        """Data, head and settings."""
        known = self.data.identity(task)
        if known is None:
            return None
        head = self.heads.get(task)
        return {
            **known,
            "evaluator": self.name,
            "part": self.part.as_json(),
            "head": None if head is None else head.digest,
            "pooling": self.settings.pooling,
        }

    def open(self, state: State) -> Scorer:
        """Scores the model of these weights, until another is opened."""
        self.data.put(state)
        return self._score

    def restricted(self, part: Part) -> ClassificationEvaluator:
        """The same on another part of the data; the live model is shared."""
        return ClassificationEvaluator(self.name, self.settings, self.data, part)

    def _score(self, task: str) -> Scores:
        data = self.data.batches(task, self._examples[task])
        right, loss = 0, 0.0
        with torch.inference_mode():
            for batch in data:
                assert batch.labels is not None  # as __init__ has checked
                output = self.data.live(batch.inputs)
                logits = self._logits(task, output, batch.mask)
                self._refuse(task, logits, batch.labels)
                right += int((logits.argmax(1) == batch.labels).sum())
                loss += float(cross_entropy(logits.double(), batch.labels, reduction="sum"))
        count = len(data)
        return {"accuracy": 100 * right / count, "loss": loss / count}

    def _logits(self, task: str, output: Any, mask: Tensor | None) -> Tensor:
        if task not in self.heads:
            return features(output, mask, "logits", "logits")
        pooled = features(output, mask, self.settings.pooling, DEFAULT_POOLING[self.name])
        return self.heads[task](pooled)

    def _refuse(self, task: str, logits: Tensor, labels: Tensor) -> None:
        if not bool(torch.isfinite(logits).all()):
            raise DivergedError("the model's outputs are NaN or infinite", where=f"task {task!r}")
        if int(labels.max()) >= logits.shape[1]:
            raise EvaluationError(
                f"task {task!r} has label {int(labels.max())}, the model has {logits.shape[1]} "
                "classes",
                fix="pass --heads FILE with a head per task",
            )
