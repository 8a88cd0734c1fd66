"""What a method gets to see: deltas and context of one tensor, and the scans before the merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.compress.masks.family import FamilyMasks
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.source import DeltaSource
from svd_hybrid.compress.statistics import FamilyStatistics
from svd_hybrid.errors import UsageError
from svd_hybrid.io.family import Stack, is_buffer
from svd_hybrid.methods.base import MergeMethod, TensorContext

Progress = Callable[[str, int, int], None]
"""Called with (step, done, total) as tensors are finished."""


class FamilyStream:
    """Deltas and contexts of a family, as one method sees them.

    Args:
        method: the method.
        source: where deltas come from.
        settings: parameters, weights and densities per tensor.
        masks: the user's masks.
        statistics: the user's layer statistics.
    """

    def __init__(
        self,
        method: MergeMethod,
        source: DeltaSource,
        settings: FamilySettings,
        masks: FamilyMasks,
        statistics: FamilyStatistics,
    ) -> None:
        self.method = method
        self.source = source
        self.settings = settings
        self.masks = masks
        self.statistics = statistics
        self._scanned: dict[tuple[Any, ...], Any] = {}

    def context(self, name: str, base: Tensor) -> TensorContext:
        """What the method may know about one tensor besides its deltas."""
        settings = self.settings.of(name)
        per_task = self.method.takes_masks == "per-task"
        return TensorContext(
            name,
            tuple(self.source.task_names),
            base,
            settings.weights,
            settings.densities,
            self._scanned.get(settings.scan_key),
            self.statistics.of(name) if self.method.statistics else None,
            self.masks.per_task(name) if per_task else None,
            self.statistics.inputs_first(name),
        )

    def weighted(self, deltas: Tensor, ctx: TensorContext) -> Tensor:
        """The deltas as the method wants them: times the weights, unless it applies those itself.

        Args:
            deltas: (N, *shape).
            ctx: of the tensor.

        Returns:
            The same tensor where nothing is to be done, else a new one.
        """
        if self.method.own_weights or set(ctx.weights) == {1.0}:
            return deltas
        factors = torch.tensor(ctx.weights, dtype=deltas.dtype)
        return deltas * factors.reshape(-1, *[1] * (deltas.ndim - 1))

    def read(self, name: str) -> tuple[Stack, TensorContext]:
        """One tensor and its context."""
        stack = self.source.stack(name)
        return stack, self.context(name, stack.base)

    def scan(self, names: Sequence[str], progress: Progress | None) -> None:
        """Run the method's scan over each group of tensors with equal parameters.

        Args:
            names: of the tensors that are merged, ascending; running statistics are left out.
            progress: called as tensors are read.
        """
        if self.method.scan is None:
            return
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name in names:
            settings = self.settings.of(name)
            if not is_buffer(name) and not settings.keep_base:
                groups.setdefault(settings.scan_key, []).append(name)
        for key, members in groups.items():
            params = self.settings.of(members[0]).method
            self._scanned[key] = self.method.scan(_Group(self, members, progress), params)

    @property
    def task_gains(self) -> tuple[float, ...]:
        """Factor on each task's delta, where a scan found some; else empty.

        Raises:
            UsageError: overrides made groups of tensors with different gains.
        """
        found = {getattr(result, "task_gains", ()) for result in self._scanned.values()}
        if len(found) > 1:
            raise UsageError(
                f"method {self.method.name} has one gain per task for the whole model",
                fix="drop the overrides of its parameters",
            )
        return next(iter(found), ())


class _Group:
    """The tensors of one scan (a TensorStream)."""

    def __init__(
        self, family: FamilyStream, names: Sequence[str], progress: Progress | None
    ) -> None:
        self.family = family
        self.names = names
        self.progress = progress

    @property
    def scalars(self) -> int:
        """Scalars of one task's deltas over all these tensors."""
        infos = self.family.source.base.infos
        return sum(infos[name].count for name in self.names)

    def __iter__(self) -> Iterator[tuple[Tensor, TensorContext]]:
        """Deltas and context of each tensor, by ascending name."""
        for done, name in enumerate(self.names, start=1):
            stack, ctx = self.family.read(name)
            assert stack.deltas is not None  # only tensors with deltas are scanned
            yield self.family.weighted(stack.deltas, ctx), ctx
            if self.progress:
                self.progress("scan", done, len(self.names))
