"""One stack as integers: factors where they pay, then what they leave over, task by task.

stack ─► strongest directions of each task ─► plan: none | factors of each task | shared bases with
a core of each ─► rest = stack - product ─► rounded ─► coefficients solved anew for stack - rest,
where the rest is noisier than they are ─► strings, or only how many bytes and what is lost

With the objective `quality` the rest keeps its mean and the step names its noise; with `error` all
numbers have the step itself and squared error decides. Source: codec design §2, §3, §7, §16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product as product_of

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import IntegersCodec, TrellisCodec
from svd_hybrid.codec.entropy import prepare
from svd_hybrid.codec.integers import stored_scale
from svd_hybrid.compress.layer_inputs import LayerInputs
from svd_hybrid.compress.profiles.auto.coded_rest import CodedRest, PackedRest, RestCodec
from svd_hybrid.compress.profiles.auto.factors import (
    PRICE,
    Factors,
    JointSpan,
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
from svd_hybrid.compress.profiles.auto.kinds import is_small
from svd_hybrid.compress.profiles.auto.rest import closest_rest, unbiased_rest
from svd_hybrid.compress.profiles.base import EncodedStack, Tried
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


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of one stack.

    Args:
        factors: of bases, coefficients and cores.
        noise: variance that rounding the rest may add to a number.
    """

    factors: float
    noise: float

    @classmethod
    def of(cls, stack: Tensor, params: AutoParams, step: float) -> Steps:
        """For a family's step, or one of the stack's own."""
        own = step / params.error_weight**0.5
        noise = own**2 / 12
        if params.objective == "error":
            return cls(stored_scale(own), noise)
        variance = squared_norm(stack) / stack.numel()
        factors = (OWN_VARIANCE * variance + NOISE_SHARE * noise) ** 0.5
        return cls(stored_scale(factors), noise)


@dataclass(frozen=True, slots=True)
class CodedTask:
    """One task's share of a stack.

    Args:
        rest: what the factors leave over; None where nothing of it survives.
        coefficients: or core, on the factors' bases; None without factors.
    """

    rest: CodedRest | None
    coefficients: Tensor | None


