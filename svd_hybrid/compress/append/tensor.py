"""One tensor: what an artifact holds of it, and how one more task joins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.compress.append.slices import (
    as_late_part,
    as_strings,
    with_slice,
    without_slice,
)
from svd_hybrid.compress.profiles.base import EncodedParts, EncodedStack
from svd_hybrid.compress.tensor import BLOCK_SCALARS
from svd_hybrid.delta.evaluate import Mix, evaluate
from svd_hybrid.delta.expr import Exact, Expr, Flat, Sum, parts_of, renamed
from svd_hybrid.delta.serial import expr_from_json, expr_to_json
from svd_hybrid.errors import FamilyError, UsageError
from svd_hybrid.numerics.metrics import ErrorSums

Json = Mapping[str, Any]


@dataclass(slots=True)
class GrowingTensor:
    """The content of one tensor, which tasks are added to.

    Args:
        name: of the tensor.
        base: (m, n), in its own dtype.
        parts: stored parts by name.
        task, blend: expressions as in the manifest; None where every delta is zero.
        merges: expressions of stored merges.
        prefixes: what earlier additions put before the names of their parts, and one that no
            part begins with, in the order in which they are tried.
    """

    name: str
    base: Tensor
    parts: dict[str, EncodedPart]
    task: Expr | None
    blend: Expr | None
    merges: Mapping[str, Json]
    prefixes: tuple[str, ...]
    ranks: list[EncodedStack] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        rows, columns = self.base.shape
        return rows, columns

    def clear(self, index: int) -> None:
        """Forget the numbers of one task."""
        used = set(parts_of(self.task)) if self.task is not None else set()
        for name in used:
            self.parts[name] = without_slice(self.parts[name], index)

    def delta(self, index: int) -> Tensor:
        """What is stored of a task, (m, n) float64; what all share, for one without slices.

        Raises:
            ArtifactError: the expression has no value for a task without slices.
        """
        if self.task is None:
            return torch.zeros(self.shape, dtype=torch.float64)
        mix = Mix({index: 1.0})
        rows = evaluate(self.task, EncodedParts(self.parts), mix, self.shape, self.base)
        return rows.rows(0, self.shape[0])

    def add(self, index: int, stored: EncodedStack) -> None:
        """Add what a profile made of one task.

        Args:
            index: of the task.
            stored: a stack of one: its delta less `delta(index)`.

        Raises:
            UsageError: it would change the other tasks.
        """
        expr = Flat(stored.expr) if stored.flat else stored.expr
        self._refuse_shared(expr, stored.parts)
        self.ranks.append(stored)
        for term in terms_of(expr):
            self._add_term(index, term, {name: stored.parts[name] for name in parts_of(term)})

    def _add_term(self, index: int, term: Expr, parts: Mapping[str, EncodedPart]) -> None:
        """Put the slices of one term into one that is there, else into new parts."""
        task, blend = terms_of(self.task), terms_of(self.blend)
        for prefix in ("", *self.prefixes[:-1]):
            there = renamed(term, prefix)
            if there in task and (self.blend is None or there in blend):
                joined = self._joined(prefix, parts, index)
                if joined:
                    self.parts |= joined
                    return
        prefix = self.prefixes[-1]
        self.parts |= {prefix + name: as_late_part(part, index) for name, part in parts.items()}
        added = renamed(term, prefix)
        self.task = _sum([*task, added])
        if self.blend is not None:
            self.blend = _sum([*blend, added])

    def add_exact(self, index: int, stored: EncodedStack | None, dtype: str, base: str) -> None:
        """Add a task bit for bit.

        Args:
            index: of the task.
            stored: a stack of one; None when it has the base's bits.
            dtype: of the task's tensor.
            base: dtype of the base's tensor.

        Raises:
            FamilyError: the other tasks have another dtype.
        """
        others = self.task.dtype if isinstance(self.task, Exact) else base
        if dtype != others:
            raise FamilyError(
                f"the task has the tensor in {dtype}, the stored ones in {others}",
                where=f"tensor {self.name!r}",
                fix="convert the checkpoint",
            )
        if stored is None:
            return
        (name,), (one,) = stored.parts, stored.parts.values()
        if self.task is None:
            self.task = stored.expr
            self.parts[name] = as_late_part(one, index)
            return
        assert isinstance(self.task, Exact)  # as the caller has checked
        whole = with_slice(self.parts[self.task.part], index, one)
        assert whole is not None  # one dtype, one codec
        self.parts[self.task.part] = whole

    def error(self, index: int, delta: Tensor) -> ErrorSums:
        """What is lost of a task, with the decoder of a reader.

        Args:
            index: of the task.
            delta: (m, n), what was given.
        """
        sums = ErrorSums()
        rebuilt = self.delta(index)
        step = max(1, BLOCK_SCALARS // max(self.shape[1], 1))
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            sums.add(delta[rows], rebuilt[rows])
        return sums

    def drop_unused(self) -> None:
        """Forget parts that no expression reads any more."""
        exprs = [expr for expr in (self.task, self.blend) if expr is not None]
        exprs += [expr_from_json(expr) for entry in self.merges.values() for expr in entry.values()]
        used = {part for expr in exprs for part in parts_of(expr)}
        self.parts = {name: part for name, part in self.parts.items() if name in used}

    def _joined(
        self, prefix: str, parts: Mapping[str, EncodedPart], index: int
    ) -> dict[str, EncodedPart]:
        """Parts that are there already, with the task's slices; empty where one does not fit."""
        joined: dict[str, EncodedPart] = {}
        for name, one in parts.items():
            there = self.parts.get(prefix + name)
            if there is None or not one.stacked:
                return {}
            whole = with_slice(there, index, one)
            strings = as_strings(one) if whole is None else None
            if strings is not None:
                whole = with_slice(there, index, strings)
            if whole is None:
                return {}
            joined[prefix + name] = whole
        return joined

    def _refuse_shared(self, expr: Expr, parts: Mapping[str, EncodedPart]) -> None:
        """A task without slices must get zeros."""
        other = evaluate(expr, EncodedParts(parts), Mix({1: 1.0}), self.shape, self.base)
        if bool(other.rows(0, self.shape[0]).any()):
            raise UsageError(
                "this profile stores what it takes for common to all tasks",
                where=f"tensor {self.name!r}",
                fix="choose another --profile for what is appended",
            )


