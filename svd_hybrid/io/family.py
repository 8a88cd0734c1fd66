"""A family: one base and N fine-tunes, checked against each other and read tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from svd_hybrid.errors import FamilyError, UsageError, shorten
from svd_hybrid.io.adapter.reader import AdapterReader, open_task
from svd_hybrid.io.lookup import fold_name
from svd_hybrid.io.reader import CheckpointReader, file_bytes, open_checkpoint
from svd_hybrid.io.tensors import DTYPES, TensorInfo, info_of, raw_bytes
from svd_hybrid.numerics.largest import largest_magnitude

BUFFER_SUFFIXES = ("running_mean", "running_var")
MOST_CHARACTERS = 240
"""Of a list of problems in one error; the rest is counted."""
LARGEST_DELTA = 2.0**100
"""Sums and projections of such deltas stay finite in float32, their squares in float64."""


@dataclass(frozen=True, slots=True)
class FamilyPolicy:
    """What to do where tasks and base disagree; every default is to refuse.

    Args:
        on_missing: a task lacks a tensor of the base. `skip` keeps the base value of that tensor
            for all tasks; `zero` counts as no change for that task alone.
        on_extra: a task has a tensor the base lacks. `ignore` leaves it out.
        on_shape_mismatch: `skip` as above; `crop` uses the leading rows and columns where the
            fine-tune is at least as large as the base on every axis (resized vocabularies).
        nonfinite: a delta holds NaN or infinity. `zero` replaces those entries and counts them.
    """

    on_missing: Literal["error", "skip", "zero"] = "error"
    on_extra: Literal["error", "ignore"] = "error"
    on_shape_mismatch: Literal["error", "skip", "crop"] = "error"
    nonfinite: Literal["error", "zero"] = "error"


@dataclass(frozen=True, slots=True)
class Stack:
    """One tensor of the family.

    Args:
        base: the base tensor, in its own dtype.
        deltas: (N, *shape) float32 (float64 when the base is), task minus base in task order, or
            the product of an adapter's factors; None for tensors without deltas (integers, bools,
            skipped ones).
        changed: whether any delta holds a number other than zero.
    """

    base: Tensor
    deltas: Tensor | None
    changed: bool = False


@dataclass(slots=True)
class Family:
    """Base and tasks, opened and checked; nothing but headers is in memory.

    Args:
        base: reader of the base.
        tasks: reader by task name, in the order given.
        policy: what to do where they disagree.
        skipped: tensors that keep the base value, under `skip`.
        notes: what the user should know.
        kept_integers: non-float tensors in which some task differs from the base.
    """

    base: CheckpointReader
    tasks: Mapping[str, CheckpointReader]
    policy: FamilyPolicy = field(default_factory=FamilyPolicy)
    skipped: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    kept_integers: list[str] = field(default_factory=list)
    _spare: Tensor | None = None  # memory of a stack that was given back

    def all_notes(self) -> list[str]:
        """What the user should know, once the tensors have been read (however often)."""
        notes, kept = (list(dict.fromkeys(found)) for found in (self.notes, self.kept_integers))
        if kept:
            notes.append(f"base values kept for integer tensors that differ: {shorten(kept)}")
        return notes

    @property
    def bytes_replaced(self) -> int:
        """Size of the tensors of all tasks, as their files hold them."""
        return sum(file_bytes(reader) for reader in self.tasks.values())

    @property
    def task_names(self) -> list[str]:
        """Tasks in order."""
        return list(self.tasks)

    def has_deltas(self, name: str) -> bool:
        """Whether deltas are formed for this tensor of the base."""
        return self.base.infos[name].is_float and name not in self.skipped

    def stack(self, name: str) -> Stack:
        """Read one tensor of the base and, where deltas are formed, of every task.

        Raises:
            FamilyError: NaN or infinity in base or task, named.
        """
        base = self.base.read(name)
        if base.is_floating_point() and not math.isfinite(largest_magnitude(base)):
            raise FamilyError(
                "base holds NaN or infinity",
                where=f"tensor {name!r} in {self.base.path}",
                fix="repair the base; no rule can add deltas to it",
            )
        if not self.has_deltas(name):
            self._note_disagreement(name, base)
            return Stack(base, None)
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        start = base.to(wide)
        deltas = self._empty((len(self.tasks), *base.shape), wide)
        changed = False
        for index, (task, reader) in enumerate(self.tasks.items()):
            if name not in reader.infos:  # on_missing=zero
                deltas[index] = 0
                continue
            delta = reader.delta(name, wide) if isinstance(reader, AdapterReader) else None
            if delta is None:
                tuned = _cropped(reader.read(name), base)
                torch.sub(tuned.to(wide), start, out=deltas[index])
            else:
                deltas[index] = delta
            changed |= self._checked_magnitude(deltas[index], name, task) > 0
        return Stack(base, deltas, changed)

    def tuned(self, name: str) -> Iterator[Tensor]:
        """Every task's tensor in its own dtype, in order; where there are deltas.

        What `stack` counts as unchanged has the base's values here: tensors a task lacks, under
        `on_missing=zero`, and entries that are not finite, under `nonfinite=zero`.
        """
        base = self.base.read(name)
        for reader in self.tasks.values():
            tuned = _cropped(reader.read(name), base) if name in reader.infos else base
            if self.policy.nonfinite == "zero":
                tuned = torch.where(torch.isfinite(tuned), tuned, base.to(tuned.dtype))
            yield tuned

    def recycle(self, deltas: Tensor) -> None:
        """Give back a stack that nothing refers to any more; the next one may use its memory.

        Fresh memory costs a page fault every 4 KiB, which for large families is a tenth of the
        time of an element-wise merge.
        """
        self._spare = deltas.new_empty(0).set_(deltas.untyped_storage())

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        spare, self._spare = self._spare, None
        if spare is None or spare.dtype != dtype or spare.numel() < math.prod(shape):
            del spare  # before more is asked for
            return torch.empty(shape, dtype=dtype)
        return spare[: math.prod(shape)].reshape(shape)

    def same_everywhere(self, name: str, other: str) -> bool:
        """Whether two tensors of one base content are equal in every task too (tied weights)."""
        for reader in self.tasks.values():
            if (name in reader.infos) != (other in reader.infos):
                return False
            if name in reader.infos and not _same_bits(reader.read(name), reader.read(other)):
                return False
        return self.has_deltas(name) == self.has_deltas(other)

    def _checked_magnitude(self, delta: Tensor, name: str, task: str) -> float:
        """Largest magnitude of a delta, after non-finite entries were refused or set to zero."""
        largest = largest_magnitude(delta)
        if not math.isfinite(largest):
            self._handle_nonfinite(delta, name, task)
            largest = largest_magnitude(delta)
        if largest > LARGEST_DELTA:
            raise FamilyError(
                f"task {task!r} is too far from the base: a difference exceeds {LARGEST_DELTA:.3g}",
                where=f"tensor {name!r} in {self.tasks[task].path}",
                fix="repair the checkpoint; such weights are not a model",
            )
        return largest

    def _handle_nonfinite(self, delta: Tensor, name: str, task: str) -> None:
        finite = torch.isfinite(delta)
        bad = delta.numel() - int(finite.sum())
        if self.policy.nonfinite == "error":
            raise FamilyError(
                f"task {task!r} holds {bad} NaN or infinite values",
                where=f"tensor {name!r} in {self.tasks[task].path}",
                fix="repair the checkpoint, or pass --nonfinite zero to treat them as unchanged",
            )
        delta[~finite] = 0
        self.notes.append(f"{bad} non-finite values of {name!r} in task {task!r} set to zero")

    def _note_disagreement(self, name: str, base: Tensor) -> None:
        if name in self.skipped:
            return
        readers = (reader for reader in self.tasks.values() if name in reader.infos)
        if any(not torch.equal(reader.read(name), base) for reader in readers):
            self.kept_integers.append(name)


def open_family(base: Path, tasks: Mapping[str, Path], policy: FamilyPolicy) -> Family:
    """Open base and tasks and compare their headers; no tensor data is read.

    Args:
        base: base checkpoint.
        tasks: checkpoint path by task name, in the order that everything downstream keeps.
        policy: what to do about disagreement.

    Raises:
        UsageError: no task, or two names that differ only in case, `_` or `-`.
        FamilyError: unreadable checkpoints; or names, shapes or dtypes that disagree, all listed.
    """
    if not tasks:
        raise UsageError("no task given", fix="pass --tasks NAME … or --task NAME=PATH")
    _refuse_confusable(tasks)
    opened = open_checkpoint(base)
    family = Family(opened, {task: open_task(path, opened) for task, path in tasks.items()}, policy)
    unsupported = [n for n, info in family.base.infos.items() if info.dtype not in DTYPES]
    if unsupported:
        raise FamilyError(
            f"base has dtypes svdh cannot read: {shorten(unsupported, 3)}",
            where=str(base),
            fix="convert those tensors to float32, float16 or bfloat16",
        )
    if not family.base.infos:
        raise FamilyError("base holds no tensors", where=str(base))
    problems: list[str] = []
    for task, reader in family.tasks.items():
        if isinstance(reader, AdapterReader):
            family.notes += [f"adapter {task!r} {text}" for text in reader.notes]
        problems += _compare(family, task, reader)
    if problems:
        raise FamilyError(
            f"tasks and base disagree: {_listed(problems)}",
            where=str(base),
            fix="check that all come from this base, or see --on-missing, --on-extra and "
            "--on-shape-mismatch",
        )
    return family


def _listed(problems: list[str]) -> str:
    """The first problems, as many as fit into one message, and how many more there are."""
    ends = accumulate(len(problem) + 2 for problem in problems)
    fitting = max(1, sum(end <= MOST_CHARACTERS for end in ends))
    more = len(problems) - fitting
    return "; ".join(problems[:fitting]) + (f"; and {more} more" if more else "")


def _refuse_confusable(tasks: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for task in tasks:
        if not task or task != task.strip() or not task.isprintable():
            raise UsageError(f"task name {task!r} is empty or not printable")
        other = seen.setdefault(fold_name(task), task)
        if other != task:
            raise UsageError(
                f"tasks {other!r} and {task!r} differ only in case, '_' or '-'",
                fix="rename one of them with --task NAME=PATH",
            )


def _compare(family: Family, task: str, reader: CheckpointReader) -> list[str]:
    """Problems of one task's headers; skipped tensors and notes are recorded in the family."""
    policy, problems = family.policy, []
    for name, info in family.base.infos.items():
        other = reader.infos.get(name)
        if other is None:
            if policy.on_missing == "skip":
                family.skipped.add(name)
            elif policy.on_missing == "error":
                problems.append(f"task {task!r} lacks {name!r}")
        elif info.is_float and not other.is_float:
            problems.append(f"task {task!r}: {name!r} is {other.dtype}, the base has {info.dtype}")
        elif other.shape != info.shape:
            if policy.on_shape_mismatch == "skip":
                family.skipped.add(name)
            elif policy.on_shape_mismatch == "error" or not _croppable(other, info):
                shapes = f"{list(other.shape)}, the base has {list(info.shape)}"
                problems.append(f"task {task!r}: {name!r} is {shapes}")
    extra = [name for name in reader.infos if name not in family.base.infos]
    if extra and policy.on_extra == "error":
        problems.append(f"task {task!r} has {shorten(extra, 3)}, which the base lacks")
    elif extra:
        family.notes.append(f"ignored in task {task!r}, not in the base: {shorten(extra)}")
    return problems


def _same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are alike to the sign of a zero."""
    return info_of(x) == info_of(y) and raw_bytes(x) == raw_bytes(y)


def _cropped(tuned: Tensor, base: Tensor) -> Tensor:
    """The leading rows and columns, as many as the base has (on_shape_mismatch=crop)."""
    if tuned.shape == base.shape:
        return tuned
    return tuned[tuple(slice(size) for size in base.shape)].contiguous()


def _croppable(tuned: TensorInfo, base: TensorInfo) -> bool:
    return len(tuned.shape) == len(base.shape) and all(
        have >= want for have, want in zip(tuned.shape, base.shape, strict=True)
    )


def is_buffer(name: str) -> bool:
    """Whether a float tensor is a running statistic, which is averaged and never scaled.

    >>> is_buffer("bn1.running_var"), is_buffer("bn1.weight")
    (True, False)
    """
    return name.rsplit(".", 1)[-1] in BUFFER_SUFFIXES