class CodedStack:
    """Factors of a stack (N, m, n), chosen; the tasks' rests are coded as they are asked for.

    Args:
        stack: float, zeros outside the mask.
        params: of the profile.
        step: of the family, or the stack's own.
        inputs: of the layer, per task; None where they are not known.
        trellis: whether rests are tried along it.
    """

    def __init__(
        self,
        stack: Tensor,
        params: AutoParams,
        step: float,
        inputs: Sequence[LayerInputs] | None,
        *,
        trellis: bool,
    ) -> None:
        self.trellis = trellis
        self.shape = (stack.shape[1], stack.shape[2])
        self.params = params
        self.inputs = inputs
        self.steps = Steps.of(stack, params, step)
        fine = self.steps.factors < FINE * (squared_norm(stack) / stack.numel()) ** 0.5
        self.tasks = list(stack.to(torch.float64 if fine else torch.float32))
        self.factors: Factors | None = None
        self.energy = 0.0  # share of the stack's that the factors hold
        if not is_small(self.shape):
            self.factors, self.energy = self._plan()

    def _plan(self) -> tuple[Factors | None, float]:
        """The plan with the least cost, None for no factors, and its share of the energy."""
        tasks, step = self.tasks, self.steps.factors
        limits = self.params.max_rank, self.params.energy_threshold
        least = least_energy(*self.shape, step, len(tasks))
        found = [strongest_directions(x, least, *limits) for x in tasks]
        best: Factors | None = None
        lowest, whole = self._cost(None)
        left = whole
        makes: list[Callable[[float], Factors | None]] = [
            lambda worth: task_factors(tasks, found, step, worth)
        ]
        if len(tasks) > 1:
            span = JointSpan.of(found)
            makes.append(lambda worth: shared_factors(tasks, span, step, worth))
        worths = WORTHS if self.params.objective == "error" else WORTHS[:1]
        for make, worth in product_of(makes, worths):
            plan = make(worth)
            if plan is None:
                continue
            cost, energy = self._cost(plan)
            if cost < lowest:
                best, lowest, left = plan, cost, energy
        return best, max(0.0, 1.0 - left / whole)

    def _cost(self, plan: Factors | None) -> tuple[float, float]:
        """Squared error plus priced bits of a plan with its rest, and the energy of that.

        With the objective `quality` the rest's bits hardly depend on its energy, for its noise
        follows that: there the energy itself stands for the cost.
        """
        step = self.steps.factors
        cost = 0.0 if plan is None else PRICE * step**2 * factor_bits(plan)
        left = 0.0
        for task, x in enumerate(self.tasks):
            energy = squared_norm(x if plan is None else x - product(plan, task, step, x.dtype))
            left += energy
            by_error = self.params.objective == "error"
            cost += rest_cost(energy, x.numel(), step) if by_error else energy
        return cost, left

    def coded(self) -> Iterator[CodedTask]:
        """The tasks in order, one in memory at a time."""
        noisy = self.params.objective == "quality" and self.steps.noise > self.steps.factors**2 / 12
        for task, x in enumerate(self.tasks):
            layer = None if self.inputs is None else self.inputs[task]
            rest = self._rest(x, task, layer)
            if self.factors is None:
                yield CodedTask(rest, None)
            elif noisy:
                left = x if rest is None else x - rest.decoded()
                step = self.steps.factors
                yield CodedTask(rest, solved_again(self.factors, task, left, step, layer))
            else:
                yield CodedTask(rest, self.factors.own[task])

    def _rest(self, x: Tensor, task: int, inputs: LayerInputs | None) -> CodedRest | None:
        if self.factors is not None:
            x = x - product(self.factors, task, self.steps.factors, x.dtype)
        if self.params.objective == "error":
            return closest_rest(x, self.steps.factors, trellis=self.trellis)
        may_rotate = not is_small(self.shape)
        return unbiased_rest(
            x, self.steps.noise, inputs, may_rotate=may_rotate, trellis=self.trellis
        )

    def tried(self, mask: Tensor | None) -> Tried:
        """What `stored` would take, to about 0.3 %, and what is lost; no string is made.

        Args:
            mask: (m, n) bool, where errors count; None for everywhere.
        """
        nbytes, lost, whole, own = 0.0, [], [], []
        for index, (x, task) in enumerate(zip(self.tasks, self.coded(), strict=True)):
            error = x
            if task.rest is not None:
                error = error - task.rest.decoded()
                nbytes += task.rest.size
            if self.factors is not None and task.coefficients is not None:
                step = self.steps.factors
                error = error - product(self.factors, index, step, x.dtype, task.coefficients)
                own.append(task.coefficients)
            lost.append(squared_norm(error if mask is None else error * mask))
            whole.append(squared_norm(x))
        if self.factors is not None:
            matrices = with_coefficients(self.factors, own).matrices
            nbytes += sum(prepare(matrix.numpy()).size for matrix in matrices)
        return Tried(nbytes, tuple(lost), tuple(whole))

    def stored(self, prefix: str, scalars: int) -> EncodedStack | None:
        """The strings, and the expression over them.

        Args:
            prefix: of the names of parts.
            scalars: per task in the region.
        """
        rests: list[PackedRest | None] = []
        own: list[Tensor] = []
        for task in self.coded():  # one task's numbers in memory, the others as strings
            rests.append(None if task.rest is None else task.rest.packed())
            own += [] if task.coefficients is None else [task.coefficients]
        parts: dict[str, EncodedPart] = {}
        terms: list[Expr] = []
        m, n = self.shape
        scaled, unit = IntegersCodec("scaled"), IntegersCodec("unit")
        step = self.steps.factors
        match self.factors and with_coefficients(self.factors, own):
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
            strings = tuple(rest.string if rest and rest.codec == codec else b"" for rest in rests)
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
    codec: IntegersCodec, rows_of: Sequence[Tensor], columns: int, scale: float = 1.0
) -> EncodedPart:
    """One part of integer matrices with the same columns; short ones end in rows of zeros."""
    rows = max(len(matrix) for matrix in rows_of)
    strings = []
    for matrix in rows_of:
        missing = matrix.new_zeros((rows - len(matrix), columns))
        strings.append(codec.pack(torch.cat([matrix, missing]), scale))
    return EncodedPart(codec, rows, columns, True, {}, tuple(strings))
