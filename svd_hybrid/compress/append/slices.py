"""Stacked parts that get a slice for one more task; the slices of the others stay as they are."""

from __future__ import annotations

from dataclasses import replace

import torch

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import ZstdPlanesCodec
from svd_hybrid.codec.streams import encode_slice
from svd_hybrid.compress.profiles.base import decode_part


def with_slice(part: EncodedPart, index: int, one: EncodedPart) -> EncodedPart | None:
    """The part with another one as the slice of a task; None when the two do not fit together.

    Args:
        part: stacked; of that task it has no slice, or zeros.
        index: of the task.
        one: stacked, with one slice.
    """
    alike = part.stacked and (part.codec, part.rows, part.columns) == (
        one.codec,
        one.rows,
        one.columns,
    )
    if not alike or bool(part.arrays) != bool(one.arrays) or not is_empty(part, index):
        return None
    if not one.arrays:
        strings = _padded(part.strings, index)
        return replace(part, strings=(*strings[:index], *one.strings, *strings[index + 1 :]))
    if any(part.arrays[name].dtype != array.dtype for name, array in one.arrays.items()):
        return None
    arrays = {}
    for name, array in part.arrays.items():
        missing = max(index - len(array), 0)
        zeros = array.new_zeros((missing, *array.shape[1:]))
        pieces = [array[:index], zeros, one.arrays[name], array[index + 1 :]]
        arrays[name] = torch.cat(pieces)
    return replace(part, arrays=arrays)


def is_empty(part: EncodedPart, index: int) -> bool:
    """Whether a task has no slice, or zeros."""
    if index >= part.slices:
        return True
    if not part.arrays:
        return not part.strings[index]
    return not any(bool(array[index].any()) for array in part.arrays.values())


def without_slice(part: EncodedPart, index: int) -> EncodedPart:
    """The part with zeros for one task; itself when it is shared or has none."""
    if not part.stacked or index >= part.slices:
        return part
    if not part.arrays:
        strings = (*part.strings[:index], b"", *part.strings[index + 1 :])
        return replace(part, strings=strings)
    arrays = {name: array.clone() for name, array in part.arrays.items()}
    for array in arrays.values():
        array[index] = 0  # every codec of arrays decodes zeros to zeros
    return replace(part, arrays=arrays)


def as_late_part(one: EncodedPart, index: int) -> EncodedPart:
    """A new part of which only one task has a slice, stored in the fewest bytes.

    Arrays would hold zeros for every task before; as strings the same numbers cost nothing there.
    """
    if not one.stacked or index == 0:
        return one
    strings = as_strings(one)
    if one.arrays and (strings is None or strings.nbytes > (index + 1) * one.nbytes):
        zeros = {n: a.new_zeros((index, *a.shape[1:])) for n, a in one.arrays.items()}
        return replace(one, arrays={n: torch.cat([zeros[n], a]) for n, a in one.arrays.items()})
    one = strings or one
    return replace(one, strings=(*_padded((), index), *one.strings))


def as_strings(one: EncodedPart) -> EncodedPart | None:
    """A part in arrays with one slice as the same float32 numbers in a string; None for others."""
    if not one.arrays or one.codec.dtype != torch.float32:
        return None
    codec = ZstdPlanesCodec("F32")
    data = encode_slice(codec, decode_part(one, 0))
    return EncodedPart(codec, one.rows, one.columns, stacked=True, strings=(data,))


def _padded(strings: tuple[bytes, ...], count: int) -> tuple[bytes, ...]:
    return strings + (b"",) * (count - len(strings))
