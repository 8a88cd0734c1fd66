"""Checks every decoder makes before it trusts stored arrays or parameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.errors import ArtifactError


def stored_array(
    arrays: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    dtypes: Collection[torch.dtype],
) -> Tensor:
    """The array of that name, once its shape and dtype are as the format says.

    Raises:
        ArtifactError: it is missing, or not as the format says.
    """
    if name not in arrays:
        raise ArtifactError(f"stored array {name!r} is missing")
    array = arrays[name]
    if tuple(array.shape) != shape or array.dtype not in dtypes:
        raise ArtifactError(
            f"stored array {name!r} is {array.dtype} {tuple(array.shape)}, "
            f"the format asks for {' or '.join(map(str, dtypes))} {shape}"
        )
    return array


def exact_keys(codec: str, config: Mapping[str, Any], keys: Collection[str]) -> None:
    """Refuse a codec configuration with missing or unknown keys.

    Raises:
        ArtifactError: the keys differ.
    """
    if set(config) != set(keys):
        raise ArtifactError(
            f"codec {codec!r} has keys {sorted(config)}, the format asks for {sorted(keys)}"
        )


def integer_in(codec: str, config: Mapping[str, Any], key: str, low: int, high: int) -> int:
    """`config[key]` as an integer inside low..high.

    Raises:
        ArtifactError: it is not.
    """
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ArtifactError(f"codec {codec!r}: {key} is {value!r}, must be {low}..{high}")
    return value
