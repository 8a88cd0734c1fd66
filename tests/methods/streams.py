"""Small families in memory, and methods run over them the way the engine does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svd_hybrid.delta.evaluate import Mix, TensorParts, evaluate, matrix_shape
from svd_hybrid.delta.expr import Expr
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext

FAMILY_A = torch.tensor(
    [[4.0, 1, -3, 0, 2, -1], [-2, 3, -1, 5, 0, 1], [1, -4, -2, 2, 1, 0]]
)  # methods.md §26


@dataclass
class Stream:
    """Stacks of deltas by name, with their contexts (a TensorStream)."""

    items: list[tuple[Tensor, TensorContext]]

    @property
    def scalars(self) -> int:
        return sum(deltas[0].numel() for deltas, _ in self.items)

    def __iter__(self) -> Iterator[tuple[Tensor, TensorContext]]:
        return iter(self.items)


def stream_of(
    stacks: Mapping[str, Tensor],
    *,
    weights: tuple[float, ...] | None = None,
    densities: tuple[float, ...] = (),
    masks: Mapping[str, Tensor] | None = None,
    bases: Mapping[str, Tensor] | None = None,
) -> Stream:
    items = []
    for name in sorted(stacks):
        deltas = stacks[name]
        tasks = tuple(f"task_{index}" for index in range(len(deltas)))
        ctx = TensorContext(
            name,
            tasks,
            bases[name] if bases else torch.zeros_like(deltas[0]),
            weights or (1.0,) * len(deltas),
            densities,
            masks=masks[name] if masks else None,
        )
        items.append((deltas, ctx))
    return Stream(items)


def results(method: MergeMethod, stream: Stream, **values: object) -> dict[str, MergeResult]:
    """What the method makes of every tensor."""
    params = method.params(**values)
    scan = method.scan(stream, params) if method.scan else None
    return {
        ctx.name: method.merge(deltas, params, replace(ctx, scan=scan)) for deltas, ctx in stream
    }


def numbers(expr: Expr, result: MergeResult, mix: Mix, shape: torch.Size) -> Tensor:
    rows, columns = matrix_shape(tuple(shape))
    values = evaluate(expr, TensorParts(result.parts), mix, (rows, columns)).rows(0, rows)
    return values.reshape(shape)


def merged(method: MergeMethod, stream: Stream, **values: object) -> dict[str, Tensor]:
    """The merged deltas before scaling, float64."""
    found = results(method, stream, **values)
    return {
        ctx.name: numbers(
            found[ctx.name].merged, found[ctx.name], Mix({}, shared=1.0), deltas.shape[1:]
        )
        for deltas, ctx in stream
    }


def rebuilt(method: MergeMethod, stream: Stream, **values: object) -> dict[str, Tensor]:
    """The delta of every task as a reload without gains gives it, (N, *shape) float64."""
    found = results(method, stream, **values)
    return {
        ctx.name: torch.stack(
            [
                numbers(found[ctx.name].task, found[ctx.name], Mix({task: 1.0}), deltas.shape[1:])
                for task in range(len(deltas))
            ]
        )
        for deltas, ctx in stream
    }


def random_stacks(seed: int, tasks: int = 3, coarse: bool = False) -> dict[str, Tensor]:
    """Tensors of every class; `coarse` deltas have many equal magnitudes."""
    shapes = {"a.weight": (5, 7), "b.bias": (6,), "c.conv": (3, 2, 2, 2), "d.scalar": ()}
    draw = torch.Generator().manual_seed(seed)
    stacks = {name: torch.randn(tasks, *shape, generator=draw) for name, shape in shapes.items()}
    return {name: (x * 2).round() / 2 if coarse else x for name, x in stacks.items()}


def one_vector(stacks: Mapping[str, Tensor]) -> Tensor:
    """All tensors as one, by ascending name: (N, D)."""
    return torch.cat(
        [stacks[name].reshape(len(stacks[name]), -1) for name in sorted(stacks)], dim=1
    )
