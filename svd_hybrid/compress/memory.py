"""A merge in memory: computed once, rebuilt for any scaling, written when it is wanted.

What is rebuilt has the bits that an artifact of the merge alone gives back, so what was measured
here is what is shipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.artifact.manifest import Manifest, TensorRecord
from svd_hybrid.artifact.merges import Merge, StoredMerge
from svd_hybrid.artifact.output import staged_artifact
from svd_hybrid.artifact.writer import ArtifactWriter, EncodedPart
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.encoder import FamilyEncoder
from svd_hybrid.compress.finish import finish_artifact
from svd_hybrid.compress.open_family import OpenFamily, open_source
from svd_hybrid.compress.profiles.base import EncodedParts
from svd_hybrid.compress.request import CompressRequest
from svd_hybrid.compress.source import DeltaSource
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.workers import Workers
from svd_hybrid.delta.evaluate import BeyondRangeError, Mix, evaluate, matrix_shape
from svd_hybrid.delta.serial import expr_from_json
from svd_hybrid.errors import UsageError
from svd_hybrid.numerics.threads import one_thread
from svd_hybrid.reload.rebuild import is_variance, last_step


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """What an artifact would hold of one tensor.

    Args:
        record: name, dtype, shape, digest and kind of the base tensor.
        parts: encoded parts by name.
        merges: expressions (JSON) by merge.
        alias: the tensor it is a twin of; None for its own parts.
    """

    record: TensorRecord
    parts: Mapping[str, EncodedPart] = field(default_factory=dict)
    merges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    alias: str | None = None


class HeldTensors:
    """Takes what an encoder makes, and keeps it (a compress.encoder.TensorSink)."""

    def __init__(self) -> None:
        self.by_name: dict[str, HeldTensor] = {}

    def add_tensor(
        self,
        record: TensorRecord,
        parts: Mapping[str, EncodedPart],
        *,
        task: Mapping[str, Any] | None = None,
        blend: Mapping[str, Any] | None = None,
        merges: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Keep one tensor; a merge alone has no `task` and no `blend`."""
        assert task is None
        assert blend is None
        self.by_name[record.name] = HeldTensor(record, parts, merges or {})

    def add_alias(self, record: TensorRecord, alias: str) -> None:
        """Keep the name of a twin."""
        self.by_name[record.name] = HeldTensor(record, alias=alias)

    def write_to(self, writer: ArtifactWriter) -> None:
        """Hand everything on, in the order it came."""
        for held in self.by_name.values():
            if held.alias is not None:
                writer.add_alias(held.record, held.alias)
            else:
                writer.add_tensor(held.record, held.parts, merges=held.merges)


@dataclass(frozen=True, slots=True)
class MemoryMerge:
    """A merge of a family by one method, before scaling.

    Args:
        family: what it was computed from.
        tensors: what it is made of.
        merge: the record a manifest has of it.
        diagnostics: of the run.
        scaling: the factor on the merged delta that the method's parameters say.
        cpu_s: time it took.
    """

    family: OpenFamily
    tensors: HeldTensors
    merge: StoredMerge
    diagnostics: Diagnostics
    scaling: float
    cpu_s: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of weights, masks and statistics."""
        family = self.family
        return (*family.weights.notes, *family.masks.notes, *family.statistics.notes)

    def state(self, scaling: float) -> dict[str, Tensor]:
        """Every tensor of base + scaling * merged delta, in base order and base dtypes.

        Raises:
            BeyondRangeError: a number does not fit the base's dtype.
        """
        return dict(self._stream(scaling))

    def _stream(self, scaling: float) -> Iterator[tuple[str, Tensor]]:
        base = self.family.source.base
        for name in base.infos:
            held = self.tensors.by_name[name]
            owner = held if held.alias is None else self.tensors.by_name[held.alias]
            yield name, self._rebuilt(held.record, owner, base.read(name), scaling)

    def _rebuilt(
        self, record: TensorRecord, owner: HeldTensor, base: Tensor, scaling: float
    ) -> Tensor:
        entry = owner.merges.get(self.family.config.merge_name)
        factor = 1.0 if record.buffer else scaling
        if entry is None or not factor:
            return base.clone()
        rows, columns = matrix_shape(record.shape)
        matrix = base.reshape(rows, columns)
        parts = EncodedParts(owner.parts)
        mix = Mix({}, shared=factor)
        delta = evaluate(expr_from_json(entry["merged"]), parts, mix, (rows, columns), matrix)
        variance = record.buffer and is_variance(record.name)
        rebuilt = last_step(matrix, delta.rows(0, rows), base.dtype, variance=variance)
        if not bool(torch.isfinite(rebuilt).all()):
            raise BeyondRangeError(
                f"merged tensor does not fit {base.dtype}: it would hold infinity",
                where=f"tensor {record.name!r}, scaling {scaling:g}",
                fix="use a smaller scaling",
            )
        return rebuilt.reshape(record.shape)

    def write(self, folder: Path, scaling: float, *, overwrite: bool = False) -> Manifest:
        """Publish it as an artifact of the merge alone.

        Args:
            folder: the directory to make.
            scaling: what the merge is multiplied by.
            overwrite: replace an existing directory.

        Raises:
            StorageError: the directory is in the way, or cannot be written.
        """
        source, config = self.family.source, self.family.config
        parameters = {**self.merge.parameters, "scaling": scaling}
        record: Merge = replace(self.merge, scaling=scaling, parameters=parameters)
        scaled = replace(config, parameters={**config.parameters, "scaling": scaling})
        with staged_artifact(folder, overwrite) as staging:
            writer = ArtifactWriter(staging, config.profile, source.task_names, holds_tasks=False)
            self.tensors.write_to(writer)
            return finish_artifact(
                writer,
                scaled,
                {config.merge_name: record},
                source.task_names,
                self.family.weights,
                self.diagnostics,
            )


def merge_in_memory(
    request: CompressRequest,
    source: DeltaSource | None = None,
    progress: Progress | None = None,
) -> MemoryMerge:
    """Compute a merge and keep it.

    Args:
        request: as for `run_compress`; its `artifact_dir`, `overwrite` and what its configuration
            says of storage have no meaning here.
        source: the request's deltas, when they are already open.
        progress: called with (step, done, total).

    Raises:
        UsageError: some tensors have a scaling of their own.
        SvdhError: as `run_compress`, but for what writing can raise.
    """
    started = time.process_time()
    if any("scaling" in rule.values for rule in request.config.overrides):
        raise UsageError(
            "a merge in memory has one scaling, and an override sets another",
            fix="drop scaling from the overrides",
        )
    config = replace(
        request.config,
        store_tasks="off",
        eval_reconstruction=False,
        merged_dtype="fp32",
        parameters={**request.config.parameters, "scaling": 1.0},
    )
    request, given = replace(request, config=config), request.config
    source = source or open_source(request)
    family = OpenFamily.open(request, source, progress)
    plan = family.plan(config)
    diagnostics = family.diagnostics(plan)
    tensors = HeldTensors()
    encoder = FamilyEncoder(plan, family.stream(config), tensors, diagnostics, Workers())
    with one_thread():
        encoder.run(progress)
    merge = encoder.merge(family.weights.weights)
    assert isinstance(merge, StoredMerge)  # nothing else is made without stored tasks
    scaling = float(given.method_params.scaling)
    return MemoryMerge(family, tensors, merge, diagnostics, scaling, time.process_time() - started)
