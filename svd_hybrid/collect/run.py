"""`svdh stats collect`: every task's data through a model, its layers' inputs into files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from svd_hybrid.collect.attention import visible_attention
from svd_hybrid.collect.blocks import Blocks
from svd_hybrid.collect.layers import Layer, weight_layers
from svd_hybrid.collect.record import StatisticsRecord, digests
from svd_hybrid.collect.recorder import Kind, Recorder
from svd_hybrid.collect.store import StatisticsStore
from svd_hybrid.data.batches import TaskData
from svd_hybrid.data.source import Source
from svd_hybrid.errors import FamilyError, StorageError, UsageError, shorten
from svd_hybrid.io.adapter.reader import open_task
from svd_hybrid.io.outputs import protect_inputs
from svd_hybrid.io.reader import ADAPTER_ENTRY, CheckpointReader, open_checkpoint
from svd_hybrid.models.inputs import InputSettings, open_task_data
from svd_hybrid.models.live import LiveModel
from svd_hybrid.models.load import live_model

Progress = Callable[[str, int, int], None]
AROUND = "around"
FEW = 64
"""Fewer samples than this make statistics that depend on which ones were taken."""


@dataclass(frozen=True, slots=True)
class CollectRequest:
    """What to collect.

    Args:
        tasks: checkpoint by task, in order.
        sources: data by task.
        output: folder for `<task>.safetensors`.
        kind: second moments (n,), or Gram matrices (n, n).
        base: base checkpoint; needed where `ran` is `base`.
        model: folder with config.json, or `module:function`; None for the first of the task's own
            folder and the base that has one.
        ran: whose weights run: each task's own, or the base's.
        inputs: how data becomes batches.
        overwrite: replace statistics of other weights, data or settings.
    """

    tasks: Mapping[str, Path]
    sources: Mapping[str, Source]
    output: Path
    kind: Kind = "moment"
    base: Path | None = None
    model: str | None = None
    ran: Literal["task", "base"] = "task"
    inputs: InputSettings = field(default_factory=InputSettings)
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class CollectResult:
    """What was collected.

    Args:
        folder: with the files.
        records: by task.
        seconds: by task; 0 where the file was there already.
        notes: what the user should know.
    """

    folder: Path
    records: Mapping[str, StatisticsRecord]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """One document."""
        tasks = {task: record.summary() for task, record in self.records.items()}
        return {
            "statistics_dir": str(self.folder),
            "tasks": tasks,
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
        }


def run_collect(request: CollectRequest, progress: Progress | None = None) -> CollectResult:
    """Collect and store the statistics of every task.

    Raises:
        UsageError, StorageError, FamilyError: a model or data that cannot be used, or a folder
            that is in the way.
        LockedError: another run collects into that folder.
    """
    if request.ran == "base" and request.base is None:
        raise UsageError("no base given", fix="pass --base-model-path PATH")
    if request.base is not None and not request.base.exists():
        raise StorageError(
            "base does not exist", where=str(request.base), fix="check the path and its spelling"
        )
    checkpoints = [*request.tasks.values(), *([request.base] if request.base else [])]
    protect_inputs(request.output, checkpoints)
    store = StatisticsStore(request.output)
    with store.reserved():
        return _collect_tasks(request, store, progress)


def _collect_tasks(
    request: CollectRequest, store: StatisticsStore, progress: Progress | None
) -> CollectResult:
    records: dict[str, StatisticsRecord] = {}
    seconds: dict[str, float] = {}
    notes: list[str] = []
    live: LiveModel | None = None
    for number, task in enumerate(request.tasks, start=1):
        started = time.monotonic()
        live = _model_of(request, task, live)
        data = open_task_data(live, request.sources[task], task, request.inputs)
        notes += _notes_on(live, data, task)
        planned = StatisticsRecord(
            task,
            request.kind,
            request.ran,
            digests(_checkpoint_of(request, task)),
            data.described(),
        )
        stored = store.finished(planned, request.overwrite)
        if stored is not None:
            notes.append(f"task {task!r} was collected before")
            records[task], seconds[task] = stored, 0.0
        else:
            run = _TaskRun(live, data, store, planned, progress)
            records[task], seconds[task] = run.collect(), time.monotonic() - started
            notes += run.notes
        if progress:
            progress("tasks", number, len(request.tasks))
    store.write_summary({task: record.summary() for task, record in records.items()})
    return CollectResult(request.output, records, seconds, tuple(dict.fromkeys(notes)))


def _checkpoint_of(request: CollectRequest, task: str) -> CheckpointReader:
    """The weights that run on a task's data."""
    if request.base is None:
        return _without_base(request.tasks[task])
    if request.ran == "base":
        return open_checkpoint(request.base)
    return open_task(request.tasks[task], open_checkpoint(request.base))


def _without_base(path: Path) -> CheckpointReader:
    if (path / ADAPTER_ENTRY).is_file():
        raise UsageError(
            "an adapter runs on its base, and none is given",
            where=str(path),
            fix="pass --base-model-path PATH",
        )
    return open_checkpoint(path)


