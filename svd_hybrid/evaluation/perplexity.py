"""Perplexity of causal language models: sliding windows, every token weighted alike.

perplexity = exp(sum of -log p(token | what is before it) / number of tokens predicted). Every row
of token ids or text is a sequence of its own; a text file is one sequence. The first token of a
sequence is not predicted. Where a sequence is longer than a window, windows overlap, and a loss
counts only where no earlier window predicted that token.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from svd_hybrid.data.tokens import TokenRows
from svd_hybrid.errors import FamilyError, UsageError
from svd_hybrid.evaluation.base import DivergedError, EvaluationError, Metric, Scorer, Scores, State
from svd_hybrid.evaluation.live import LiveData, LiveSettings
from svd_hybrid.evaluation.split import ALL, Part
from svd_hybrid.evaluation.windows import windows
from svd_hybrid.models.inputs import model_tokenizer, sequence_length

METRICS = (Metric("perplexity", False), Metric("loss", False))
LARGEST_LOSS = 700.0
"""Nats per token whose exponential still is a float64."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A window of one row."""

    ids: np.ndarray[Any, Any]  # inputs and, one further, targets
    new: int


class PerplexityEvaluator:
    """Perplexity, and mean loss in nats per token.

    Args:
        data: of the live model.
        stride: new tokens of a window; None for half a window.
        part: of the data; of a single text, its first or last tokens.

    Raises (on construction):
        EvaluationError: images, too few tokens, or ids that the model does not have.
        UsageError: a stride that leaves tokens out, or no tokenizer for text.
    """

    name = "perplexity"
    metrics = METRICS

    def __init__(self, data: LiveData, stride: int | None = None, part: Part = ALL) -> None:
        self.data = data
        self.part = part
        self.tasks = data.settings.tasks
        inputs = data.settings.inputs
        self.size = sequence_length(data.live, inputs, data.live.source)
        self.stride = max(1, self.size // 2) if stride is None else stride
        self._asked_stride = stride
        if not 1 <= self.stride <= self.size:
            raise UsageError(
                f"--stride is {self.stride}, a window has {self.size} tokens",
                fix=f"pass 1 to {self.size}",
            )
        self._tokenizer: Any = None
        self._rows = {task: self._tokens(task) for task in self.tasks}

    @classmethod
    def build(cls, live: LiveSettings, stride: int | None) -> PerplexityEvaluator:
        """The evaluator of data and model that are yet to be read."""
        return cls(LiveData(live), stride)

    def _tokens(self, task: str) -> list[np.ndarray[Any, Any]]:
        """Rows of token ids of this part."""
        examples = self.data.examples[task]
        where = examples.source
        if examples.kind == "images":
            raise EvaluationError(
                f"data of task {task!r} are images", where=where, fix="pass --evaluator vision"
            )
        if examples.kind == "document":
            rows = [self._of_document(task, examples.inputs[0], where)]
        else:
            chosen = examples.spread(self.data.settings.inputs.samples)
            chosen = chosen.selected(self.part.rows(task, len(chosen)))
            if chosen.kind == "text":
                rows = [self._encoded(text, where) for text in chosen.inputs]
            else:
                rows = [np.asarray(row, dtype=np.int64) for row in chosen.inputs]
        if not any(len(row) > 1 for row in rows):
            raise EvaluationError(
                f"data of task {task!r} have no sequence of two tokens", where=where
            )
        check = TokenRows(self.data.live.vocabulary, max(map(len, rows)), where)
        try:
            check([row for row in rows if len(row)])
        except FamilyError as error:
            raise EvaluationError(error.what, where=error.where, fix=error.fix) from error
        return rows

    def _of_document(self, task: str, text: str, where: str) -> np.ndarray[Any, Any]:
        """A text's tokens: its range in rows of a window, then the part of that."""
        ids = self._encoded(text, where)
        source = self.data.sources[task]
        stop = None if source.stop is None else source.stop * self.size
        ids = ids[source.start * self.size : stop]
        samples = self.data.settings.inputs.samples
        ids = ids if samples is None else ids[: samples * self.size]
        first = round(len(ids) * self.part.share)
        if self.part.name == "all":
            return ids
        return ids[:first] if self.part.name == "validation" else ids[first:]

    def _encoded(self, text: str, where: str) -> np.ndarray[Any, Any]:
        if self._tokenizer is None:
            self._tokenizer = model_tokenizer(self.data.live, self.data.settings.inputs.tokenizer)
            known, rows = len(self._tokenizer), self.data.live.vocabulary
            if rows is not None and known > rows:
                raise EvaluationError(
                    f"tokenizer has {known} tokens, the model's vocabulary {rows}",
                    where=where,
                    fix="use the tokenizer of this model",
                )
        return np.asarray(self._tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)

    @property
    def notes(self) -> list[str]:
        """Of model and data."""
        return [*self.data.live.notes, *self.data.notes]

    def count(self, task: str) -> int:
        """Tokens predicted."""
        return sum(max(len(row) - 1, 0) for row in self._rows[task])

    def identity(self, task: str) -> Mapping[str, Any] | None:
        """The very tokens, and settings."""
        known = self.data.identity(task)
        if known is None:
            return None
        digest = hashlib.sha256()
        for row in self._rows[task]:
            digest.update(len(row).to_bytes(8, "little") + row.tobytes())
        settings = {"evaluator": self.name, "tokens": digest.hexdigest()}
        return {**known, **settings, "window": self.size, "stride": self.stride}

    def open(self, state: State) -> Scorer:
        """Scores the model of these weights, until another is opened."""
        self.data.put(state)
        return self._score

    def restricted(self, part: Part) -> PerplexityEvaluator:
        """The same on another part of the data; the live model is shared."""
        return PerplexityEvaluator(self.data, self._asked_stride, part)

    def _score(self, task: str) -> Scores:
        total = 0.0
        with torch.inference_mode():
            for pieces in self._batches(task):
                total += self._loss(pieces)
        loss = total / self.count(task)
        if not loss <= LARGEST_LOSS:  # NaN too
            raise DivergedError(
                f"the model's loss is {loss:.3g} nats per token", where=f"task {task!r}"
            )
        return {"perplexity": math.exp(loss), "loss": loss}

    def _batches(self, task: str) -> Iterator[list[_Piece]]:
        pieces = [
            _Piece(row[window.start : window.stop + 1], window.new)
            for row in self._rows[task]
            for window in windows(len(row), self.size, self.stride)
        ]
        pieces.sort(key=lambda piece: len(piece.ids))  # stable; batches are padded little
        size = self.data.settings.inputs.batch_size
        for first in range(0, len(pieces), size):
            yield pieces[first : first + size]

    def _loss(self, pieces: list[_Piece]) -> float:
        """Sum of the losses of the new targets, nats."""
        rows = TokenRows(self.data.live.vocabulary, self.size + 1, self.data.live.source)
        ids, mask = rows([piece.ids for piece in pieces])
        tokens = ids["input_ids"]
        inputs = {"input_ids": tokens[:, :-1]}
        if mask is not None:
            inputs["attention_mask"] = mask[:, :-1].long()
        output = self.data.live(inputs)
        logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
        if logits is None or logits.shape[:2] != tokens[:, 1:].shape:
            raise EvaluationError(
                "the model gives no logits for every token",
                where=self.data.live.source,
                fix="pass a causal language model",
            )
        counted = torch.zeros(tokens[:, 1:].shape, dtype=torch.bool)
        for number, piece in enumerate(pieces):
            counted[number, len(piece.ids) - 1 - piece.new : len(piece.ids) - 1] = True
        losses = cross_entropy(logits[counted].float(), tokens[:, 1:][counted], reduction="none")
        return float(losses.double().sum())
