"""The step that meets a target: trial encodings in memory, then the artifact itself decides.

Bytes fall and errors rise with the step, so a bracketed search on its logarithm finds it. Large
families are tried on a sample; what the finished directory really takes, and what was really
lost, corrects the aim.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.profiles.auto.kinds import is_thin
from svd_hybrid.compress.profiles.params import SIGNAL_ERROR, TARGETS
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.stream import FamilyStream, Progress
from svd_hybrid.compress.tensor import encode_tensor, settings_of_kind
from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.errors import UsageError
from svd_hybrid.numerics.metrics import squared_norm

SAMPLE_SCALARS = 2**26
"""Scalars of all tasks that trials encode; larger families are sampled, tensor by tensor."""
FINEST, COARSEST = -16.0, 8.0  # log2 of the step over the deviation of the deltas
TRIALS = 12
CLOSE = 0.003  # relative distance from the goal at which a search stops
SIZE_AIM, SIZE_FLOOR = 0.996, 0.99
ERROR_AIM, ERROR_FLOOR = 0.99, 0.96
FAR = 4.0
"""Distance from the goal, in log2, that counts at most: errors of few numbers jump."""
JUMP = 0.02
"""Distance of two steps, in log2, below which their errors are told apart no further."""
MOST_CHANGE = 2.0
"""Factor on an aim from one attempt to the next."""
ATTEMPTS = 6
OVERHEAD_BYTES, OVERHEAD_PER_TENSOR = 6000, 90
"""First guess at what a directory takes besides coded numbers; the first artifact tells."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one step gives on the sample: bytes of all strings, and the relative error."""

    nbytes: float
    error: float


