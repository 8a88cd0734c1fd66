"""The step that meets a target: trial encodings in memory, then the artifact itself decides.

Bytes fall and errors rise with the step. Large families are tried on a sample; what the finished
directory really takes, and what was really lost, corrects the aim.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.crossing import Crossing
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.profiles.auto.kinds import is_thin
from svd_hybrid.compress.profiles.auto.own_step import COARSEST, FINEST, error_guess
from svd_hybrid.compress.profiles.base import Tried
from svd_hybrid.compress.profiles.params import SIGNAL_ERROR, TARGETS, AutoParams
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.stream import FamilyStream, Progress
from svd_hybrid.compress.tensor import settings_of_kind, try_tensor
from svd_hybrid.compress.workers import Call, Workers
from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.errors import UsageError
from svd_hybrid.numerics.metrics import squared_norm

SAMPLE_SCALARS = 2**26
"""Scalars of all tasks that trials encode; larger families are sampled, tensor by tensor."""
SIZE_AIM, SIZE_FLOOR = 0.996, 0.99
ERROR_AIM, ERROR_FLOOR = 0.99, 0.96
ERROR_SLOPE = 1.0
SIZE_SLOPE, SLOPE_BITS = 1.15, 1.44
"""Bytes fall by one octave in so much of the step's; where numbers are fine, by a bit a number."""
TRUSTED = {"target_error": 0.25, "target_size": 0.04, "target_bits": 0.04}
"""Distance from a trial, in log2, within which what the next one would give is known."""
JUMP = 0.02
"""Distance of two steps, in log2, below which their errors are told apart no further."""
MOST_CHANGE = 2.0
"""Factor on an aim from one attempt to the next."""
ATTEMPTS = 6
TRUSTING_ATTEMPTS = {"target_error": 1, "target_size": 3, "target_bits": 3}
"""Attempts at which trials are saved; errors of few numbers jump, and then all are needed."""
OVERHEAD_BYTES, OVERHEAD_PER_TENSOR, OVERHEAD_PER_SLICE = 4600, 45, 13
OVERHEAD_SHARE = 0.003
"""First guess at what a directory takes besides coded numbers; the first artifact tells."""


def has_step_to_find(params: Any) -> bool:
    """Whether a profile with these parameters needs a step for the whole family."""
    return isinstance(params, AutoParams) and params.step is None and params.error_scope != "tensor"


