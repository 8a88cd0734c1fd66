"""What each mechanism of the `auto` profile brings: bytes at equal error, quality at equal noise.

Every variant switches one mechanism off. With the objective `error` the table gives bits at fixed
relative errors (interpolated between steps); with `quality` the bits and the mean drop at fixed
steps. Strings only: names and digests cost all variants the same.

Example: python scripts/bench_ablation.py --family ../shared/families/vit-tiny --family B
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rate_distortion.evaluator import Evaluator
from rate_distortion.families import Family, open_measured_family
from rate_distortion.measure import drop, scores_of_originals
from safetensors.torch import save_file
from torch import Tensor

from svd_hybrid.compress.profiles.auto import coded_stack, factors, kinds, rest
from svd_hybrid.compress.profiles.auto.coded_rest import CodedRest
from svd_hybrid.compress.profiles.auto.encode import encode, for_kind
from svd_hybrid.compress.profiles.base import EncodedParts
from svd_hybrid.compress.profiles.params import AutoParams
from svd_hybrid.delta.evaluate import Mix, evaluate, matrix_shape
from svd_hybrid.numerics.hadamard import rotate

Patch = tuple[object, str, Any]


def _never(*_: object, **__: object) -> None:
    return None


def _closest(x: Tensor, noise: float, *given: Any, **options: Any) -> CodedRest | None:
    """The rest at the same step, but scaled for least squared error."""
    coded = rest.unbiased_rest(x, noise, *given, **options)
    if coded is None:
        return None
    turned = rotate(x) if coded.rotated else x
    numbers = coded.numbers.to(x.dtype)
    scale = float((numbers * turned).sum() / numbers.square().sum())
    return replace(coded, scale=scale)


ALIKE: tuple[Patch, ...] = tuple((kinds, name, 1.0) for name in ("STEM", "TABLE", "VECTOR"))
COMMON: Mapping[str, Sequence[Patch]] = {
    "all of it": (),
    "no factors": ((coded_stack, "task_factors", _never), (coded_stack, "shared_factors", _never)),
    "no shared bases": ((coded_stack, "shared_factors", _never),),
    "no factors of single tasks": ((coded_stack, "task_factors", _never),),
    "no weights by kind": ALIKE,
}
ERROR: Mapping[str, Sequence[Patch]] = {
    **COMMON,
    "energy in the rest counts fully": ((coded_stack, "WORTHS", (1.0,)),),
    "nearest rounding of the rest": (
        (factors, "THRESHOLDS", (0.5,)),
        (rest, "THRESHOLDS", (0.5,)),
    ),
    "factors only": ((coded_stack, "closest_rest", _never),),
}
QUALITY: Mapping[str, Sequence[Patch]] = {
    **COMMON,
    "rest scaled for least squares": ((coded_stack, "unbiased_rest", _closest),),
    "no rest": ((coded_stack, "unbiased_rest", _never),),
    "no rotation": ((rest, "ROTATED_FROM", math.inf),),
    "coefficients not solved anew": ((coded_stack, "with_coefficients", lambda plan, _: plan),),
}
ERRORS = (0.5, 0.3, 0.15)
STEPS = (3.0, 1.7, 0.9, 0.45)
NOISES = (8.0, 3.0, 1.5)
NEAR = 0.2
"""Natural logarithm of the error by which a curve may be extended."""


@contextmanager
def without(patches: Sequence[Patch]) -> Iterator[None]:
    """A block in which some names stand for something else."""
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


class Stacks:
    """The deltas of a family in memory, and what a variant makes of them."""

    def __init__(self, family: Family) -> None:
        opened = family.open()
        self.family = family
        self.base = {name: opened.base.read(name) for name in opened.base.infos}
        found = {name: opened.stack(name).deltas for name in self.base}
        self.deltas = {name: x.to(torch.float32) for name, x in found.items() if x is not None}
        self.count = len(family.tasks)
        self.square = sum(float(x.double().square().sum()) for x in self.deltas.values())
        self.scalars = sum(x.numel() for x in self.deltas.values())
        self.deviation = math.sqrt(self.square / self.scalars)

    def coded(self, step: float, objective: Any) -> tuple[float, float, dict[str, Tensor]]:
        """Bits per number, relative error, and the decoded deltas."""
        nbytes, error, decoded = 0, 0.0, {}
        for name, deltas in self.deltas.items():
            shape = tuple(deltas.shape[1:])
            m, n = matrix_shape(shape)
            params = AutoParams(step=step * self.deviation, objective=objective)
            params = for_kind(params, name, shape)
            stored = encode(deltas.reshape(-1, m, n), None, params)
            rebuilt = torch.zeros_like(deltas)
            if stored is not None:
                nbytes += sum(part.nbytes for part in stored.parts.values())
                source = EncodedParts(stored.parts)
                for task in range(self.count):
                    rows = evaluate(stored.expr, source, Mix({task: 1.0}), (m, n)).rows(0, m)
                    rebuilt[task] = rows.reshape(shape)
            error += float((rebuilt - deltas).double().square().sum())
            decoded[name] = rebuilt
        return 8 * nbytes / self.scalars, math.sqrt(error / self.square), decoded

    def mean_drop(
        self, decoded: dict[str, Tensor], evaluator: Evaluator, originals: Mapping[str, float]
    ) -> float:
        """Mean loss of the evaluator's score over the tasks."""
        total = 0.0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            for index, task in enumerate(self.family.tasks):
                changed = {
                    name: (self.base[name].float() + x[index]).contiguous()
                    for name, x in decoded.items()
                }
                save_file(self.base | changed, path)
                score = evaluator.scores(path, [task])[task]
                total += drop(self.family.metric, originals[task], score)
        return total / self.count


