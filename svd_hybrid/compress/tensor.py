"""One tensor: deltas → regions → stored parts and expressions → measured errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import BitmaskCodec
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.layer_inputs import LayerInputs
from svd_hybrid.compress.profiles.base import (
    EncodedParts,
    EncodedStack,
    Originals,
    Tried,
    encode_part,
)
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.compress.settings import TensorSettings
from svd_hybrid.delta.evaluate import ExactRows, Mix, RowSource, evaluate, matrix_shape
from svd_hybrid.delta.expr import Expr, Flat, Masked, Scale, Scattered, Sum
from svd_hybrid.errors import UsageError
from svd_hybrid.io.family import is_buffer
from svd_hybrid.io.tensors import DTYPE_NAMES, RunningDigest, TensorInfo
from svd_hybrid.methods import METHODS
from svd_hybrid.methods.base import MergeMethod, Region
from svd_hybrid.numerics.metrics import ErrorSums
from svd_hybrid.reload.rebuild import is_variance, last_step

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
        sha256: `tensor_digest` of the task's tensor as reload gives it; None when that does not
            fit the dtype of the base, or was not asked for.
    """

    stored: ErrorSums
    whole: ErrorSums
    sha256: str | None = None


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


def settings_of_kind(
    settings: TensorSettings, profile: str, name: str, shape: tuple[int, ...]
) -> TensorSettings:
    """The settings with the profile's parameters for that kind of tensor."""
    for_kind = PROFILES[profile].for_kind
    if for_kind is None:
        return settings
    return replace(settings, profile=for_kind(settings.profile, name, shape))


def encode_tensor(
    deltas: Tensor,
    mask: Tensor | None,
    config: CompressConfig,
    settings: TensorSettings,
    originals: Originals | None = None,
    inputs: Sequence[LayerInputs] | None = None,
) -> EncodedTensor:
    """Store the deltas of one tensor as the method and the profile say.

    Args:
        deltas: (N, *shape) float, finite.
        mask: combined mask of `shape`, bool; None for the whole tensor.
        config: the run's configuration.
        settings: the tensor's parameters.
        originals: the tensor itself; for digests, and profiles that store the fine-tunes.
        inputs: of the layer, per task, for profiles that mind them.

    Raises:
        UsageError: a profile that stores the fine-tunes, and a mask.
    """
    profile = PROFILES[config.profile]
    if originals is not None and profile.encode_originals is not None:
        return _encode_originals(originals, mask, config, settings)
    stack, mask, regions = _as_matrices(deltas, mask, config, settings)
    parts: dict[str, EncodedPart] = {}
    found: dict[bool, EncodedStack] = {}
    task_terms: list[Expr] = []
    blend_terms: list[Expr] = []
    for region in regions:
        selected = mask if mask is None or region.inside else ~mask
        prefix = "" if region.inside else NOISE_PREFIX
        if profile.encode_minding is not None and inputs is not None:
            stored = profile.encode_minding(stack, selected, settings.profile, prefix, inputs)
        else:
            stored = profile.encode(stack, selected, settings.profile, prefix)
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
        measure_tasks(stack, parts, task, stored_mask, originals)
        if config.eval_reconstruction
        else (),
    )


def try_tensor(
    deltas: Tensor,
    mask: Tensor | None,
    config: CompressConfig,
    settings: TensorSettings,
    inputs: Sequence[LayerInputs] | None = None,
) -> Tried:
    """What `encode_tensor` would store and lose, for a profile that can be tried out.

    Args:
        deltas: (N, *shape) float, finite.
        mask: combined mask of `shape`, bool; None for the whole tensor.
        config: the run's configuration.
        settings: the tensor's parameters.
        inputs: of the layer, per task, for profiles that mind them.
    """
    try_out = PROFILES[config.profile].try_out
    assert try_out is not None  # else there is no step to search
    stack, mask, regions = _as_matrices(deltas, mask, config, settings)
    nothing = (0.0,) * len(stack)
    total = Tried(0.0 if mask is None else mask.numel() / 8, nothing, nothing)
    for region in regions:
        selected = mask if mask is None or region.inside else ~mask
        total += try_out(stack, selected, settings.profile, inputs)
    return total


def _as_matrices(
    deltas: Tensor, mask: Tensor | None, config: CompressConfig, settings: TensorSettings
) -> tuple[Tensor, Tensor | None, list[Region]]:
    """Deltas (N, m, n) and mask (m, n), if it counts, as matrices; the regions the method takes."""
    matrix = matrix_shape(tuple(deltas.shape[1:]))
    mask, regions = masked_regions(mask, METHODS[config.method], settings)
    mask = None if mask is None else mask.reshape(matrix)
    return deltas.reshape(deltas.shape[0], *matrix), mask, regions


