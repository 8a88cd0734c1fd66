"""What is left to code of new tasks, once an artifact has given what its tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from svd_hybrid.artifact.manifest import TensorRecord
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.compress.allocation import StepSearch, has_step_to_find
from svd_hybrid.compress.append.tensor import GrowingTensor
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.masks.family import FamilyMasks
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.statistics import FamilyStatistics
from svd_hybrid.compress.stream import FamilyStream, Progress
from svd_hybrid.compress.workers import Workers
from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.delta.serial import expr_from_json
from svd_hybrid.io.family import Family, Stack
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.methods import METHODS
from svd_hybrid.numerics.threads import one_thread


class RestSource:
    """The new tasks as a family of their own (a DeltaSource), less what an artifact gives them.

    Args:
        artifact: opened.
        family: its base, and the new tasks.
        places: the index that each of them will have.
    """

    def __init__(self, artifact: ArtifactReader, family: Family, places: Mapping[str, int]) -> None:
        self.artifact = artifact
        self.family = family
        self.places = places
        self._records = {tensor.name: tensor for tensor in artifact.manifest.tensors}

    @property
    def base(self) -> CheckpointReader:
        """Reader of the base."""
        return self.family.base

    @property
    def task_names(self) -> list[str]:
        """New tasks in order."""
        return list(self.places)

    @property
    def bytes_replaced(self) -> int:
        """Size of their files."""
        return self.family.bytes_replaced

    def has_deltas(self, name: str) -> bool:
        """Whether deltas are formed for this tensor of the base."""
        return self.family.has_deltas(name)

    def stack(self, name: str) -> Stack:
        """The base tensor and what is left of the deltas."""
        stack = self.family.stack(name)
        if stack.deltas is None:
            return stack
        record = self._records[name]
        grown = self.grown(record, stack.base, ())
        rest = torch.empty_like(stack.deltas)
        for number, index in enumerate(self.places.values()):
            grown.clear(index)
            given = grown.delta(index).reshape(record.shape)
            rest[number] = stack.deltas[number].to(torch.float64) - given
        return Stack(stack.base, rest, bool(rest.any()))

    def tuned(self, name: str) -> Iterator[Tensor]:
        """The new tasks' tensors."""
        return self.family.tuned(name)

    def recycle(self, deltas: Tensor) -> None:
        """Take back a stack."""
        self.family.recycle(deltas)

    def same_everywhere(self, name: str, other: str) -> bool:
        """Whether two tensors are equal in every new task."""
        return self.family.same_everywhere(name, other)

    def all_notes(self) -> Sequence[str]:
        """What the user should know."""
        return self.family.all_notes()

    def grown(self, record: TensorRecord, base: Tensor, prefixes: tuple[str, ...]) -> GrowingTensor:
        """What the artifact holds of a tensor; single tasks of merges would lack the new ones."""
        owner = self.artifact.owner(record)
        return GrowingTensor(
            record.name,
            base.reshape(matrix_shape(record.shape)),
            self.artifact.parts(owner).encoded(),
            None if owner.task is None else expr_from_json(owner.task),
            None if owner.blend is None else expr_from_json(owner.blend),
            {name: {"merged": entry["merged"]} for name, entry in owner.merges.items()},
            prefixes,
        )


def found_step(
    config: CompressConfig, source: RestSource, progress: Progress | None
) -> CompressConfig:
    """The configuration with the step that meets its target, where its profile has one to find.

    Targets are those of the new tasks alone.
    """
    if not has_step_to_find(config.profile_params):
        return config
    infos = source.base.infos
    weights = (0.0,) * len(source.task_names)

    def settings(chosen: CompressConfig) -> FamilySettings:
        return FamilySettings(chosen, source.task_names, weights, infos)

    method = METHODS[config.method]
    statistics = FamilyStatistics({}, infos, "", config.missing_statistics)
    masks = FamilyMasks.open(None, source, config)
    stream = FamilyStream(method, source, settings(config), masks, statistics)
    scalars = sum(info.count for info in infos.values())
    with one_thread():
        search = StepSearch(config, stream, settings, scalars, Workers(), progress, corrected=False)
        return search.propose()
