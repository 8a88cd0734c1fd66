"""Layer-level golden cases: SparseGPT, importance merging, and statistics of layer inputs.

Each case carries its own inputs; what it is compared with follows from its `method`. A case of a
kind nobody handles fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.base import TensorContext
from svd_hybrid.methods.scale_svd import SCALE_SVD, ScaleSvdParams
from svd_hybrid.methods.sparsegpt import (
    SparseGptDareParams,
    SparseGptTiesParams,
    merge_dare,
    merge_ties,
)
from svd_hybrid.numerics import disjoint, obs
from svd_hybrid.numerics.moments import InputMoments, mean_variance
from tests.golden.compare import Case, golden_case, relative_error, stored_cases
from tests.golden.conftest import GOLDEN

pytestmark = pytest.mark.golden

OTHERS = ("rtvq", "tvq", "svd_hybrid")
"""Methods of cases without a family that other modules handle."""


def layer_cases() -> list[str]:
    cases = stored_cases(GOLDEN)
    return [
        case.name
        for case in cases
        if case.facts["family"] is None and case.facts["method"] not in OTHERS
    ]


def assert_near(case: Case, file: str, found: dict[str, Tensor]) -> None:
    stored = case.load(file)
    assert set(found) == set(stored)
    for key, want in stored.items():
        assert relative_error(found[key], want) <= case.tolerance(file), (file, key)


def gram_of(batches: list[Tensor]) -> Tensor:
    """2 / n * sum x x^T with n in sequences, as SparseGPT counts."""
    moments = InputMoments("gram", count="sequence")
    for batch in batches:
        moments.add(batch)
    return 2 * moments.mean


def numbered(inputs: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """Tensors `<prefix>0`, `<prefix>1`, … in order."""
    count = sum(key.startswith(prefix) for key in inputs)
    return [inputs[f"{prefix}{index}"] for index in range(count)]


# --- SparseGPT -----------------------------------------------------------------------------------


def sparsegpt(case: Case) -> None:
    inputs, given = case.load("inputs"), case.facts["params"]
    gram = gram_of(numbered(inputs, "x_"))
    assert_near(case, "hessian", {"H": gram})
    hessian = obs.prepared(gram, given["percdamp"])
    dead = torch.nonzero(hessian.dead)[:, 0].tolist()
    assert dead == given["dead_columns"]
    group, select = 0, obs.below_threshold(given["sparsity"])
    if given.get("prunen"):
        group = given["prunem"]
        select = obs.within_groups(group - given["prunen"], group)
    rounding = None
    if given["quantizer"]:
        assert given["quantizer"]["perchannel"]
        assert not given["quantizer"]["sym"]
        rounding = obs.RowGrid.of(inputs["W"], given["quantizer"]["bits"])
    pruned = obs.prune(
        inputs["W"], hessian, select, given["blocksize"], group=group, rounding=rounding
    )
    assert_near(case, "pruned", {"W": pruned})


# --- importance merging --------------------------------------------------------------------------


def importance_inputs(case: Case) -> tuple[Case, Tensor, Tensor, list[Tensor]]:
    """The case that carries the inputs, base, deltas (N, m, n), and Gram matrices per task."""
    name = case.facts["params"].get("inputs", f"case {case.name} ").split()[1]
    source = golden_case(case.root, name)
    inputs = source.load("inputs")
    tasks = numbered(inputs, "task_")
    deltas = torch.stack([task - inputs["base"] for task in tasks])
    grams = [gram_of(numbered(inputs, f"x_task{index}_")) for index in range(len(tasks))]
    return source, inputs["base"], deltas, grams


def importance(case: Case) -> None:
    """Expected difference: test-2 squares the inverse diagonal; `obs_squared` is its score."""
    given = case.facts["params"]
    _, _, deltas, grams = importance_inputs(case)
    hessians = [obs.prepared(gram, given["percdamp"]) for gram in grams]
    assert_near(case, "hessian", {f"hessian_{i}": gram for i, gram in enumerate(grams)})
    factors = {f"inv_chol_{i}": hessian.factor for i, hessian in enumerate(hessians)}
    diagonals = {f"inv_diag_{i}": h.inverse_diagonal for i, h in enumerate(hessians)}
    assert_near(case, "inverse", factors | diagonals)
    for file, score in (("scores", "obs_squared"), ("scores_obs", "obs")):
        pairs = enumerate(zip(deltas, hessians, strict=True))
        assert_near(case, file, {f"scores_{i}": obs.scores(d, score, h) for i, (d, h) in pairs})
    masks = case.load("masks")
    for index, (delta, gram) in enumerate(zip(deltas, grams, strict=True)):
        params = SparseGptDareParams(
            score="obs_squared", density=given["density"], percdamp=given["percdamp"]
        )
        kept = merged_dare(delta[None], params, [gram]) != 0
        different = (kept != masks[f"mask_{index}"].bool()).double().mean()
        assert different <= case.tolerance("masks")


def context(tasks: int, weights: tuple[float, ...], grams: list[Tensor] | None) -> TensorContext:
    names = tuple(f"task_{number}" for number in range(tasks))
    return TensorContext("layer.weight", names, torch.empty(0), weights, statistics=grams)


def merged_dare(deltas: Tensor, params: SparseGptDareParams, grams: list[Tensor]) -> Tensor:
    ctx = context(len(deltas), (1.0,) * len(deltas), grams)
    return merge_dare(deltas, params, ctx).parts["merged"]


def published(hessian: obs.Hessian, delta: Tensor, density: float, block: int) -> Tensor:
    """test-2's pruning of a delta: SparseGPT's, but dead inputs keep their weights."""
    select = obs.below_threshold(1 - density)
    return obs.prune(delta, hessian, select, block, zero_dead=False)


def pruned_deltas(case: Case) -> None:
    given = case.facts["params"]
    source, _, deltas, grams = importance_inputs(case)
    found = {}
    for index in case.facts["tasks_stored"]:
        hessian = obs.prepared(grams[index], source.facts["params"]["percdamp"])
        pruned = published(hessian, deltas[index], given["density"], given["blocksize"])
        found[f"pruned_{index}"] = pruned / given["density"] if given["rescale"] else pruned
    assert_near(case, "pruned", found)


def merges(case: Case) -> None:
    """TIES and DARE with importance; the reference's weights, masks and divisors."""
    given, method = case.facts["params"], case.facts["method"]
    source, base, deltas, grams = importance_inputs(case)
    rule, _, trim = method.partition("_")
    weights = tuple(given["weights"])
    survivors = {
        "hessian": by_hessian,
        "importance_masks": by_masks,
        "magnitude": by_magnitude,
        "linear": by_chance,
    }[trim](case, source, deltas, grams)
    if rule == "ties":
        elect = disjoint.Rule("mass", "mean", "seed004", weights)
        delta = disjoint.merge_block(survivors.flatten(1).clone(), elect).view_as(base)
    else:
        delta = sum(weight * kept for weight, kept in zip(weights, survivors, strict=True))
    assert_near(case, "merged", {"delta": delta, "merged": base + delta})