def bits_at(curve: Sequence[tuple[float, float]], error: float) -> float | None:
    """Bits at an error, between the two nearest points of a curve (error, bits), on log scales.

    None where the curve does not come near it.
    """
    points = sorted((math.log(e), math.log(b)) for e, b in curve)
    at = math.log(error)
    if not points[0][0] - NEAR < at < points[-1][0] + NEAR:
        return None
    pair = min(itertools.pairwise(points), key=lambda p: abs(p[0][0] + p[1][0] - 2 * at))
    (low, first), (high, second) = pair
    return math.exp(first + (second - first) * (at - low) / (high - low))


def run_error(stacks: Stacks) -> None:
    """The table for least squared error."""
    print(f"\n{stacks.family.name}, objective error: bits at relative error\n")
    print("| variant | " + " | ".join(f"{e:g}" for e in ERRORS) + " |")
    print("| --- |" + " --: |" * len(ERRORS))
    for name, patches in ERROR.items():
        with without(patches):
            curve = [stacks.coded(step, "error")[:2] for step in STEPS]
        found = [bits_at([(e, b) for b, e in curve], error) for error in ERRORS]
        cells = ["–" if bits is None else f"{bits:.3f}" for bits in found]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def run_quality(stacks: Stacks, limit: int | None) -> None:
    """The table for quality."""
    family = stacks.family
    if family.evaluator is None:
        return
    print(f"\n{family.name}, objective quality: bits / mean drop at step over deviation\n")
    print("| variant | " + " | ".join(f"{step:g}" for step in NOISES) + " |")
    print("| --- |" + " --: |" * len(NOISES))
    with Evaluator(family.evaluator, family.options, limit) as evaluator:
        originals = scores_of_originals(family, evaluator)
        for name, patches in QUALITY.items():
            cells = []
            for step in NOISES:
                with without(patches):
                    bits, _, decoded = stacks.coded(step, "quality")
                lost = stacks.mean_drop(decoded, evaluator, originals)
                cells.append(f"{bits:.3f} / {lost:.2f}")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the tables of every family."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--family", action="append", required=True, help="folder, demo or B")
    parser.add_argument("--limit", type=int, help="examples per task for the evaluator")
    parser.add_argument("--no-evaluate", action="store_true", help="squared error only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for text in args.family:
            stacks = Stacks(open_measured_family(text, Path(folder)))
            run_error(stacks)
            if not args.no_evaluate:
                run_quality(stacks, args.limit)


if __name__ == "__main__":
    main()
