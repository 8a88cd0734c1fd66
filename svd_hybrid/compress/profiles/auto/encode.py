"""The profiles `auto` and `max`: stacks as factors and rest, on one step for the family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from svd_hybrid.compress.layer_inputs import LayerInputs
from svd_hybrid.compress.profiles.auto.coded_stack import CodedStack
from svd_hybrid.compress.profiles.auto.kinds import error_weight, is_thin
from svd_hybrid.compress.profiles.auto.own_step import own_step
from svd_hybrid.compress.profiles.base import EncodedStack, Profile, Tried, masked_stack
from svd_hybrid.compress.profiles.params import AutoParams


def encode(
    stack: Tensor,
    mask: Tensor | None,
    params: AutoParams,
    prefix: str = "",
    inputs: Sequence[LayerInputs] | None = None,
    *,
    trellis: bool = False,
) -> EncodedStack | None:
    """Store one region of one tensor; arguments as in `Profile`.

    Rounding minds the layer's inputs where they are known (per task); where not, and with
    `trellis`, the rest is rounded along the trellis if that pays. Without a step in `params`, the
    stack gets one of its own.

    Returns:
        Parts `coeff_left`, `coeff_right` (or `basis_left`, `basis_right`, `coeff_core`) and those
        of RESTS as far as they exist, over which the delta is a sum; None when nothing is worth
        its bits.
    """
    stack = masked_stack(stack, mask)
    if not bool(stack.any()):
        return None
    params = _adapted(stack, params)
    coded = partial(CodedStack, stack, params, inputs=inputs, trellis=trellis)
    step = params.step
    if step is None:
        step = own_step(stack, params, lambda tried: coded(tried).tried(mask))
    return coded(step).stored(prefix, stack[0].numel() if mask is None else int(mask.sum()))


def try_out(
    stack: Tensor,
    mask: Tensor | None,
    params: AutoParams,
    inputs: Sequence[LayerInputs] | None,
    *,
    trellis: bool = False,
) -> Tried:
    """What `encode` would make of a region at the step of `params`; the other arguments are its."""
    step = params.step
    assert step is not None  # a search names the steps it tries
    stack = masked_stack(stack, mask)
    if not bool(stack.any()):
        nothing = (0.0,) * len(stack)
        return Tried(0.0, nothing, nothing)
    params = _adapted(stack, params)
    return CodedStack(stack, params, step, inputs, trellis=trellis).tried(mask)


def _adapted(stack: Tensor, params: AutoParams) -> AutoParams:
    """Parameters for what the stack is: thin deltas have no rest, whose noise would be cheap."""
    thin = all(not x.any() or is_thin(x) for x in stack)
    return replace(params, objective="error") if thin else params


def for_kind(params: AutoParams, name: str, shape: tuple[int, ...]) -> Any:
    """The parameters of one tensor: what its errors count, by kind unless an override says."""
    if params.error_weight:
        return params
    return replace(params, error_weight=error_weight(name, shape))


AUTO = Profile(
    name="auto",
    summary="Strong directions as factors, the rest entropy-coded, one step for the family.",
    encode=encode,
    for_kind=for_kind,
    encode_minding=encode,
    minds_inputs=lambda params: params.objective == "quality",
    try_out=try_out,
)
MAX = replace(
    AUTO,
    name="max",
    summary="As auto, with the rest rounded along a trellis: slower and smaller.",
    encode=partial(encode, trellis=True),
    encode_minding=partial(encode, trellis=True),
    try_out=partial(try_out, trellis=True),
)
