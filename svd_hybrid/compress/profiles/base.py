"""What a profile is: stack of deltas → encoded parts and the expression that reads them back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import AnyCodec, StreamCodec
from svd_hybrid.codec.streams import decode_slice, encode_slices
from svd_hybrid.compress.layer_inputs import LayerInputs
from svd_hybrid.delta.evaluate import Mix, evaluate
from svd_hybrid.delta.expr import Expr


@dataclass(frozen=True, slots=True)
class EncodedStack:
    """One stored region of one tensor.

    Args:
        parts: encoded parts by name.
        expr: the delta of a task, over those names; (m, n), or (D, 1) when `flat`.
        flat: whether the expression gives the selected scalars in a row instead of the matrix.
        rank: directions stored with high precision.
        directions: directions stored in all.
        scalars: scalars per task in the region.
        energy_retained: share of the (centred) energy the high directions hold, [0, 1].
    """

    parts: Mapping[str, EncodedPart]
    expr: Expr
    flat: bool
    rank: int
    directions: int
    scalars: int
    energy_retained: float


@dataclass(frozen=True, slots=True)
class Originals:
    """One tensor as base and fine-tunes have it.

    Args:
        name: of the tensor.
        shape: of the tensor.
        base: (m, n), in its own dtype.
        tasks: names in order.
        tuned: gives every task's tensor in order, (m, n) in its own dtype; reads them each time.
            None for profiles that store deltas.
    """

    name: str
    shape: tuple[int, ...]
    base: Tensor
    tasks: tuple[str, ...]
    tuned: Callable[[], Iterator[Tensor]] | None


@dataclass(frozen=True, slots=True)
class Tried:
    """What storing one region of one tensor would come to.

    Args:
        nbytes: of all strings, about.
        lost: squared error per task.
        whole: squared norm per task.
    """

    nbytes: float
    lost: tuple[float, ...]
    whole: tuple[float, ...]

    def error(self, *, worst_task: bool) -> float:
        """Relative error of all tasks, or of the one with the largest."""
        if not worst_task:
            return math.sqrt(sum(self.lost) / sum(self.whole)) if any(self.whole) else 0.0
        pairs = zip(self.lost, self.whole, strict=True)
        return math.sqrt(max((x / y for x, y in pairs if y), default=0.0))

    def __add__(self, other: Tried) -> Tried:
        """Both together."""
        return self.with_share(other, 1.0)

    def with_share(self, other: Tried, share: float) -> Tried:
        """This and another so many times."""
        return Tried(
            self.nbytes + share * other.nbytes,
            tuple(x + share * y for x, y in zip(self.lost, other.lost, strict=True)),
            tuple(x + share * y for x, y in zip(self.whole, other.whole, strict=True)),
        )


MindingEncode = Callable[
    [Tensor, Tensor | None, Any, str, Sequence[LayerInputs]], EncodedStack | None
]


TryOut = Callable[[Tensor, Tensor | None, Any, Sequence[LayerInputs] | None], Tried]


@dataclass(frozen=True, slots=True)
class Profile:
    """A named set of codec choices.

    Args:
        name: id in manifests.
        summary: one sentence.
        encode: (stack (N, m, n) float, mask (m, n) bool or None, params, part-name prefix) →
            stored stack, or None when every scalar of the region is zero in every task.
        encode_originals: takes the place of `encode` in a profile that stores the fine-tunes
            themselves: (originals, params) → stored stack, or None when all equal the base.
        encode_minding: `encode` for a layer whose inputs are known; their statistics, per task,
            are its last argument. None where a profile has no use for them.
        minds_inputs: params → whether it has.
        try_out: (stack, mask, params, inputs or None) → what `encode` would come to; for profiles
            whose step a run searches.
        for_kind: (params, tensor name, shape) → the params for that tensor, where kinds differ.
    """

    name: str
    summary: str
    encode: Callable[[Tensor, Tensor | None, Any, str], EncodedStack | None]
    encode_originals: Callable[[Originals, Any], EncodedStack | None] | None = None
    for_kind: Callable[[Any, str, tuple[int, ...]], Any] | None = None
    encode_minding: MindingEncode | None = None
    minds_inputs: Callable[[Any], bool] = lambda params: False
    try_out: TryOut | None = None


def encode_part(codec: AnyCodec, x: Tensor) -> EncodedPart:
    """Encode a shared part (rows, columns) or a stacked one (N, rows, columns)."""
    stacked = x.ndim == 3
    slices = x if stacked else x.unsqueeze(0)
    rows, columns = slices.shape[1:]
    if isinstance(codec, StreamCodec):
        return EncodedPart(codec, rows, columns, stacked, {}, encode_slices(codec, slices))
    return EncodedPart(codec, rows, columns, stacked, codec.encode(slices))


def join_slices(parts: list[EncodedPart]) -> EncodedPart:
    """One stacked part of parts that were encoded slice by slice, with one codec; at least one.

    Slices are coded independently, so this is what encoding them together gives; an array whose
    dtype varies (`zero` of the residual codec) takes the widest.
    """
    arrays = {name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    strings = tuple(data for part in parts for data in part.strings)
    return replace(parts[0], arrays=arrays, strings=strings)


def decode_part(part: EncodedPart, task: int | None) -> Tensor:
    """What a reader of the artifact will see: (rows, columns), of one task when stacked."""
    index, shape = task or 0, (part.rows, part.columns)
    if index >= part.slices:
        return torch.zeros(shape, dtype=part.codec.dtype)
    if isinstance(part.codec, StreamCodec):
        return decode_slice(part.codec, part.strings[index], shape)
    arrays = {name: array[index : index + 1] for name, array in part.arrays.items()}
    return part.codec.decode(arrays, (1, *shape))[0]


class EncodedParts:
    """Encoded parts as a PartSource, so that the encoder measures the real decoder."""

    def __init__(self, parts: Mapping[str, EncodedPart]) -> None:
        self.parts = parts
        self._shared: dict[str, Tensor] = {}

    def is_stacked(self, part: str) -> bool:
        """Whether the part has one slice per task."""
        return self.parts[part].stacked

    def shape(self, part: str) -> tuple[int, int]:
        """Rows and columns."""
        return self.parts[part].rows, self.parts[part].columns

    def decode(self, part: str, task: int | None) -> Tensor:
        """The part (of one task); shared parts are decoded once and kept."""
        if task is not None:
            return decode_part(self.parts[part], task)
        if part not in self._shared:
            self._shared[part] = decode_part(self.parts[part], None)
        return self._shared[part]


def squared_error(stored: EncodedStack, stack: Tensor, mask: Tensor | None) -> float:
    """Squared error of all tasks over the scalars the mask selects, by the real decoder.

    Args:
        stored: what `encode` made of the stack.
        stack: (N, m, n) as it was given.
        mask: (m, n) bool, or None.
    """
    source = EncodedParts(stored.parts)
    total = 0.0
    for index, delta in enumerate(stack):
        wanted = delta if mask is None else delta[mask]
        shape = (stored.scalars, 1) if stored.flat else (delta.shape[0], delta.shape[1])
        rebuilt = evaluate(stored.expr, source, Mix({index: 1.0}), shape).rows(0, shape[0])
        if mask is not None and not stored.flat:
            rebuilt = rebuilt[mask]
        total += float((rebuilt.reshape(wanted.shape) - wanted).square().sum())
    return total


def masked_stack(stack: Tensor, mask: Tensor | None) -> Tensor:
    """The stack with the scalars outside the mask set to zero; a copy where there is a mask."""
    return stack if mask is None else torch.where(mask, stack, torch.zeros((), dtype=stack.dtype))
