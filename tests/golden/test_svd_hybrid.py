"""SVD-Hybrid against every stored case of `svd_hybrid`: on the stored bases, then end to end.

The folder decides which cases there are. What the reference gets wrong, hence what must not agree,
follows from its version, the parameters of the case and the data; where it is wrong, that the named
bug is the whole difference is shown, and the right numbers are asserted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from svd_hybrid import Artifact, compress
from svd_hybrid.methods.svd_hybrid import SvdHybridParams, combine_masks
from tests.golden.compare import (
    Case,
    OnStoredBasis,
    Stage,
    golden_case,
    hybrid_params,
    on_stored_basis,
    relative_error,
    stored_cases,
    unpack_mask,
)
from tests.golden.conftest import GOLDEN
from tests.golden.reference_quantiser import clamps, decoded, fails, formula, residuals, version

pytestmark = pytest.mark.golden

FILES = {"bases", "coefficients", "masks_packed", "task_masks_packed", "merged_delta"}
"""Files of these cases that the tests below read."""
REGIONS = {"masked": "masked", "unmasked": "noise"}  # names in coefficients and in bases
PROJECTION = 2.0**-22
"""Float32 error of a projection, over the norm of what is projected."""
NO_ENERGY = 1e-10
"""The reference takes less energy, centred and absolute, for none and keeps one direction."""


def hybrid_cases() -> list[Case]:
    return [case for case in stored_cases(GOLDEN) if case.facts["method"] == "svd_hybrid"]


def basis_case(case: Case) -> str:
    """The case that holds the bases this one was computed on; empty where none are stored."""
    named = re.fullmatch(r"identical to case (\S+)", case.facts.get("bases", ""))
    if named:
        return named[1]
    assert case.facts.get("bases", "not stored") == "not stored"
    return case.name if case.holds("bases") else ""


def loses_mean(case: Case) -> bool:
    """seed projects raw deltas on a centred basis and never adds the mean back."""
    return version(case.facts) == "seed" and case.facts["params"]["svd_center"]


def weights_applied(case: Case) -> list[float]:
    """The reference weighs clusters by the softmax of their members' weights, not uniformly."""
    labels = case.facts.get("cluster_assignments")
    if not labels:
        return case.weights
    weights = torch.tensor(case.weights, dtype=torch.float64)
    numbers, of_task = torch.tensor([labels[task] for task in case.facts["weights"]]).unique(
        return_inverse=True
    )
    across = torch.stack([weights[of_task == c].mean() for c in range(len(numbers))]).softmax(0)
    return (across / torch.bincount(of_task))[of_task].tolist()


def misweighs(case: Case) -> bool:
    """Clusters of one size are weighed right."""
    pairs = zip(weights_applied(case), case.weights, strict=True)
    return max(abs(theirs - right) for theirs, right in pairs) > 1e-6


def names(rule: Callable[[Case], Any] = lambda case: True) -> list[str]:
    """Cases that a rule picks."""
    return [case.name for case in hybrid_cases() if rule(case)]


# --- on the stored bases -------------------------------------------------------------------------


def mask_case(case: Case) -> Case | None:
    """The case that stores the masks this one was run with."""
    if case.holds("masks_packed"):
        return case
    source = golden_case(case.root, basis_case(case) or case.name)
    masked = "svd_mask_strategy" in case.facts["params"] and source.holds("masks_packed")
    return source if masked else None


def mask_of(case: Case, tensor: str) -> Tensor:
    """Bool of the tensor's shape; all of it where the case has no masks."""
    shape, source = case.base[tensor].shape, mask_case(case)
    return source.unpacked("masks_packed", tensor, shape) if source else torch.ones(shape).bool()


def selected_deltas(case: Case, tensor: str, region: str) -> Tensor:
    """(N, D) deltas of the scalars a region selects; all of them where there is no mask."""
    deltas, mask = case.deltas[tensor], mask_of(case, tensor).flatten()
    if tensor in case.facts["parameters_not_merged"]:
        mask = torch.ones_like(mask)  # the reference drops it, ours merges it whole
    return deltas.reshape(deltas.shape[0], -1)[:, mask if region == "masked" else ~mask]


