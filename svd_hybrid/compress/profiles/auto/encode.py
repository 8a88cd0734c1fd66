"""One stack: factors where they pay, then the rest; every number on one step for the family.

stack ─► strongest directions of each task ─► plan: none | factors of each task | shared bases with
a core of each ─► rest = stack - product ─► rounded ─► coefficients solved anew for stack - rest,
where the rest is noisier than they are ─► strings

With the objective `quality` the rest keeps its mean and the step names its noise; with `error` all
numbers have the step itself and squared error decides. Source: codec design §2, §3, §7, §16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product as product_of
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import IntegersCodec, TrellisCodec
from svd_hybrid.codec.integers import stored_scale
from svd_hybrid.compress.layer_inputs import LayerInputs
from svd_hybrid.compress.profiles.auto.coded_rest import CodedRest, PackedRest, RestCodec
from svd_hybrid.compress.profiles.auto.factors import (
    PRICE,
    Factors,
    SharedFactors,
    TaskFactors,
    factor_bits,
    least_energy,
    product,
    rest_cost,
    shared_factors,
    solved_again,
    strongest_directions,
    task_factors,
    with_coefficients,
)
from svd_hybrid.compress.profiles.auto.kinds import error_weight, is_small, is_thin
from svd_hybrid.compress.profiles.auto.rest import closest_rest, unbiased_rest
from svd_hybrid.compress.profiles.base import EncodedStack, Profile, masked_stack
from svd_hybrid.compress.profiles.params import AutoParams
from svd_hybrid.delta.expr import Dense, Expr, LowRank, Sum, Tucker
from svd_hybrid.numerics.metrics import squared_norm

OWN_VARIANCE = 5.0
NOISE_SHARE = 2.5
"""Squared step of the factors: so many times the variance of the deltas and the noise of the rest.

Measured (docs/codec.md): the best step follows what the rest will cost, and hardly the target."""
WORTHS = (1.0, 0.3, 0.1, 0.03)
"""What energy may be worth that is left to the rest: all, where that is lost, or the bits it
takes."""
RESTS: dict[str, RestCodec] = {
    "coeff_rest": IntegersCodec("scaled"),
    "coeff_turned": IntegersCodec("rotated"),
    "coeff_trellis": TrellisCodec("scaled"),
    "coeff_turned_trellis": TrellisCodec("rotated"),
}
"""Parts that the rests of tasks may lie in."""
FINE = 2.0**-10
"""Step over deviation below which float32 would not do for the encoder's own arithmetic."""


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
    `trellis`, the rest is rounded along the trellis if that pays.

    Returns:
        Parts `coeff_left`, `coeff_right` (or `basis_left`, `basis_right`, `coeff_core`) and those
        of RESTS as far as they exist, over which the delta is a sum; None when nothing is worth
        its bits.
    """
    stack = masked_stack(stack, mask)
    if not bool(stack.any()):
        return None
    if all(not x.any() or is_thin(x) for x in stack):  # no rest, whose noise would be cheap
        params = replace(params, objective="error")
    steps = _steps(stack, params)
    coded = _Coded(stack, params, steps, inputs, trellis=trellis)
    return coded.stored(prefix, stack[0].numel() if mask is None else int(mask.sum()))


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of one stack.

    Args:
        factors: of bases, coefficients and cores.
        noise: variance that rounding the rest may add to a number.
    """

    factors: float
    noise: float


def _steps(stack: Tensor, params: AutoParams) -> Steps:
    assert params.step is not None  # the run has found it before it encodes
    own = params.step / params.error_weight**0.5
    noise = own**2 / 12
    if params.objective == "error":
        return Steps(stored_scale(own), noise)
    variance = squared_norm(stack) / stack.numel()
    factors = (OWN_VARIANCE * variance + NOISE_SHARE * noise) ** 0.5
    return Steps(stored_scale(factors), noise)


