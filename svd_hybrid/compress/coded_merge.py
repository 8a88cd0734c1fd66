"""A stored merge in few bits: coded like a task, alone or as what the stored tasks do not predict.

A merged delta is a stack of one. Where the tasks are in the artifact their best weighted sum is
subtracted first when the remainder takes fewer bytes; the weights cost eight bytes a task. Every
tensor keeps to the same relative error, for spectrally flattened merges give all tensors their
share of the effect. Source: codec design §9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.compress.profiles.auto import AUTO
from svd_hybrid.compress.profiles.auto.encode import for_kind
from svd_hybrid.compress.profiles.base import EncodedParts
from svd_hybrid.compress.profiles.params import AutoParams
from svd_hybrid.delta.evaluate import Mix, evaluate
from svd_hybrid.delta.expr import Expr, Sum, Weighted
from svd_hybrid.numerics.metrics import squared_norm

PREDICTS = 0.95
"""Share of the energy that may remain after subtracting the tasks for that to be tried."""
RIDGE = 1e-9


@dataclass(frozen=True, slots=True)
class MergeCoding:
    """How a merge is coded.

    Args:
        name: of the tensor.
        shape: of the tensor.
        error: relative noise of the merged delta.
        tasks: that the artifact has.
        parts: those of the stored tasks.
        task: the expression of a task's delta; None where no task is stored.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    tasks: int
    parts: Mapping[str, EncodedPart]
    task: Expr | None


def code_merged(
    delta: Tensor, coding: MergeCoding, prefix: str
) -> tuple[dict[str, EncodedPart], Expr | None]:
    """The parts of a merged delta and the expression over them and the stored tasks.

    Args:
        delta: (m, n) float.
        coding: how.
        prefix: put before the name of every new part.
    """
    energy = squared_norm(delta)
    if energy == 0.0:
        return {}, None
    step = coding.error * math.sqrt(12.0 * energy / delta.numel())
    direct = _coded(delta, step, coding, prefix)
    if coding.task is None:
        return direct
    weights, rest = _beyond_tasks(delta, coding)
    if squared_norm(rest) > PREDICTS * energy:
        return direct
    parts, expr = _coded(rest, step, coding, prefix)
    if _size(parts) + 8 * len(weights) >= _size(direct[0]):
        return direct
    predicted: Expr = Weighted(weights, coding.task)
    return parts, predicted if expr is None else Sum((predicted, expr))


def _coded(
    delta: Tensor, step: float, coding: MergeCoding, prefix: str
) -> tuple[dict[str, EncodedPart], Expr | None]:
    params = for_kind(AutoParams(step=step), coding.name, coding.shape)
    stored = AUTO.encode(delta.unsqueeze(0), None, params, prefix)
    if stored is None:
        return {}, None
    return {name: replace(p, stacked=False) for name, p in stored.parts.items()}, stored.expr


def _beyond_tasks(delta: Tensor, coding: MergeCoding) -> tuple[tuple[float, ...], Tensor]:
    """Least-squares weights of the decoded tasks, and what they leave of the merged delta."""
    assert coding.task is not None  # the caller has looked
    m, n = delta.shape
    source = EncodedParts(coding.parts)
    rebuilt = torch.stack(
        [
            evaluate(coding.task, source, Mix({task: 1.0}), (m, n)).rows(0, m).to(torch.float32)
            for task in range(coding.tasks)
        ]
    ).flatten(1)
    gram = rebuilt.to(torch.float64) @ rebuilt.T.to(torch.float64)
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()) + 1e-300)
    products = rebuilt.to(torch.float64) @ delta.flatten().to(torch.float64)
    weights = tuple(torch.linalg.solve(gram, products).to(torch.float32).tolist())
    predicted = evaluate(Weighted(weights, coding.task), source, Mix({}, shared=1.0), (m, n))
    return weights, delta.to(torch.float64) - predicted.rows(0, m)


def _size(parts: Mapping[str, EncodedPart]) -> int:
    return sum(part.nbytes for part in parts.values())
