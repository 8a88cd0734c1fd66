"""One tensor: deltas → regions → stored parts and expressions → measured errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import BitmaskCodec
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.profiles.base import EncodedParts, EncodedStack, encode_part
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.compress.settings import TensorSettings
from svd_hybrid.delta.evaluate import Mix, evaluate, matrix_shape
from svd_hybrid.delta.expr import Expr, Flat, Masked, Scale, Scattered, Sum
from svd_hybrid.methods import METHODS
from svd_hybrid.methods.base import MergeMethod, Region
from svd_hybrid.numerics.metrics import ErrorSums

NOISE_PREFIX = "noise."
MASK_PART = "mask"
BLOCK_SCALARS = 2**20
"""Scalars compared at a time when errors are measured; bounds memory only."""


@dataclass(frozen=True, slots=True)
class TaskError:
    """How one task's delta of one tensor comes back.

    Args:
        stored: sums over the scalars that are stored (those inside the mask, or all).
        whole: sums over every scalar, so what a mask leaves out counts as lost.
    """

    stored: ErrorSums
    whole: ErrorSums


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """What is stored for one tensor.

    Args:
        parts: by name; empty when every delta is zero.
        task: the delta of a task; None when it is zero.
        blend: what a linear merge sums, where that differs; else None.
        signal, noise: facts of the two regions; None where nothing is stored.
        masked: whether a mask restricts it.
        errors: per task, in task order; empty when not measured.
    """

    parts: Mapping[str, EncodedPart]
    task: Expr | None
    blend: Expr | None
    signal: EncodedStack | None
    noise: EncodedStack | None
    masked: bool
    errors: tuple[TaskError, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


def encode_tensor(
    deltas: Tensor, mask: Tensor | None, config: CompressConfig, settings: TensorSettings
) -> EncodedTensor:
    """Store the deltas of one tensor as the method and the profile say.

    Args:
        deltas: (N, *shape) float, finite.
        mask: combined mask of `shape`, bool; None for the whole tensor.
        config: the run's configuration.
        settings: the tensor's parameters.
    """
    matrix = matrix_shape(tuple(deltas.shape[1:]))
    stack = deltas.reshape(deltas.shape[0], *matrix)
    mask, regions = masked_regions(mask, METHODS[config.method], settings)
    mask = None if mask is None else mask.reshape(matrix)
    parts: dict[str, EncodedPart] = {}
    found: dict[bool, EncodedStack] = {}
    task_terms: list[Expr] = []
    blend_terms: list[Expr] = []
    for region in regions:
        selected = mask if mask is None or region.inside else ~mask
        stored = PROFILES[config.profile].encode(
            stack, selected, settings.profile, "" if region.inside else NOISE_PREFIX
        )
        if stored is None or not stored.parts:  # no change, or one too small to square
            continue
        found[region.inside] = stored
        parts |= stored.parts
        term = _placed(stored, mask is not None, region.inside)
        task_terms.append(term)
        blend_terms.append(term if region.gain == 1.0 else Scale(region.gain, term))
    if mask is not None and parts:
        parts[MASK_PART] = encode_part(BitmaskCodec(), mask)
    task = _sum(task_terms)
    stored_mask = _stored_scalars(mask, regions)
    return EncodedTensor(
        parts,
        task,
        None if blend_terms == task_terms else _sum(blend_terms),
        found.get(True),
        found.get(False),
        mask is not None,
        measure_tasks(stack, parts, task, stored_mask) if config.eval_reconstruction else (),
    )


def masked_regions(
    mask: Tensor | None, method: MergeMethod, settings: TensorSettings
) -> tuple[Tensor | None, list[Region]]:
    """The mask that counts, and the regions of the tensor that the method takes.

    A mask that selects everything, or fewer scalars than the method asks for, does not count.
    """
    useless = (
        mask is None
        or method.regions is None
        or int(mask.sum()) < settings.method.min_mask_size
        or bool(mask.all())
    )
    if useless or mask is None or method.regions is None:
        return None, [Region(inside=True, gain=1.0)]
    return mask, method.regions(mask, settings.method)


def _placed(stored: EncodedStack, masked: bool, inside: bool) -> Expr:
    """The region's expression, put where its scalars belong in the matrix."""
    if not masked:
        return Flat(stored.expr) if stored.flat else stored.expr
    place = Scattered if stored.flat else Masked
    return place(MASK_PART, stored.expr, inside)


def _sum(terms: list[Expr]) -> Expr | None:
    if not terms:
        return None
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))


def _stored_scalars(mask: Tensor | None, regions: list[Region]) -> Tensor | None:
    """Mask of the scalars some region stores; None when all are."""
    if mask is None or len(regions) == 2:
        return None
    return mask if regions and regions[0].inside else ~mask if regions else torch.zeros_like(mask)


def measure_tasks(
    stack: Tensor, parts: Mapping[str, EncodedPart], expr: Expr | None, stored: Tensor | None
) -> tuple[TaskError, ...]:
    """Decode every task as reload does and compare it with what was given."""
    source = EncodedParts(parts)
    _, m, n = stack.shape
    step = max(1, BLOCK_SCALARS // max(n, 1))
    errors = []
    for index, delta in enumerate(stack):
        inside = ErrorSums()
        whole = inside if stored is None else ErrorSums()
        rows = None if expr is None else evaluate(expr, source, Mix({index: 1.0}), (m, n))
        for start in range(0, m, step):
            block = delta[start : start + step]
            rebuilt = (
                torch.zeros_like(block) if rows is None else rows.rows(start, min(start + step, m))
            )
            if stored is not None:
                selected = stored[start : start + step]
                inside.add(block[selected], rebuilt[selected])
            whole.add(block, rebuilt)
        errors.append(TaskError(inside, whole))
    return tuple(errors)