def _model_of(request: CollectRequest, task: str, live: LiveModel | None) -> LiveModel:
    """The model with those weights; the one at hand where the configuration is the same."""
    checkpoint = _checkpoint_of(request, task)
    base = request.base
    configured = base is not None and base.is_dir() and (base / "config.json").is_file()
    model = request.model or (base if configured else None)
    if live is not None and model is not None and live.infos == checkpoint.infos:
        live.put_checkpoint(checkpoint)
        return live
    return live_model(checkpoint, model)


def _notes_on(live: LiveModel, data: TaskData, task: str) -> list[str]:
    few = f"task {task!r} has {len(data)} samples; {FEW} and more are steadier"
    return [*live.notes, *data.notes, *([few] if len(data) < FEW else [])]


class _TaskRun:
    """One task's data through one model."""

    def __init__(
        self,
        live: LiveModel,
        data: TaskData,
        store: StatisticsStore,
        record: StatisticsRecord,
        progress: Progress | None,
    ) -> None:
        self.live = live
        self.data = data
        self.store = store
        self.record = record
        self.progress = progress
        self.notes: list[str] = []

    def collect(self) -> StatisticsRecord:
        """Run what no earlier run has finished and write the task's file."""
        layers, self.notes = weight_layers(self.live)
        with _ready(self.live):
            grams = self.record.kind == "gram"
            blocks = Blocks(self.live, next(iter(self.data))) if grams else None
            groups = self._groups(layers, blocks)
            for done, (group, members) in enumerate(groups.items(), start=1):
                if not self.store.has_piece(self.record, group):
                    self._collect_group(members, blocks, group)
                if self.progress:
                    self.progress(self.record.task, done, len(groups))
        return self._finished(layers, list(groups))

    def _collect_group(self, layers: list[Layer], blocks: Blocks | None, group: str) -> None:
        """One group, stored and forgotten before the next one comes."""
        self.store.keep_piece(self.record, group, self._recorded(layers, blocks, group))

    def _groups(self, layers: list[Layer], blocks: Blocks | None) -> dict[str, list[Layer]]:
        """Layers that are collected together: a block's Grams, or all moments at once."""
        if blocks is None:
            return {AROUND: layers}
        groups: dict[str, list[Layer]] = {path: [] for path in blocks.paths}
        groups[AROUND] = []
        for layer in layers:
            owner = next((p for p in blocks.paths if f"{layer.path}.".startswith(f"{p}.")), AROUND)
            groups[owner].append(layer)
        shared = _in_several(groups)
        if shared:
            groups = {
                name: [layer for layer in members if layer.names not in shared]
                for name, members in groups.items()
            }
            listed = sorted(name for names in shared for name in names)
            self.notes.append(f"no Gram of weights that several layers share: {shorten(listed)}")
        if not blocks.chained:
            self.notes.append(
                "blocks depend on more than the block before them: the whole model runs for each"
            )
        return {name: members for name, members in groups.items() if members}

    def _recorded(
        self, layers: list[Layer], blocks: Blocks | None, group: str
    ) -> dict[str, tuple[Tensor, int]]:
        """Mean and number of inputs, by checkpoint name."""
        recorder = Recorder(
            self.record.kind,
            layers,
            self.data.examples.source,
            own_module=self.live.config is None,
        )
        block = blocks.paths.index(group) if blocks and group in blocks.paths else None
        for batch in self.data:
            with recorder.recording(self.live.module, batch):
                if blocks is None:
                    self.live(batch.inputs)
                else:
                    blocks.run(batch, block)
        found: dict[str, tuple[Tensor, int]] = {}
        while recorder.moments:  # each float64 sum is freed once its mean is taken
            names, moments = recorder.moments.popitem()
            if moments.samples:
                mean = moments.mean
                found |= dict.fromkeys(names, (mean, moments.samples))
        return found

    def _finished(self, layers: list[Layer], groups: list[str]) -> StatisticsRecord:
        """Write the task's file and say what it lacks.

        Raises:
            FamilyError: no layer was seen.
        """
        seen = self.store.stored_names(self.record, groups)
        if not seen:
            raise FamilyError(
                "no layer of this model has inputs that can be seen",
                where=self.live.source,
                fix="statistics need nn.Linear, Conv1D, convolutions or attention modules",
            )
        unused = sorted(name for layer in layers for name in layer.names if name not in seen)
        if unused:
            self.notes.append(f"no input passed through {shorten(unused, 3)}")
        first = {name for layer in layers if layer.inputs_first for name in layer.names}
        matrices = (n for n, i in self.live.infos.items() if i.is_float and len(i.shape) > 1)
        whole = replace(
            self.record,
            inputs_first=tuple(sorted(first & seen)),
            without=tuple(sorted(set(matrices) - seen)),
        )
        return self.store.finish(whole, groups)


def _in_several(groups: Mapping[str, list[Layer]]) -> set[tuple[str, ...]]:
    """Names of the weights that layers of more than one group share."""
    owners: dict[tuple[str, ...], set[str]] = {}
    for group, members in groups.items():
        for layer in members:
            owners.setdefault(layer.names, set()).add(group)
    return {names for names, found in owners.items() if len(found) > 1}


@contextmanager
def _ready(live: LiveModel) -> Iterator[None]:
    """Without gradients, caches and fused attention."""
    config = live.config
    caches = getattr(config, "use_cache", None)
    if caches:
        config.use_cache = False
    try:
        with torch.no_grad(), visible_attention(live.module):
            yield
    finally:
        if caches:
            config.use_cache = caches
