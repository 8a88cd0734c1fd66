"""What evaluators of live models share: the model, the data of every task, and their identity."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from svd_hybrid.data.batches import TaskData
from svd_hybrid.data.examples import Examples
from svd_hybrid.data.load import load_examples
from svd_hybrid.data.source import sources_of
from svd_hybrid.data.tables import Fields
from svd_hybrid.errors import FamilyError
from svd_hybrid.evaluation.base import EvaluationError, State
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.models.inputs import InputSettings, task_data
from svd_hybrid.models.live import LiveModel
from svd_hybrid.models.load import live_model

SETTING_SUFFIXES = (".json", ".txt", ".model")
"""Files of a model folder that say how it runs and how its inputs are made; no weights."""


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How a live model is built and fed.

    Args:
        base: checkpoint of the base; gives names and shapes.
        model: folder with config.json, or `module:function`; None for the base's own folder.
        data: `[TASK=]SOURCE` entries, as of `--data`.
        tasks: to score on.
        inputs: how data becomes batches.
    """

    base: CheckpointReader
    model: str | None
    data: tuple[str, ...]
    tasks: tuple[str, ...]
    inputs: InputSettings


class LiveData:
    """One live model, whose weights are replaced for every subject, and every task's samples.

    Raises (on construction):
        UsageError: a task without data, or the extra `[eval]` is not installed.
        FamilyError, StorageError: model or data that cannot be read.
    """

    def __init__(self, settings: LiveSettings) -> None:
        self.settings = settings
        self.sources = sources_of(settings.data, settings.tasks)
        fields: Fields = settings.inputs.fields
        self.examples = {
            task: load_examples(source, task, fields) for task, source in self.sources.items()
        }
        self.notes: list[str] = []
        self.live: LiveModel = live_model(settings.base, settings.model)
        self._digests: dict[str, str] = {}

    def put(self, state: State) -> None:
        """Replace the weights.

        Raises:
            EvaluationError: they are not those of this model.
        """
        try:
            self.live.put(state.items(), "the model to be scored")
        except FamilyError as error:
            raise EvaluationError(error.what, where=error.where, fix=error.fix) from error

    def batches(self, task: str, examples: Examples) -> TaskData:
        """Chosen samples of a task as the batches the model takes.

        Raises:
            EvaluationError: they are not what the model takes.
        """
        every = replace(self.settings.inputs, samples=None)
        try:
            data = task_data(self.live, examples, self.sources[task], every)
        except FamilyError as error:
            raise EvaluationError(error.what, where=error.where, fix=error.fix) from error
        self.notes += [note for note in data.notes if note not in self.notes]
        return data

    def digest(self, task: str) -> str:
        """SHA-256 (hex) of a task's samples and labels."""
        if task not in self._digests:
            self._digests[task] = self.examples[task].digest
        return self._digests[task]

    def identity(self, task: str) -> Mapping[str, Any] | None:
        """Data, inputs and configuration; None for a model built by code that may change."""
        if self.live.folder is None:
            return None
        inputs = self.settings.inputs
        folders = {"model": self.live.folder}
        if inputs.tokenizer is not None:
            folders["tokenizer"] = inputs.tokenizer
        return {
            "data": self.digest(task),
            "inputs": {
                "samples": inputs.samples,
                "batch_size": inputs.batch_size,
                "max_length": inputs.max_length,
                "normalise": inputs.normalise,
                "image_size": inputs.image_size,
                "image_channels": inputs.image_channels,
            },
            **{name: folder_digest(folder) for name, folder in folders.items()},
        }


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) of a model folder's settings: configuration, tokenizer, image processor."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in SETTING_SUFFIXES and path.is_file():
            data = path.read_bytes()
            digest.update(f"{path.name} {len(data)}\n".encode())
            digest.update(data)
    return digest.hexdigest()


def by_length(examples: Examples) -> Examples:
    """Texts ordered by length, so that a batch is padded little; others as they are."""
    if examples.kind != "text":
        return examples
    lengths = [len(text) for text in examples.inputs]
    order: Sequence[int] = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return examples.selected(order)