class StepSearch:
    """Proposes steps until an artifact meets the target.

    Args:
        config: with a profile that has a target and no step.
        stream: deltas and masks; its settings are replaced by those of each trial.
        settings_with: configuration → settings.
        scalars: of one checkpoint, all tensors.
        progress: called as trials are made.
    """

    def __init__(
        self,
        config: CompressConfig,
        stream: FamilyStream,
        settings_with: Callable[[CompressConfig], FamilySettings],
        scalars: int,
        progress: Progress | None,
    ) -> None:
        self.config = config
        self.stream = stream
        self.settings_with = settings_with
        self.progress = progress
        self.kind, value = config.profile_params.target
        tasks = len(stream.source.task_names)
        self._scalars = scalars * tasks
        self.target = value * scalars * tasks / 8 if self.kind == "target_bits" else value
        self._sample = self._sampled(SAMPLE_SCALARS // max(tasks, 1))
        self._thin = True  # whether all matrices are: a family of adapters
        self._deviation = self._measured()
        if self._thin and not config.profile_params.has_target:
            self.target = SIGNAL_ERROR
        self._trials: dict[float, Trial] = {}
        overhead = OVERHEAD_BYTES + OVERHEAD_PER_TENSOR * len(stream.source.base.infos)
        by_error = self.kind == "target_error"
        self._goal = self.target * (ERROR_AIM if by_error else SIZE_AIM)
        self._goal -= 0 if by_error else overhead
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
        last = self._attempts >= ATTEMPTS and self._met is not None
        self._position = self._met[1] if last and self._met else self._search()
        return self._with(self._position)

    def accepts(self, size: int, error: float | None) -> bool:
        """Whether the artifact just made meets the target; if not, the aim is corrected.

        Args:
            size: bytes of its directory.
            error: relative error of what is stored, as measured; None when it was not.

        Raises:
            UsageError: the target is out of reach.
        """
        if self.kind == "target_error":
            actual = self._trials_near(self._position).error if error is None else error
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
            unit = "" if self.kind == "target_error" else " bytes"
            raise UsageError(
                f"{self.kind} is out of reach: {actual:.6g}{unit} is the closest to "
                f"{self.target:.6g}",
                fix="allow more, or pass --set step",
            )
        return False

    @property
    def _at_a_jump(self) -> bool:
        """Whether steps hardly coarser were tried and lose more than is allowed."""
        coarser = [p for p in self._trials if self._position < p <= self._position + JUMP]
        return any(self._trials[p].error > self.target for p in coarser)

    @property
    def _at_an_end(self) -> bool:
        return self._position in (FINEST, COARSEST)

    def _with(self, position: float) -> CompressConfig:
        step = self._deviation * 2.0**position
        chosen = {k: v for k, v in self.config.parameters.items() if k not in TARGETS}
        return replace(self.config, parameters=chosen | {"step": float(f"{step:.7g}")})

    def _value(self, position: float) -> float:
        trial = self._trials_near(position)
        return trial.error if self.kind == "target_error" else trial.nbytes

    def _trials_near(self, position: float) -> Trial:
        if position not in self._trials:
            self._trials[position] = self._try(position)
        return self._trials[position]

    def _search(self) -> float:
        """Where the trials' value meets the goal, in log2 of the step over the deviation."""
        rising = 1.0 if self.kind == "target_error" else -1.0

        def excess(position: float) -> float:  # rises with the position
            return rising * math.log2(max(self._value(position), 1e-12) / self._goal)

        known = sorted(self._trials)
        low = max((p for p in known if excess(p) <= 0), default=None)
        high = min((p for p in known if excess(p) > 0), default=None)
        position = known[0] if known else self._first_guess()
        for _ in range(TRIALS):
            if low is None or high is None:
                at = position if not known else (high if low is None else low)
                assert at is not None
                step = -excess(at) * 1.2
                position = min(max(at + (step or 0.1), FINEST), COARSEST) if known else at
            else:
                below, above = max(excess(low), -FAR), min(excess(high), FAR)
                share = min(max(-below / (above - below), 0.02), 0.98)
                position = low + share * (high - low)
                if high - low < 1e-4:
                    return low
            position = round(position, 6)
            found = excess(position)
            known = sorted(self._trials)
            beyond = position == (COARSEST if found <= 0 else FINEST)  # no step meets the goal
            if abs(found) < CLOSE or beyond:
                return position
            if found <= 0:
                low = position if low is None else max(low, position)
            else:
                high = position if high is None else min(high, position)
        return position if low is None else low

    def _first_guess(self) -> float:
        """Where trained families met such targets (docs/codec.md), in log2 of the step."""
        quality = self.config.profile_params.objective == "quality"
        if self.kind == "target_error":
            guess = math.log2((3.9 if quality else 4.7) * self.target)
        else:
            bits = math.log2(max(8 * self._goal / self._scalars, 1e-3))
            guess = 0.8 - 1.15 * bits if quality else -0.15 - bits
        return min(max(guess, FINEST + 1), COARSEST - 1)

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

    def _try(self, position: float) -> Trial:
        config = self._with(position)
        measured = replace(config, eval_reconstruction=self.kind == "target_error")
        settings = self.settings_with(config)
        nbytes = error_sq = original_sq = 0.0
        for done, (name, stands_for) in enumerate(self._sample.items(), start=1):
            stack = self.stream.source.stack(name)
            if stack.deltas is None:
                continue
            shape = self.stream.source.base.infos[name].shape
            own = settings_of_kind(settings.of(name), config.profile, name, shape)
            masked = self.stream.method.takes_masks == "combined"
            mask = self.stream.masks.combined(name) if masked else None
            inputs = self.stream.inputs.of(name)
            encoded = encode_tensor(stack.deltas, mask, measured, own, inputs=inputs)
            nbytes += stands_for * encoded.nbytes
            error_sq += stands_for * sum(task.stored.error_sq for task in encoded.errors)
            original_sq += stands_for * sum(task.stored.original_sq for task in encoded.errors)
            if self.progress:
                self.progress("search", done, len(self._sample))
            self.stream.source.recycle(stack.deltas)
        return Trial(nbytes, math.sqrt(error_sq / original_sq) if original_sq else 0.0)
