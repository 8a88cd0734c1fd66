"""What the element-wise golden cases mean in our parameters, decided from the facts of a case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from svd_hybrid.numerics.trim import Trim, cuts_of_stream

KINDS = (
    "average", "basic_magnitude", "basic_median", "consensus", "dare_average", "dare_linear",
    "dare_ties", "magnitude_masking", "magnitude_prune", "magnitude_prune_merge", "tall_masks",
    "task_arithmetic", "ties", "ties_magnitude",
)  # fmt: skip
"""`method` of the cases this file can read."""

RESOLVE = {"mass": "mass", "none": "none", "normfrac": "norm-fraction", "normmass": "norm-mass"}
MERGE = {
    "dis-mean": "mean", "dis-sum": "sum", "dis-max": "max", "mean": "plain-mean",
    "sum": "plain-sum", "median": "median", "magnitude": "largest",
}  # fmt: skip
VOTES = {"total": "mass", "frequency": "count"}
RESCALE = {"l1": "l1_match", "1/density": "inverse_density", "1/(1-rate)": "inverse_density"}

Settings = tuple[str, dict[str, Any], tuple[float, ...], tuple[float, ...]]


def settings(facts: dict[str, Any]) -> Settings:
    """Method, parameters, task weights and densities of a case.

    The parameters give `merged_tv` times scaling; where a case stores the merged model, base +
    scaling * merged is that model.

    Args:
        facts: case.json.
    """
    params = facts["params"]
    method, own = _by_repository(facts, params)
    tasks = 1 if "task" in params else facts.get("n_tasks", 0)  # `task`: the case is of one task
    weights = tuple(params.get("weights") or [1.0] * tasks)
    if method == "weight-averaging":
        weights = (1 / tasks,) * tasks
    if params.get("normalize") and method == "task-arithmetic":
        weights = tuple(weight / sum(weights) for weight in weights)
    return method, own, weights, tuple(params.get("densities", ()))


def _by_repository(facts: dict[str, Any], params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    kind = facts["method"]
    if kind == "average":
        return "weight-averaging", {"scaling": 1.0}
    if kind == "task_arithmetic":
        return "task-arithmetic", {"scaling": _scaling(params)}
    if kind in ("basic_median", "basic_magnitude"):
        return "weight-select", {"rule": "median" if kind == "basic_median" else "largest"}
    repository = facts["reference"]["repo"].split("/")[1]
    return {
        "ties-merging": _ties_merging,
        "tall_masks": _tall_masks,
        "MergeLM": _mergelm,
        "peft": _peft,
        "mergekit": _mergekit,
        "test-2": _test2,
    }[repository](kind, params)


def _scaling(params: dict[str, Any]) -> float:
    for name in ("alpha_of_merged_model", "scaling_coefficient", "lambda"):
        if name in params:
            return float(params[name])
    return 1.0


def _percent(value: float, whole: float) -> float:
    """A K of the references as a fraction: a percentage from `whole` upwards."""
    return value / 100 if value >= whole else value


def _ties_merging(kind: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    level = params["reset_thresh"]
    trim = {
        "topk": lambda: {"trim_rule": "threshold", "density": level / 100 if level > 1 else level},
        "nf": lambda: {"trim_rule": "norm-share-last", "norm_share": level},
        "std": lambda: {"trim_rule": "std", "std_factor": level},
        "none": lambda: {"density": 1.0},
    }[params["reset_type"]]()
    return "ties", {
        **trim,
        "election": RESOLVE[params["resolve_method"]],
        "merge_func": MERGE[params["merge_func"]],
        "scaling": 1.0,
    }


def _tall_masks(kind: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if kind == "ties":
        density = _percent(params["k"], 1)
        return "ties", {
            "density": density,
            "trim_rule": "threshold",
            "merge_func": MERGE[params["merge_func"]],
            "scaling": 1.0,
        }
    if kind == "magnitude_masking":
        return "magnitude-masking", {
            "density": _percent(params["k"], 1),
            "trim_rule": "threshold",
        }
    vector = "ties" if "ties" in str(params["multi_task_vector"]) else "sum"
    if kind == "consensus":
        return "consensus", {
            "vector": vector,
            "min_tasks": params["prun_thre_k"],
            "scaling": 1.0,
        }
    return "tall-masks", {"vector": vector}


def _mergelm(kind: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    trim = {
        "trim_rule": "threshold-drop",
        "zero_sign": "majority-or-none",
        "scaling": _scaling(params),
    }
    kept = 1 - params.get("param_value_mask_rate", 0.0)
    if kind == "ties":
        return "ties", {"density": kept, **trim}
    if kind == "magnitude_prune":
        return "magnitude", {
            "density": 1 - params["mask_rate"],
            "trim_scope": "tensor",
            "trim_rule": "above-drop",
            "rescale": RESCALE.get(params["rescale"], "none"),
            "scaling": 1.0,
        }
    drop = {
        "density": 1 - params["weight_mask_rate"],
        "rescale": RESCALE.get(params["rescale"], "none"),
    }
    if kind == "dare_ties":
        return "dare-ties", {**drop, "extra_trim": True, "trim_density": kept, **trim}
    average = params["inner"] == "average_merging"
    return "dare-linear", {
        **drop,
        "merge": "average" if average else "sum",
        "scaling": _scaling(params),
    }


def _peft(kind: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    votes = VOTES[params.get("majority_sign_method", "total")]
    density, rescale = params["density"], RESCALE.get(params.get("rescale"), "none")
    if kind == "magnitude_prune_merge":
        return "magnitude", {"density": density, "trim_scope": "tensor", "scaling": 1.0}
    if kind == "dare_linear":
        return "dare-linear", {"density": density, "rescale": rescale, "scaling": 1.0}
    election = {"election": votes, "zero_sign": "plus", "scaling": 1.0}
    if kind == "dare_ties":
        return "dare-ties", {"density": density, "rescale": rescale, **election}
    return "ties", {"density": density, "trim_scope": "tensor", **election}


def _mergekit(kind: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    density, scaling = params["density"], _scaling(params)
    rescale = RESCALE.get(params.get("rescale"), "none")
    if kind == "dare_linear":
        merge = "average" if params["normalize"] else "sum"
        return "dare-linear", {
            "density": density,
            "rescale": rescale,
            "merge": merge,
            "scaling": scaling,
        }
    election = {
        "zero_sign": "plus",
        "weight_rule": "mergekit",
        "merge_func": "mean" if params["normalize"] else "sum",
        "scaling": scaling,
    }
    if kind == "dare_ties":
        return "dare-ties", {"density": density, "rescale": rescale, **election}
    return "ties", {"density": density, "trim_scope": "tensor", **election}


def _test2(kind: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if kind == "dare_linear":
        return "dare-linear", {"rescale": RESCALE[params["rescale"]], "scaling": 1.0}
    return "ties", {
        "trim_scope": "tensor",
        "trim_rule": "threshold-k",
        "zero_sign": "plus",
        "weight_rule": "seed004",
        "scaling": 1.0,
    }


def arbitrary(facts: dict[str, Any], stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where the reference's result hangs on how its unstable sort orders equal magnitudes.

    Only `nf` trims of the edge families have such scalars: the cut goes through equal magnitudes,
    and the reference keeps whichever torch.sort puts first. We keep the first.

    Args:
        facts: case.json.
        stacks: deltas (N, *shape) float32 by name.

    Returns:
        Bool of `shape` by name; empty where a case has no such scalars.
    """
    params = facts["params"]
    if params.get("reset_type") != "nf":
        return {}
    stream = [(stacks[name], None) for name in sorted(stacks)]
    tasks = len(stream[0][0])
    scalars = sum(stack[0].numel() for stack, _ in stream)
    trims = [Trim("norm-share", params["reset_thresh"])] * tasks
    split = [
        (n, cut) for n, cut in enumerate(cuts_of_stream(stream, trims, scalars)) if cut.splits_ties
    ]
    if not split:
        return {}
    return {
        name: sum(stack[n].abs() == cut.level for n, cut in split).bool()
        for name, stack in stacks.items()
    }