def _encode_originals(
    originals: Originals,
    mask: Tensor | None,
    config: CompressConfig,
    settings: TensorSettings,
) -> EncodedTensor:
    """The fine-tunes of one tensor, whole."""
    profile = PROFILES[config.profile]
    assert profile.encode_originals is not None  # as the caller has seen
    if masked_regions(mask, METHODS[config.method], settings)[0] is not None:
        raise UsageError(
            f"profile {profile.name} stores whole tensors, and there are masks",
            where=f"tensor {originals.name!r}",
            fix="drop the masks, or choose another profile",
        )
    stored = profile.encode_originals(originals, settings.profile)
    parts = {} if stored is None else stored.parts
    task = None if stored is None else stored.expr
    errors: tuple[TaskError, ...] = ()
    if config.eval_reconstruction:
        errors = _measure_originals(originals, parts, task)
    return EncodedTensor(parts, task, None, stored, None, masked=False, errors=errors)


def _measure_originals(
    originals: Originals, parts: Mapping[str, EncodedPart], expr: Expr | None
) -> tuple[TaskError, ...]:
    """Decode every task as reload does and compare it with the fine-tune itself."""
    assert originals.tuned is not None  # as the profile wants them
    source, base = EncodedParts(parts), originals.base
    m, n = base.shape
    step = max(1, BLOCK_SCALARS // max(n, 1))
    errors = []
    for index, tuned in enumerate(originals.tuned()):
        sums = ErrorSums()
        rows = None if expr is None else evaluate(expr, source, Mix({index: 1.0}), (m, n), base)
        digest = _TaskDigest(originals, rows)
        for start in range(0, m, step):
            stop = min(start + step, m)
            delta = tuned[start:stop].to(torch.float64) - base[start:stop].to(torch.float64)
            rebuilt = torch.zeros_like(delta) if rows is None else rows.rows(start, stop)
            sums.add(delta, rebuilt)
            digest.add(start, stop, rebuilt)
        errors.append(TaskError(sums, sums, digest.sha256))
    return tuple(errors)


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


class _TaskDigest:
    """Digest of one task's tensor, finished as reload finishes it."""

    def __init__(self, originals: Originals, rows: RowSource | None) -> None:
        self.originals = originals
        self.unchanged = rows is None
        self.exact = rows if isinstance(rows, ExactRows) else None
        self.dtype = originals.base.dtype if self.exact is None else self.exact.dtype
        self.variance = is_buffer(originals.name) and is_variance(originals.name)
        self.fits = True
        self._digest = RunningDigest(TensorInfo(DTYPE_NAMES[self.dtype], originals.shape))

    def add(self, start: int, stop: int, change: Tensor) -> None:
        """Count the next rows; zeros of their delta change their sign."""
        if self.exact is not None:
            block = self.exact.tuned(start, stop)
        else:
            base = self.originals.base[start:stop]
            delta = None if self.unchanged else change
            block = last_step(base, delta, self.dtype, variance=self.variance)
        self.fits = self.fits and bool(torch.isfinite(block).all())
        self._digest.add(block)

    @property
    def sha256(self) -> str | None:
        """The digest; None when a scalar does not fit the dtype."""
        return self._digest.hexdigest() if self.fits else None


def measure_tasks(
    stack: Tensor,
    parts: Mapping[str, EncodedPart],
    expr: Expr | None,
    stored: Tensor | None,
    originals: Originals | None = None,
) -> tuple[TaskError, ...]:
    """Decode every task as reload does and compare it with what was given.

    Args:
        stack: (N, m, n), what was given.
        parts: what is stored.
        expr: over the names of `parts`; None when nothing is.
        stored: mask of the scalars that are stored; None for all.
        originals: the tensor itself; for digests of what comes back.
    """
    source = EncodedParts(parts)
    _, m, n = stack.shape
    step = max(1, BLOCK_SCALARS // max(n, 1))
    errors = []
    for index, delta in enumerate(stack):
        inside = ErrorSums()
        whole = inside if stored is None else ErrorSums()
        rows = None if expr is None else evaluate(expr, source, Mix({index: 1.0}), (m, n))
        digest = None if originals is None else _TaskDigest(originals, rows)
        for start in range(0, m, step):
            stop = min(start + step, m)
            block = delta[start:stop]
            rebuilt = torch.zeros(block.shape, dtype=torch.float64)
            if rows is not None:
                rebuilt = rows.rows(start, stop)
            if stored is not None:
                selected = stored[start : start + step]
                inside.add(block[selected], rebuilt[selected])
            whole.add(block, rebuilt)
            if digest is not None:
                digest.add(start, stop, rebuilt)
        errors.append(TaskError(inside, whole, None if digest is None else digest.sha256))
    return tuple(errors)