class StepSearch:
    """Proposes steps until an artifact meets the target.

    Args:
        config: with a profile that has a target and no step.
        stream: deltas and masks; its settings are replaced by those of each trial.
        settings_with: configuration → settings.
        scalars: of one checkpoint, all tensors.
        workers: who makes the trials.
        progress: called as trials are made.
        corrected: whether `accepts` will hear of what is made of a proposal.
    """

    def __init__(
        self,
        config: CompressConfig,
        stream: FamilyStream,
        settings_with: Callable[[CompressConfig], FamilySettings],
        scalars: int,
        workers: Workers,
        progress: Progress | None,
        *,
        corrected: bool = True,
    ) -> None:
        self.config = config
        self.stream = stream
        self.settings_with = settings_with
        self.workers = workers
        self.progress = progress
        self.corrected = corrected
        self.kind, value = config.profile_params.target
        tasks = len(stream.source.task_names)
        self.target: float = value * scalars * tasks / 8 if self.kind == "target_bits" else value
        self._sample = self._sampled(SAMPLE_SCALARS // max(tasks, 1))
        self._thin = True  # whether all matrices are: a family of adapters
        self._deviation = self._measured()
        if self._thin and not config.profile_params.has_target:
            self.target = SIGNAL_ERROR
        self._by_error = self.kind == "target_error"
        self._goal = self.target * (ERROR_AIM if self._by_error else SIZE_AIM)
        self._goal -= 0 if self._by_error else self._overhead()
        self._crossing = self._new_crossing(scalars * tasks)
        self._attempts = 0
        self._met: tuple[float, float] | None = None  # nearest that was allowed, and its position
        self._position = 0.0

    def propose(self) -> CompressConfig:
        """The configuration with the step to encode with next.

        Raises:
            UsageError: a size that the directory exceeds even without any number.
        """
        if self._goal <= 0:
            raise UsageError(
                f"{self.kind}: {self.target:.0f} bytes are less than names and digests take",
                fix="allow more bytes",
            )
        self._attempts += 1
        if self._attempts >= ATTEMPTS and self._met is not None:
            self._position = self._met[1]
        else:
            trusts = self.corrected and self._attempts <= TRUSTING_ATTEMPTS[self.kind]
            trusted = TRUSTED[self.kind] if trusts else 0.0
            self._position = self._crossing.find(self._goal, trusted)
        return self._with(self._position)

    def accepts(self, size: int, diagnostics: Diagnostics) -> bool:
        """Whether the artifact just made meets the target; if not, the aim is corrected.

        Args:
            size: bytes of its directory.
            diagnostics: what was measured of it.

        Raises:
            UsageError: the target is out of reach.
        """
        if self._by_error:
            error = diagnostics.stored_error(worst_task=self._worst_task)
            actual = self._crossing.value(self._position) if error is None else error
            good = ERROR_FLOOR * self.target < actual <= self.target
            good |= actual <= self.target and self._at_a_jump
            change = ERROR_AIM * self.target / max(actual, 1e-30)
            self._goal *= min(max(change, 1 / MOST_CHANGE), MOST_CHANGE)
        else:
            actual = float(size)
            good = SIZE_FLOOR * self.target < actual <= self.target
            self._goal += SIZE_AIM * self.target - actual
        if actual <= self.target:
            self._met = max(self._met or (0.0, 0.0), (actual, self._position))
        if good or (self._at_an_end and actual <= self.target):
            return True
        if self._attempts >= ATTEMPTS or self._at_an_end:
            if actual <= self.target:
                return True
            unit = "" if self._by_error else " bytes"
            raise UsageError(
                f"{self.kind} is out of reach: {actual:.6g}{unit} is the closest to "
                f"{self.target:.6g}",
                fix="allow more, or pass --set step",
            )
        return False

    @property
    def _at_a_jump(self) -> bool:
        """Whether steps hardly coarser were tried and lose more than is allowed."""
        tried = self._crossing.tried.items()
        near = [error for p, error in tried if self._position < p <= self._position + JUMP]
        return any(error > self.target for error in near)

    @property
    def _at_an_end(self) -> bool:
        return self._position in (FINEST, COARSEST)

    def _with(self, position: float) -> CompressConfig:
        step = self._deviation * 2.0**position
        aims = (*TARGETS, "error_scope")
        chosen = {k: v for k, v in self.config.parameters.items() if k not in aims}
        return replace(self.config, parameters=chosen | {"step": float(f"{step:.7g}")})

    def _overhead(self) -> float:
        """Bytes of a directory besides coded numbers, about."""
        tensors = len(self.stream.source.base.infos)
        slices = tensors * len(self.stream.source.task_names)
        names = OVERHEAD_BYTES + OVERHEAD_PER_TENSOR * tensors + OVERHEAD_PER_SLICE * slices
        return names + OVERHEAD_SHARE * self.target

    def _new_crossing(self, scalars: int) -> Crossing:
        """From where trained families met such targets (docs/codec.md)."""
        limits = (FINEST, COARSEST)
        objective = self.config.profile_params.objective
        if self._by_error:
            guess = error_guess(self.target, objective)
            return Crossing(
                lambda position: self._try(position).error(worst_task=self._worst_task),
                rising=True,
                guess=guess,
                slope=ERROR_SLOPE,
                limits=limits,
            )
        bits = max(8 * self._goal / scalars, 1e-3)
        octaves = math.log2(bits)
        return Crossing(
            lambda position: self._try(position).nbytes,
            rising=False,
            guess=0.8 - 1.15 * octaves if objective == "quality" else -0.15 - octaves,
            slope=min(SIZE_SLOPE, SLOPE_BITS / bits),
            limits=limits,
        )

    @property
    def _worst_task(self) -> bool:
        return bool(self.config.profile_params.error_scope == "task")

    def _sampled(self, most: int) -> dict[str, float]:
        """Tensors that trials encode, and how many of their kind each stands for."""
        infos = self.stream.source.base.infos
        kinds: dict[Any, list[str]] = defaultdict(list)
        for name in sorted(infos):
            if self.stream.source.has_deltas(name):
                shape = infos[name].shape
                own = settings_of_kind(
                    self.stream.settings.of(name), self.config.profile, name, shape
                )
                kinds[shape, own.profile].append(name)
        total = sum(infos[name].count for names in kinds.values() for name in names)
        share = min(1.0, most / max(total, 1))
        sample: dict[str, float] = {}
        for names in kinds.values():
            kept = max(1, round(share * len(names)))
            chosen = [names[index * len(names) // kept] for index in range(kept)]
            sample |= dict.fromkeys(chosen, len(names) / kept)
        return sample

    def _measured(self) -> float:
        """Root mean square of the deltas; 1 where there are none."""
        square = count = 0.0
        for name, stands_for in self._sample.items():
            deltas = self.stream.source.stack(name).deltas
            if deltas is not None:
                square += stands_for * squared_norm(deltas)
                count += stands_for * deltas.numel()
                stack = deltas.reshape(len(deltas), *matrix_shape(tuple(deltas.shape[1:])))
                self._thin = self._thin and all(not x.any() or is_thin(x) for x in stack)
                self.stream.source.recycle(deltas)
        return math.sqrt(square / count) if square else 1.0

    def _try(self, position: float) -> Tried:
        config = self._with(position)
        settings = self.settings_with(config)
        nothing = (0.0,) * len(self.stream.source.task_names)
        total = Tried(0.0, nothing, nothing)

        def call(item: tuple[str, Tensor]) -> Call:
            name, deltas = item
            shape = self.stream.source.base.infos[name].shape
            own = settings_of_kind(settings.of(name), config.profile, name, shape)
            masked = self.stream.method.takes_masks == "combined"
            mask = self.stream.masks.combined(name) if masked else None
            return try_tensor, (deltas, mask, config, own, self.stream.inputs.of(name))

        for done, (item, tried) in enumerate(self.workers.answers(self._stacks(), call), start=1):
            name, deltas = item
            total = total.with_share(tried, self._sample[name])
            self.stream.source.recycle(deltas)
            del item, deltas  # before memory is taken for the next
            if self.progress:
                self.progress("search", done, len(self._sample))
        return total

    def _stacks(self) -> Iterator[tuple[str, Tensor]]:
        """The deltas of the sample."""
        for name in self._sample:
            deltas = self.stream.source.stack(name).deltas
            if deltas is not None:
                yield name, deltas
            del deltas
