"""Random dropping, the step that makes a merge method DARE. Not a method itself.

Masks are drawn from the names of tensor and task, so that order, threads and skipped tensors change
nothing; a mask folder replaces them. Source: Yu et al., "Language Models are Super Mario",
arXiv 2311.03099, section 3; methods.md §5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from svd_hybrid._lazy import lazy
from svd_hybrid.methods.base import TensorContext, TensorStream, parameter
from svd_hybrid.methods.steps.checks import check_choices, require
from svd_hybrid.methods.steps.trimming import flat

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svd_hybrid.numerics import blocks, seeds
else:
    torch, seeds = lazy("torch"), lazy("svd_hybrid.numerics.seeds")
    blocks = lazy("svd_hybrid.numerics.blocks")

SMALLEST_NORM = 1e-7


@dataclass(frozen=True, slots=True)
class DropParams:
    """Parameters of the random drop."""

    density: float = parameter(0.5, "probability of a scalar to be kept, [0, 1]")
    rescale: Literal["inverse_density", "l1_match", "none"] = parameter(
        "inverse_density",
        "what is kept is divided by the density, or scaled to the absolute sum before the drop "
        "(mergekit), or left alone",
    )
    seed: int = parameter(0, "seed of the masks; masks given as files are used instead")


def check_drop(params: DropParams) -> None:
    """Raise ParameterError where a parameter of the drop is outside its range."""
    check_choices(params)
    require(0 <= params.density <= 1, "density", params.density, "[0, 1]")
    require(params.seed >= 0, "seed", params.seed, "[0, inf)")


def dropped(deltas: Tensor, params: DropParams, ctx: TensorContext) -> Tensor:
    """The deltas (N, *shape) after the drop and the rescale, a new stack."""
    densities = ctx.densities or (params.density,) * len(ctx.tasks)
    sparse = torch.empty_like(deltas, memory_format=torch.contiguous_format)
    for task, (values, before) in enumerate(zip(flat(sparse), flat(deltas), strict=True)):
        density = densities[task]
        if ctx.masks is not None:
            values[:] = torch.where(ctx.masks[task].reshape(-1), before, 0.0)
        else:
            draw = seeds.generator(params.seed, "dare", ctx.name, ctx.tasks[task])
            _drop(before, density, draw, values)
        if params.rescale == "inverse_density" and density:
            values.div_(density)
        elif params.rescale == "l1_match":
            values.mul_(_l1_ratio(before, values))
    return sparse


def _drop(before: Tensor, density: float, draw: torch.Generator, after: Tensor) -> None:
    """Copy each scalar with probability `density`, from one float32 draw each; else 0."""
    for start, stop in blocks.spans(len(before)):
        kept = torch.rand(stop - start, generator=draw) < density
        after[start:stop] = torch.where(kept, before[start:stop], 0.0)


def _l1_ratio(before: Tensor, after: Tensor) -> float:
    """Absolute sum before over after; 1 where one of them vanishes."""
    norms = [float(values.abs().sum(dtype=torch.float64)) for values in (before, after)]
    return 1.0 if min(norms) < SMALLEST_NORM else norms[0] / norms[1]


class DroppedStream:
    """A stream of deltas after the drop.

    Args:
        stream: the deltas before it.
        params: the drop.
    """

    def __init__(self, stream: TensorStream, params: DropParams) -> None:
        self.stream = stream
        self.params = params

    def __iter__(self) -> Iterator[tuple[Tensor, TensorContext]]:
        """Deltas (N, *shape) and context of each tensor, without the densities of the drop."""
        for deltas, ctx in self.stream:
            yield dropped(deltas, self.params, ctx), replace(ctx, densities=())

    @property
    def scalars(self) -> int:
        """Scalars of one task's deltas over all tensors."""
        return self.stream.scalars
