"""The few lines every test of a merge method needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.delta.evaluate import Mix, TensorParts, evaluate, matrix_shape
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_rank(rank: int, *shape: int, seed: int = 0) -> Tensor:
    """(N, m, n) float32, each matrix of this rank."""
    tasks, m, n = shape
    return normal(tasks, m, rank, seed=seed) @ normal(tasks, rank, n, seed=seed + 1)


def context(
    deltas: Tensor, name: str = "fc.weight", statistics: Sequence[Tensor] | None = None, **more: Any
) -> TensorContext:
    tasks = tuple(f"task {number}" for number in range(len(deltas)))
    base = torch.zeros(deltas.shape[1:])
    weights = (1.0,) * len(deltas)
    return TensorContext(name, tasks, base, weights, statistics=statistics, **more)


def result_of(
    method: MergeMethod, deltas: Tensor, *, ctx: TensorContext | None = None, **params: Any
) -> MergeResult:
    assert method.merge is not None
    return method.merge(deltas, method.params(**params), ctx or context(deltas))


def value(result: MergeResult, shape: Sequence[int], task: int | None = None) -> Tensor:
    """The merged delta, or that of one task, in numbers; float64."""
    view = matrix_shape(tuple(shape))
    expr = result.merged if task is None else result.task
    assert expr is not None
    mix = Mix({}, shared=1.0) if task is None else Mix({task: 1.0})
    return (
        evaluate(expr, TensorParts(result.parts), mix, view).rows(0, view[0]).reshape(tuple(shape))
    )


def merged(
    method: MergeMethod, deltas: Tensor, *, ctx: TensorContext | None = None, **params: Any
) -> Tensor:
    return value(result_of(method, deltas, ctx=ctx, **params), deltas.shape[1:])


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())
