"""nn.MultiheadAttention with its output projection called as a module, so that hooks see it.

The module passes `out_proj`'s weight to a fused function and never calls it. While collecting, the
fused function gets an identity in its place, which leaves the joined heads as they are, and
`out_proj` is called on them. PyTorch's fast paths skip modules altogether and are switched off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from svd_hybrid.collect.forwards import Forward, replaced


@contextmanager
def visible_attention(module: nn.Module) -> Iterator[None]:
    """Make every nn.MultiheadAttention inside `module` call its output projection."""
    found = [part for part in module.modules() if isinstance(part, nn.MultiheadAttention)]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with replaced(found, lambda _, part: _unfused(part)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _unfused(module: nn.Module) -> Forward:
    assert isinstance(module, nn.MultiheadAttention)
    whole = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        real = module.out_proj
        module.out_proj = _identity(real)
        try:
            heads, weights = whole(*args, **kwargs)
        finally:
            module.out_proj = real
        return real(heads), weights

    return forward


def _identity(like: nn.Linear) -> Any:
    """A layer of the same kind that changes nothing."""
    made = type(like)(like.in_features, like.out_features, bias=like.bias is not None)
    with torch.no_grad():
        nn.init.eye_(made.weight)
        if made.bias is not None:
            made.bias.zero_()
    return made