@dataclass(frozen=True)
class Encoded:
    """A region of a tensor on the basis the reference stored: our encoding, and the exact numbers.

    Args:
        raw: (N, D) deltas, float64, less the stored mean where the case centres.
        high: (D, k) the high directions.
        low: (D, n) the low ones.
    """

    ours: OnStoredBasis
    raw: Tensor
    high: Tensor
    low: Tensor

    @property
    def exact(self) -> Tensor:
        """(N, n) low coefficients."""
        return self.raw @ self.low

    @property
    def slack(self) -> float:
        """Float32 error of a coefficient."""
        return PROJECTION * float(self.raw.norm(dim=1).max())


def encoded_regions(case: Case, **changes: bool) -> dict[tuple[str, str], Encoded]:
    """Every region of a case, by parameter and region, on the basis it was computed on."""
    bases = golden_case(case.root, basis_case(case)).load("bases")
    params = hybrid_params(case, **changes)
    coefficient_names = {base: coefficient for coefficient, base in REGIONS.items()}
    found = {}
    for tensor, base_region in sorted({tuple(key.rsplit("/", 2)[:2]) for key in bases}):
        prefix, region = f"{tensor}/{base_region}", coefficient_names[base_region]
        stack = selected_deltas(case, tensor, region)
        raw = stack - bases[f"{prefix}/mean"].double() if params.center else stack
        ours = on_stored_basis(stack, bases, prefix, params)
        high, low = (bases[f"{prefix}/U_{half}"].double() for half in ("high", "low"))
        found[tensor, region] = Encoded(ours, raw, high, low)
    return found


def half_ulps(got: Tensor, want: Tensor) -> float:
    """Largest difference in units in the last place of FP16."""
    ulp = torch.from_numpy(np.spacing(want.abs().numpy())).float()
    return float(((got - want.float()).abs() / ulp).max())


def task_stages(stored: dict[str, Tensor], key: str, task: int) -> list[Stage]:
    """What the reference stores of one task's low coefficients."""
    found = []
    while (prefix := f"{key}/stage{len(found)}") + "/quantized" in stored:
        codes, scale, zero = (
            stored[f"{prefix}/{kind}"][task] for kind in ("quantized", "scale", "zero_point")
        )
        found.append(Stage(codes.flatten(), float(scale), float(zero)))
    return found


def comparable(
    stages: list[Stage], exact: Tensor, bits: int, slack: float, clamped: bool
) -> list[Tensor]:
    """Per stage, which codes the data decide, up to the stage where the reference goes wrong.

    It does where a range is 0 or lost, or where a zero point was clamped; and a code that float32
    rounding of the projection can move says nothing.
    """
    decided = []
    for stage, left in zip(stages, residuals(exact, stages), strict=False):
        if fails(stage) or (stage.scale, stage.zero) == (1.0, 0.0):
            break
        free = formula(left, bits, clamped=False, scale=stage.scale).zero
        if clamped and not 0 <= free <= 2**bits - 1:
            break
        position = left.double() * stage.scale + stage.zero
        distance = (position - position.floor() - 0.5).abs()
        if slack * stage.scale >= 0.5:
            break
        decided.append(distance >= slack * stage.scale)
    return decided


def sets_bases(case: Case) -> bool:
    return bool(basis_case(case)) and not loses_mean(case)


@pytest.mark.parametrize("name", names(lambda c: sets_bases(c) and c.holds("coefficients")))
def test_on_stored_bases_coefficients_and_codes_are_those_of_the_reference(golden, name):
    case = golden_case(golden, name)
    stored, bits = case.load("coefficients"), case.facts["params"]["svd_low_bits"]
    compared = differing = seen = 0
    for (tensor, region), encoded in encoded_regions(case).items():
        key = f"{tensor}/{region}"
        assert half_ulps(encoded.ours.coefficients("high"), stored[f"{key}/c_high"]) <= 1
        seen += 1 + sum(array.startswith(f"{key}/stage") for array in stored)
        for task, exact in enumerate(encoded.exact):
            stages = task_stages(stored, key, task)
            known = comparable(stages, exact, bits, encoded.slack, clamps(case.facts))
            for index, decided in enumerate(known):
                differs = encoded.ours.codes(index)[task] != stages[index].codes
                differing += int((differs & decided).sum())
                compared += int(decided.sum())
    assert seen == len(stored)
    assert differing <= case.tolerance("coefficients") * compared