def terms_of(expr: Expr | None) -> tuple[Expr, ...]:
    """The terms of a sum; of anything else itself, of nothing none."""
    if expr is None:
        return ()
    return expr.terms if isinstance(expr, Sum) else (expr,)


def _sum(terms: Iterable[Expr]) -> Expr:
    every = tuple(terms)
    return every[0] if len(every) == 1 else Sum(every)


def to_json(expr: Expr | None) -> Json | None:
    """As the manifest has it."""
    return None if expr is None else expr_to_json(expr)


def reweighed(expression: Any, more: int) -> Any:
    """The expression (JSON) with weight 0 for further tasks in every `weighted`."""
    if isinstance(expression, list):
        return [reweighed(inner, more) for inner in expression]
    if not isinstance(expression, Mapping):
        return expression
    found = {key: reweighed(inner, more) for key, inner in expression.items()}
    if found.get("op") == "weighted":
        found["weights"] = [*found["weights"], *[0.0] * more]
    return found


def weighs(expression: Any, index: int) -> bool:
    """Whether a `weighted` of the expression (JSON) counts a task."""
    if isinstance(expression, list):
        return any(weighs(inner, index) for inner in expression)
    if not isinstance(expression, Mapping):
        return False
    own = expression.get("op") == "weighted" and expression["weights"][index] != 0
    return own or any(weighs(inner, index) for inner in expression.values())