class _Coded:
    """Factors and rest of a stack, as integers."""

    def __init__(
        self,
        stack: Tensor,
        params: AutoParams,
        steps: Steps,
        inputs: Sequence[LayerInputs] | None,
        *,
        trellis: bool,
    ) -> None:
        self.trellis = trellis
        self.shape = (stack.shape[1], stack.shape[2])
        self.params = params
        self.steps = steps
        fine = steps.factors < FINE * (squared_norm(stack) / stack.numel()) ** 0.5
        tasks = list(stack.to(torch.float64 if fine else torch.float32))
        self.factors: Factors | None = None
        self.energy = 0.0  # share of the stack's that the factors hold
        if not is_small(self.shape):
            self.factors, self.energy = self._plan(tasks)
        noisy = params.objective == "quality" and steps.noise > steps.factors**2 / 12
        own: list[Tensor] = []
        self.rests: list[PackedRest | None] = []
        for task, x in enumerate(tasks):  # one task's numbers in memory, the others as strings
            layer = None if inputs is None else inputs[task]
            rest = self._rest(x, task, layer)
            if self.factors is not None and noisy:
                left = x if rest is None else x - rest.decoded()
                own.append(solved_again(self.factors, task, left, steps.factors, layer))
            self.rests.append(None if rest is None else rest.packed())
        if self.factors is not None and noisy:
            self.factors = with_coefficients(self.factors, own)

    def _plan(self, tasks: Sequence[Tensor]) -> tuple[Factors | None, float]:
        """The plan with the least cost, None for no factors, and its share of the energy."""
        step = self.steps.factors
        limits = self.params.max_rank, self.params.energy_threshold
        least = least_energy(*self.shape, step, len(tasks))
        found = [strongest_directions(x, least, *limits) for x in tasks]
        best: Factors | None = None
        lowest, whole = self._cost(None, tasks)
        left = whole
        kinds = (task_factors, shared_factors)
        worths = WORTHS if self.params.objective == "error" else WORTHS[:1]
        for make, worth in product_of(kinds if len(tasks) > 1 else kinds[:1], worths):
            plan = make(tasks, found, step, worth)
            if plan is None:
                continue
            cost, energy = self._cost(plan, tasks)
            if cost < lowest:
                best, lowest, left = plan, cost, energy
        return best, max(0.0, 1.0 - left / whole)

    def _cost(self, plan: Factors | None, tasks: Sequence[Tensor]) -> tuple[float, float]:
        """Squared error plus priced bits of a plan with its rest, and the energy of that.

        With the objective `quality` the rest's bits hardly depend on its energy, for its noise
        follows that: there the energy itself stands for the cost.
        """
        step = self.steps.factors
        cost = 0.0 if plan is None else PRICE * step**2 * factor_bits(plan)
        left = 0.0
        for task, x in enumerate(tasks):
            energy = squared_norm(x if plan is None else x - product(plan, task, step, x.dtype))
            left += energy
            by_error = self.params.objective == "error"
            cost += rest_cost(energy, x.numel(), step) if by_error else energy
        return cost, left

    def _rest(self, x: Tensor, task: int, inputs: LayerInputs | None) -> CodedRest | None:
        if self.factors is not None:
            x = x - product(self.factors, task, self.steps.factors, x.dtype)
        if self.params.objective == "error":
            return closest_rest(x, self.steps.factors, trellis=self.trellis)
        may_rotate = not is_small(self.shape)
        return unbiased_rest(
            x, self.steps.noise, inputs, may_rotate=may_rotate, trellis=self.trellis
        )

    def stored(self, prefix: str, scalars: int) -> EncodedStack | None:
        """The strings, and the expression over them."""
        parts: dict[str, EncodedPart] = {}
        terms: list[Expr] = []
        m, n = self.shape
        scaled, unit = IntegersCodec("scaled"), IntegersCodec("unit")
        step = self.steps.factors
        match self.factors:
            case TaskFactors(bases, coefficients):
                parts["coeff_left"] = _stacked(unit, bases, m)
                parts["coeff_right"] = _stacked(scaled, coefficients, n, step)
                terms.append(LowRank(prefix + "coeff_left", prefix + "coeff_right"))
            case SharedFactors(left, right, cores):
                for name, side in (("basis_left", left), ("basis_right", right)):
                    rows, columns = side.shape
                    parts[name] = EncodedPart(unit, rows, columns, False, {}, (unit.pack(side),))
                parts["coeff_core"] = _stacked(scaled, cores, len(right), step)
                names = [prefix + name for name in ("basis_left", "coeff_core", "basis_right")]
                terms.append(Tucker(names[0], names[1], names[2]))
        for name, codec in RESTS.items():
            strings = tuple(
                rest.string if rest and rest.codec == codec else b"" for rest in self.rests
            )
            if any(strings):
                parts[name] = EncodedPart(codec, m, n, True, {}, strings)
                terms.append(Dense(prefix + name))
        if not parts:
            return None
        rank = self.factors.rank if self.factors else 0
        return EncodedStack(
            {prefix + name: part for name, part in parts.items()},
            terms[0] if len(terms) == 1 else Sum(tuple(terms)),
            flat=False,
            rank=rank,
            directions=rank,
            scalars=scalars,
            energy_retained=self.energy,
        )


def _stacked(
    codec: IntegersCodec, matrices: Sequence[Tensor], columns: int, scale: float = 1.0
) -> EncodedPart:
    """One part of integer matrices with the same columns; short ones end in rows of zeros."""
    rows = max(len(matrix) for matrix in matrices)
    strings = []
    for matrix in matrices:
        missing = matrix.new_zeros((rows - len(matrix), columns))
        strings.append(codec.pack(torch.cat([matrix, missing]), scale))
    return EncodedPart(codec, rows, columns, True, {}, tuple(strings))


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
)
MAX = replace(
    AUTO,
    name="max",
    summary="As auto, with the rest rounded along a trellis: slower and smaller.",
    encode=partial(encode, trellis=True),
    encode_minding=partial(encode, trellis=True),
)