@pytest.mark.parametrize("name", names(lambda c: sets_bases(c) and c.holds("coefficients")))
def test_a_single_low_coefficient_comes_back_as_itself_where_the_reference_fails(golden, name):
    """To the quantiser it is a constant: NaN in head, 0 before. Centring makes it nearly 0."""
    case = golden_case(golden, name)
    stored = case.load("coefficients")
    for (tensor, region), encoded in encoded_regions(case).items():
        if encoded.low.shape[1] != 1:
            continue
        scales = stored[f"{tensor}/{region}/stage0/scale"]
        assert not stored[f"{tensor}/{region}/stage0/quantized"].any()
        assert (scales == 1).all() if clamps(case.facts) else not scales.isfinite().any()
        worst = float((encoded.ours.coefficients("low") - encoded.exact).abs().max())
        assert worst <= encoded.slack


def clamp_loss(case: Case, encoded: Encoded, weights: list[float]) -> Tensor:
    """(D,) what clamped zero points and lost ranges add to the reference's merge; else zeros.

    Only where they move a coefficient by more than the quantiser's own bound.
    """
    exact, given = encoded.exact, case.facts["params"]
    bits, stages = given["svd_low_bits"], given["svd_rtvq_stages"]
    nothing = torch.zeros(encoded.low.shape[0], dtype=torch.float64)
    if not clamps(case.facts) or not exact.shape[1]:
        return nothing
    theirs = torch.stack([clamped_values(row.float(), bits, stages) for row in exact]).double()
    reach = exact.max(dim=1).values - exact.min(dim=1).values
    bound = reach / (2**bits - 1) ** stages / 2 + encoded.slack
    if not ((theirs - exact).abs().max(dim=1).values > bound).any():
        return nothing
    moved = theirs - encoded.ours.coefficients("low").double()
    return encoded.low @ (torch.tensor(weights, dtype=torch.float64) @ moved)


def clamped_values(row: Tensor, bits: int, stages: int) -> Tensor:
    """One task's low coefficients as the versions that clamp give them back."""
    left = row
    for _ in range(stages):
        left = left - decoded(formula(left, bits, clamped=True))
    return row - left


def reference_merge(case: Case, encoded: Encoded, weights: list[float]) -> Tensor:
    """(D,) our merge, moved by what the reference does to coefficients: clamps, and plain FP16.

    Ours keeps the high ones in float32 when asked to, and scales small ones before it rounds.
    """
    high = encoded.ours.coefficients("high")
    rounding = torch.tensor(weights, dtype=torch.float64) @ (high.half().double() - high.double())
    ours = encoded.ours.merged(weights).double() + encoded.high @ rounding
    return ours + clamp_loss(case, encoded, weights)


def assert_merge(case: Case, got: Tensor, want: Tensor, tensor: str) -> None:
    """To the case's tolerance; and one smallest FP16 per task, which twice rounding may move."""
    norm = float(want.double().norm())
    bound = case.tolerance("merged_delta") * (norm if norm >= 1e-12 else 1.0)
    off = float((got.flatten() - want.double().flatten()).norm())
    assert off <= bound + 2.0**-24 * len(case.weights) ** 0.5, tensor


def noise_gain(case: Case) -> float:
    """Factor on the scalars outside the mask."""
    given = case.facts["params"]
    return given.get("svd_noise_shrink", 0.5) if given.get("svd_include_noise") else 0.0