def by_hessian(case: Case, source: Case, deltas: Tensor, grams: list[Tensor]) -> Tensor:
    damping, block = source.facts["params"]["percdamp"], case.facts["params"]["blocksize"]
    divides = case.facts["method"].startswith("dare")
    found = []
    for delta, gram, density in zip(deltas, grams, case.facts["params"]["densities"], strict=True):
        hessian = obs.prepared(gram, damping)
        kept = published(hessian, delta, density, block) / (density if divides else 1.0)
        params = SparseGptDareParams(
            score="obs_seq",
            scope="block",
            compensate=True,
            rescale="density" if divides else "none",
            density=density,
            blocksize=block,
            percdamp=damping,
        )
        ours = merged_dare(delta[None], params, [gram])
        assert hessian.dead.any() or relative_error(ours, kept) < 1e-6
        found.append(kept)
    return torch.stack(found)


def by_masks(case: Case, source: Case, deltas: Tensor, grams: list[Tensor]) -> Tensor:
    masks = torch.stack(numbered(source.load("masks"), "mask_")).bool()
    kept = torch.where(masks, deltas, 0.0)
    if case.facts["method"].startswith("ties"):
        return kept
    own = source.facts["params"]
    params = SparseGptDareParams(
        score="obs_squared", density=own["density"], percdamp=own["percdamp"], rescale="kept"
    )
    pairs = zip(deltas, grams, strict=True)
    ours = torch.stack([merged_dare(delta[None], params, [gram]) for delta, gram in pairs])
    share = masks.flatten(1).double().mean(1)[:, None, None]
    assert relative_error(ours, kept / share) < 1e-6
    return kept / share


def by_magnitude(case: Case, source: Case, deltas: Tensor, grams: list[Tensor]) -> Tensor:
    given = case.facts["params"]
    ctx = context(len(deltas), tuple(given["weights"]), None)
    params = SparseGptTiesParams(density=given["densities"][0], weight_rule="seed004")
    if len(set(given["densities"])) == 1:  # outside of overrides ours has one for all tasks
        whole = merge_ties(deltas, params, ctx).parts["merged"]
        assert relative_error(whole, case.load("merged")["delta"]) <= case.tolerance("merged")
    found = []
    for delta, density in zip(deltas, given["densities"], strict=True):
        count = int(density * delta.numel())
        found.append(torch.where(delta.abs() >= delta.abs().flatten().topk(count)[0][-1], delta, 0))
    return torch.stack(found)