@pytest.mark.parametrize("name", names(sets_bases))
def test_on_stored_bases_the_merge_is_that_of_the_reference(golden, name):
    """With the weights that it applies, and with what its clamp loses: nothing else differs."""
    case = golden_case(golden, name)
    stored, weights = case.load("merged_delta"), weights_applied(case)
    encoded = encoded_regions(case)
    assert {tensor for tensor, _ in encoded} == set(stored)
    for tensor in set(stored) - set(case.nonfinite("merged_delta")):
        mask = mask_of(case, tensor).flatten()
        merged = torch.zeros(mask.shape, dtype=torch.float64)
        for region, inside, gain in (("masked", mask, 1.0), ("unmasked", ~mask, noise_gain(case))):
            if (tensor, region) in encoded:
                part = encoded[tensor, region]
                merged[inside] = gain * reference_merge(case, part, weights)
        assert_merge(case, merged, stored[tensor], tensor)


@pytest.mark.parametrize("name", names(lambda c: loses_mean(c) and basis_case(c)))
def test_without_centring_our_numbers_become_those_of_seed(golden, name):
    """The whole difference is the mean: it projects what was never centred."""
    case = golden_case(golden, name)
    merged, weights = case.load("merged_delta"), weights_applied(case)
    stored = case.load("coefficients") if case.holds("coefficients") else {}
    for (tensor, region), encoded in encoded_regions(case, center=False).items():
        assert region == "masked", "no such case of the reference was known"
        theirs = stored.get(f"{tensor}/{region}/c_high")
        assert theirs is None or half_ulps(encoded.ours.coefficients("high"), theirs) <= 1
        ours = reference_merge(case, encoded, weights)
        kept = merged[tensor][mask_of(case, tensor)]
        assert_merge(case, ours, kept, tensor)
        right = torch.tensor(weights, dtype=torch.float64) @ encoded.raw
        basis = torch.cat([encoded.high, encoded.low], dim=1)
        missing = relative_error(basis @ (basis.T @ right), right)
        assert relative_error(kept, right) >= missing - 0.01, tensor


# --- end to end ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A golden family compressed with a case's parameters, and reloaded."""

    case: Case
    merged: dict[str, Tensor]
    weights: list[float]
    clusters: dict[str, int] | None
    facts: dict[str, dict[str, object]]


@pytest.fixture(scope="session")
def run(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Compress and reload a case once; later calls give the same run."""
    done: dict[str, Run] = {}

    def once(name: str) -> Run:
        if name not in done:
            done[name] = compress_case(golden_case(golden, name), tmp_path_factory.mktemp("case"))
        return done[name]

    return once


def compress_case(case: Case, folder: Path) -> Run:
    parameters = {
        key.removeprefix("svd_").replace("weighting_temperature", "temperature"): value
        for key, value in case.facts["params"].items()
        if key != "performance"
    }
    performance = None
    if "performance" in case.facts["params"]:
        performance = folder / "performance.json"
        performance.write_text(json.dumps(case.facts["params"]["performance"]))
    tasks = {task: case.family / f"{task}.safetensors" for task in case.facts["weights"]}
    result = compress(
        case.family / "base.safetensors",
        tasks,
        folder / "artifact",
        mask_dir=write_masks(case, folder / "masks") if mask_case(case) else None,
        performance_file=performance,
        profile="hybrid",
        basis="tasks",
        **parameters,
    )
    diagnostics = Artifact.open(folder / "artifact").diagnostics()
    return Run(
        case,
        dict(Artifact.open(folder / "artifact").iter_tensors()),
        list(result.weights.values()),
        diagnostics.get("cluster_assignments"),
        diagnostics["per_parameter"],
    )


def task_masks(case: Case) -> dict[str, dict[str, Tensor]]:
    """Task → tensor → mask."""
    source = mask_case(case)
    assert source is not None
    masks: dict[str, dict[str, Tensor]] = {}
    for key, packed in source.load("task_masks_packed").items():
        task, name = key.split("/", 1)
        masks.setdefault(task, {})[name] = unpack_mask(packed, case.base[name].shape)
    return masks


def write_masks(case: Case, folder: Path) -> Path:
    folder.mkdir()
    for task, masks in task_masks(case).items():
        save_file(masks, folder / f"{task}_mask.safetensors")
    return folder


def exact_merge(case: Case, weights: list[float]) -> dict[str, Tensor]:
    """The right merge in float64: weighted mean of the deltas, masked as the case says.

    Unlike the reference, tensors with fewer than ten selected scalars are merged whole.
    """
    merged = {}
    for name, deltas in case.deltas.items():
        mean = torch.einsum("t,t...->...", torch.tensor(weights).double(), deltas)
        kept = name in case.facts["parameters_not_merged"]
        mask = torch.ones(mean.shape).bool() if kept else mask_of(case, name)
        merged[name] = torch.where(mask, mean, noise_gain(case) * mean)
    return merged


def frozen_tensors(case: Case) -> set[str]:
    return {name for name, deltas in case.deltas.items() if not deltas.any()}


def energies(case: Case, tensor: str, region: str) -> Tensor:
    """Squared singular values of a region's deltas."""
    stack = selected_deltas(case, tensor, region)
    if case.facts["params"]["svd_center"]:
        stack = stack - stack.mean(0)
    return torch.linalg.svdvals(stack).square()


def low_energy(case: Case, tensor: str, region: str, k: int) -> float:
    """Energy of a region's deltas outside of their first k directions."""
    return float(energies(case, tensor, region)[k:].sum())


def hurt_by_clamps(case: Case) -> set[str]:
    """Tensors that a version that clamps visibly gets wrong; the others must agree.

    Clamps and lost ranges touch low coefficients only, so more than those hold is not their fault.
    """
    if not clamps(case.facts):
        return set()
    found = set()
    stored, exact = case.load("merged_delta"), exact_merge(case, weights_applied(case))
    for tensor, delta in stored.items():
        lows = low_energy(case, tensor, "masked", case.facts["k"][tensor])
        if noise_gain(case):
            lows += low_energy(case, tensor, "unmasked", 0)
        lost = float((delta.double() - exact[tensor]).norm())
        visible = relative_error(delta, exact[tensor]) > case.facts["end_to_end_tolerance"] / 2
        if visible and lost <= 1.1 * lows**0.5:
            found.add(tensor)
    return found


def calibrated(case: Case) -> set[str]:
    """Tensors on which the case's end-to-end tolerance was measured, with the rank that is right.

    Not those that the reference makes NaN, takes to have no energy, or gets wrong.
    """
    if loses_mean(case):
        return set()
    wrong = hurt_by_clamps(case) | set(case.nonfinite("merged_delta"))
    return {
        tensor
        for tensor in set(case.facts["k"]) - wrong
        if not 0 < float(energies(case, tensor, "masked").sum()) < NO_ENERGY
    }


def storage_bound(case: Case, tensor: str, k: int, *, fp16: bool) -> float:
    """Norm of what storing can change in a merge: steps of the low coefficients, and rounding."""
    given = case.facts["params"]
    rounding = 2.0**-9 if fp16 else 2.0**-20
    lows = low_energy(case, tensor, "masked", k)
    if noise_gain(case):
        lows += low_energy(case, tensor, "unmasked", 0)
    deltas = case.deltas[tensor].reshape(len(case.weights), -1)
    steps = (2 ** given["svd_low_bits"] - 1) ** given["svd_rtvq_stages"]
    return (len(deltas) * lows) ** 0.5 / steps + rounding * float(deltas.norm(dim=1).max())


def allowed(case: Case, tensor: str) -> float:
    """Relative error: the case's end-to-end tolerance, which only allows for signs of the basis.

    Where the reference itself is further from exact, for its FP16, that is no bound.
    """
    bound = case.facts["end_to_end_tolerance"]
    if misweighs(case):
        return bound
    errors = case.facts["relative_error_of_reference_vs_exact_weighted_mean_of_deltas"]
    return max(bound, 2 * errors[tensor])


@pytest.mark.parametrize("name", names(lambda c: not (loses_mean(c) or misweighs(c))))
def test_end_to_end_merge_is_that_of_the_reference(run, name):
    ours, case = run(name), run(name).case
    stored = case.load("merged_delta")
    left_out = set(case.facts["parameters_not_merged"])
    assert set(stored) == set(ours.merged) - left_out - integer_tensors(case)
    for tensor in calibrated(case):
        error = relative_error(ours.merged[tensor], stored[tensor])
        assert error <= allowed(case, tensor), tensor


@pytest.mark.parametrize("name", names())
def test_end_to_end_merge_is_the_weighted_mean_of_the_deltas_on_the_mask(run, name):
    """Right or wrong as the reference may be, methods.md §21.12 says what must come out.

    The bound is the case's own end-to-end one; where the reference was not there to measure it,
    that of the storage.
    """
    ours, case = run(name), run(name).case
    measured = calibrated(case)
    for tensor, want in exact_merge(case, case.weights).items():
        if tensor in measured:
            error = relative_error(ours.merged[tensor], want)
            assert error <= allowed(case, tensor), tensor
        else:
            off = float((ours.merged[tensor].double() - want).norm())
            k, fp16 = ours.facts[tensor]["k"], case.facts["params"]["svd_fp16"]
            assert off <= storage_bound(case, tensor, k, fp16=fp16), tensor


@pytest.mark.parametrize("name", names(lambda c: not misweighs(c)))
def test_the_reference_is_right_but_for_the_bugs_named_here(golden, name):
    """Else a rule above is missing. Where it is right it keeps its tolerance, or the storage's."""
    case = golden_case(golden, name)
    stored, exact = case.load("merged_delta"), exact_merge(case, case.weights)
    for tensor in calibrated(case):
        off = float((stored[tensor].double() - exact[tensor]).norm())
        bound = case.facts["end_to_end_tolerance"] * float(exact[tensor].norm())
        k = case.facts["k"][tensor]  # whatever svd_fp16, its high coefficients are FP16
        assert off <= max(bound, storage_bound(case, tensor, k, fp16=True)), tensor


@pytest.mark.parametrize("name", names())
def test_the_reference_is_as_wrong_as_its_case_says(golden, name):
    """So no wrong number is excused that the case does not own up to."""
    case = golden_case(golden, name)
    stored, right = case.load("merged_delta"), exact_merge(case, case.weights)
    errors = case.facts["relative_error_of_reference_vs_exact_weighted_mean_of_deltas"]
    assert set(errors) == set(stored) - set(case.nonfinite("merged_delta"))
    for tensor in errors:
        off = relative_error(stored[tensor], right[tensor])
        assert off == pytest.approx(errors[tensor], rel=0.01, abs=2e-6), tensor


@pytest.mark.parametrize("name", names(misweighs))
def test_the_reference_is_off_by_its_weights_of_clusters(golden, name):
    """Its merge is the weighted mean with the softmax of the weights, which ours must not be."""
    case = golden_case(golden, name)
    stored, theirs = case.load("merged_delta"), exact_merge(case, weights_applied(case))
    for tensor in set(stored) - set(case.nonfinite("merged_delta")) - hurt_by_clamps(case):
        error = relative_error(stored[tensor], theirs[tensor])
        assert error <= case.facts["end_to_end_tolerance"], tensor


@pytest.mark.parametrize("name", names())
def test_frozen_tensors_stay_frozen(run, name):
    ours, case = run(name), run(name).case
    for tensor in frozen_tensors(case):
        assert not ours.merged[tensor].any()
        assert ours.facts[tensor]["k"] == 0  # the reference counts one direction of no energy


@dataclass(frozen=True)
class Lows:
    """The low coefficients of a region: how many, and whether some task's are all (nearly) 0."""

    count: int
    zero: bool
    nearly: bool


def lows_of(case: Case, tensor: str, bases: dict[str, Tensor]) -> list[Lows]:
    """Per region that the reference merges. The rank of noise regions is known from bases only."""
    found = []
    for region, base_region in REGIONS.items():
        stack = selected_deltas(case, tensor, region).float()
        if not stack.shape[1] or (region == "unmasked" and not noise_gain(case)):
            continue
        high = bases.get(f"{tensor}/{base_region}/U_high")
        rank = case.facts["k"][tensor] if high is None else high.shape[1]
        largest = stack.norm(dim=1).max()
        stack = stack - stack.mean(0) if case.facts["params"]["svd_center"] else stack
        norms = stack.norm(dim=1)
        nearly = bool((norms <= 2.0**-20 * largest).any())
        found.append(Lows(min(stack.shape) - rank, not norms.all(), nearly))
    return found


@pytest.mark.parametrize("name", names())
def test_the_reference_gives_nan_exactly_where_its_quantiser_divides_by_a_range_of_0(golden, name):
    """In head: deltas of 0, single low coefficients; of two, the residual may happen to be 0."""
    case = golden_case(golden, name)
    missing = set(case.nonfinite("merged_delta"))
    if clamps(case.facts):
        assert not missing
        return
    bases = golden_case(golden, basis_case(case)).load("bases") if basis_case(case) else {}
    for tensor in case.load("merged_delta"):
        lows = lows_of(case, tensor, bases)
        if any(low.count == 1 or (low.count and low.zero) for low in lows):
            assert tensor in missing, tensor
        elif not any(low.count == 2 or (low.count and low.nearly) for low in lows):
            assert tensor not in missing, tensor
    if case.holds("coefficients"):
        scales = {k: v for k, v in case.load("coefficients").items() if k.endswith("/scale")}
        broken = {k.rsplit("/", 3)[0] for k, v in scales.items() if not v.isfinite().all()}
        assert missing == broken


@pytest.mark.parametrize("name", names(lambda c: mask_case(c) is not None))
def test_small_masks_merge_whole_where_the_reference_drops_the_tensor(run, name):
    ours, case = run(name), run(name).case
    smallest = case.facts["params"].get("svd_min_mask_size", SvdHybridParams().min_mask_size)
    small = {tensor for tensor in case.deltas if int(mask_of(case, tensor).sum()) < smallest}
    assert small == set(case.facts["parameters_not_merged"])
    for tensor in small:
        assert tensor not in case.load("merged_delta")
        assert ours.facts[tensor]["unmasked_size"] == 0
        assert ours.merged[tensor].any() or tensor in frozen_tensors(case)


@pytest.mark.parametrize("name", names())
def test_rank_and_energy_are_those_of_the_reference(run, name):
    """But it takes small deltas for none, and float32 decides where a share is the threshold."""
    ours, case = run(name), run(name).case
    threshold = case.facts["params"]["svd_energy_threshold"]
    for tensor in set(case.facts["k"]) - frozen_tensors(case):
        facts, theirs = ours.facts[tensor], case.facts["k"][tensor]
        assert facts["k"] == facts["basis"]["k"], tensor
        spectrum = energies(case, tensor, "masked")
        if spectrum.sum() < NO_ENERGY:
            assert theirs == 1, tensor
            continue
        shares = spectrum.cumsum(0) / spectrum.sum()
        between = shares[min(facts["k"], theirs) - 1 : max(facts["k"], theirs) - 1]
        assert ((between - threshold).abs() <= 1e-6).all(), tensor
        wanted = case.facts["energy_retained"][tensor]
        assert facts["energy_retained"] == pytest.approx(wanted, rel=1e-6), tensor


@pytest.mark.parametrize("name", names())
def test_weights_are_those_of_the_reference(run, name):
    assert run(name).weights == pytest.approx(run(name).case.weights, abs=1e-6)  # theirs: float32


@pytest.mark.parametrize("name", names(lambda c: c.facts.get("cluster_assignments")))
def test_clusters_are_those_of_the_reference(run, name):
    ours, theirs = run(name).clusters, run(name).case.facts["cluster_assignments"]
    pairs = {(ours[task], theirs[task]) for task in theirs}
    assert len(pairs) == len(set(ours.values())) == len(set(theirs.values()))  # a renaming
    assert list(dict.fromkeys(ours.values())) == list(range(len(pairs)))  # by first appearance


@pytest.mark.parametrize("name", names(lambda c: mask_case(c) is not None))
def test_masks_combine_as_in_the_reference(golden, name):
    case = golden_case(golden, name)
    params = SvdHybridParams(mask_strategy=case.facts["params"]["svd_mask_strategy"])
    masks = task_masks(case)
    for tensor in case.deltas:
        combined = combine_masks([masks[task][tensor] for task in masks], params)
        assert torch.equal(combined, mask_of(case, tensor)), tensor


def integer_tensors(case: Case) -> set[str]:
    return {name for name, tensor in case.base.items() if not tensor.is_floating_point()}