def by_chance(case: Case, source: Case, deltas: Tensor, grams: list[Tensor]) -> Tensor:
    """Recorded Bernoulli masks; divided by the density."""
    keep = torch.stack(numbered(case.load("keep_masks"), "task_")).bool()
    density = torch.tensor(case.facts["params"]["densities"])[:, None, None]
    return torch.where(keep, deltas, 0.0) / density


def sequential(case: Case) -> None:
    """Layer by layer. Expected difference: the reference damps one Hessian again per task."""
    given, inputs = case.facts["params"], case.load("inputs")
    tasks = sorted({key.split(".")[0] for key in inputs if key.startswith("task_")})
    for file, accumulates in (("pruned_intended", False), ("pruned", True)):
        hidden = numbered(inputs, "x_")
        found, after = {}, {}
        for number, layer in enumerate(given["layers"]):
            weight, bias = inputs[f"base.{layer}.weight"], inputs[f"base.{layer}.bias"]
            gram = gram_of(hidden)
            kept = []
            for task in tasks:
                hessian = obs.prepared(gram, given["percdamp"])
                if accumulates:
                    gram = gram.clone()
                    gram.diagonal().add_(given["percdamp"] * gram.diagonal().mean())
                delta = inputs[f"{task}.{layer}.weight"] - weight
                kept.append(published(hessian, delta, given["density"], given["blocksize"]))
                found[f"{layer}/{task}"] = kept[-1]
            after[f"{layer}.weight"] = weight + torch.stack(kept).mean(0)
            after[f"{layer}.bias"] = bias
            last = number + 1 == len(given["layers"])
            hidden = [x @ after[f"{layer}.weight"].T + bias for x in hidden]
            hidden = hidden if last else [x.relu() for x in hidden]
        assert_near(case, file, found)
        if accumulates:
            assert_near(case, "base_after", after)


# --- statistics of layer inputs ------------------------------------------------------------------


def layer_statistics(case: Case) -> None:
    if case.holds("io"):
        return variances(case)
    inputs, stored = case.load("inputs"), case.load("stats")
    missing = case.facts.get("all_zero", [])
    for key in missing:  # the reference never sees these inputs; a zero statistic is refused
        assert not stored[key].any()
        delta = torch.ones(1, 4, len(stored[key]))
        with pytest.raises(ParameterError, match="not all 0"):
            SCALE_SVD.merge(delta, ScaleSvdParams(), context(1, (1.0,), [stored[key]]))
    for key in set(stored) - set(missing):
        prefix = f"{key}/" if any(name.startswith(f"{key}/") for name in inputs) else "batch_"
        batches = numbered(inputs, prefix)
        moments = InputMoments("moment", count="sequence")
        rows = InputMoments("moment")
        for batch in batches:
            moments.add(batch)
            rows.add(batch)
        assert relative_error(moments.mean, stored[key]) <= case.tolerance("stats"), key
        factor = rows.samples / moments.samples  # rows are right; the factor cancels in every use
        assert relative_error(rows.mean * factor, stored[key]) <= case.tolerance("stats"), key
    return None


def variances(case: Case) -> None:
    """Expected difference: variances, and of out_proj the attention's output, not its input.

    Attention is hooked as a whole, so out_proj has no input of its own.
    """
    hooked = case.load("io")
    for key, want in case.load("stats").items():
        module = key.removesuffix("in_proj_weight").removesuffix("weight").removesuffix(".")
        prefix = f"{module}/in/"
        if f"{prefix}0" not in hooked:
            prefix = f"{module.rpartition('.')[0]}/out/"
        batches = numbered(hooked, prefix)
        assert batches, key
        assert relative_error(mean_variance(batches), want) <= case.tolerance("stats"), key


KINDS: dict[str, Callable[[Case], Any]] = {
    "sparsegpt": sparsegpt,
    "sparsegpt_importance": importance,
    "sparsegpt_delta": pruned_deltas,
    "sparsegpt_sequential": sequential,
    "ties_hessian": merges,
    "ties_importance_masks": merges,
    "ties_magnitude": merges,
    "dare_hessian": merges,
    "dare_importance_masks": merges,
    "dare_linear": merges,
    "layer_stats": layer_statistics,
}


FILES = {
    "sparsegpt": {"inputs", "hessian", "pruned"},
    "sparsegpt_importance": {"inputs", "hessian", "inverse", "scores", "scores_obs", "masks"},
    "sparsegpt_delta": {"pruned"},
    "sparsegpt_sequential": {"inputs", "pruned", "pruned_intended", "base_after"},
    "dare_linear": {"keep_masks", "merged"},
    "layer_stats": {"inputs", "io", "stats"},
}
"""Files that each kind reads; the other merges have `merged` alone."""


@pytest.mark.parametrize("name", layer_cases())
def test_layer_case_is_that_of_the_reference(golden, name):
    case = golden_case(golden, name)
    assert case.facts["method"] in KINDS, f"nobody handles {name}"
    KINDS[case.facts["method"]](case)
