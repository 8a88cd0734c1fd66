"""Which method and parameters stand for a golden case of the spectral methods.

By rule from what the case says about itself, so that cases with other shapes, seeds or values are
handled as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PUBLISHED_DECOMPOSITION = {"refit": False, "floor": "none"}
"""How Scale-SVD was published: no final low-rank update, moments as they are."""


def settings(facts: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Method and parameters for the reference's own output; None for other kinds of cases."""
    given = facts["params"]
    assert given.get("text_projection", "average") == "average"
    scaling = {"scaling": given.get("alpha_of_merged_model", 1.0)}
    match facts["method"]:
        case "iso_c":
            return "iso-c", scaling
        case "iso_cts":
            return "iso-cts", scaling | {"common_space_fraction": given["common_space_fraction"]}
        case "tsvm":
            return "tsv-m", scaling | {"variant": "svd"}
        case "tsvm_eigen":
            return "tsv-m", scaling | {"variant": "eigen"}
        case "tsv_rank_reduction":
            return "tsv-m", scaling | {"orthogonalize": False}
        case "tsv_compress":
            return "tsv-compress", {"rank_fraction": given["sv_reduction"], "scaling": 1.0}
        case "scale_svd":
            own = {"input_scaling": given["input_scaling"], "scaling": 1.0}
            return "scale-svd", decomposition(given) | PUBLISHED_DECOMPOSITION | own
        case "scale_svd+iso_c" | "scale_svd+iso_cts" as method:
            base = {
                "merge_rule": method.removeprefix("scale_svd+").replace("_", "-"),
                "mode": "whole",
            }
            base |= {key: given[key] for key in ("common_space_fraction",) if key in given}
            return "iso-iasad", decomposition(given) | PUBLISHED_DECOMPOSITION | base
        case "iso_iasad":
            return "iso-iasad", decomposition(given) | {"mode": "legacy", "floor": "absolute"}
    return None


def decomposition(given: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the low-rank + sparse decomposition."""
    sizes = {key: given[key] for key in ("sparsity", "rank_ratio", "num_iters")}
    return sizes | {"mask_strategy": given["prune_level"]}


def statistics(
    facts: dict[str, Any], stored: dict[str, Tensor], tensor: str, inputs: int, *, intended: bool
) -> list[Tensor]:
    """Second moments per task that a case uses for a tensor; ones where it has none.

    Args:
        facts: of the case.
        stored: its `layer_stats`; keys are `<parameter>`, `<task>/<parameter>` or
            `<task>/<module>`.
        tensor: name of the parameter.
        inputs: how many columns it has.
        intended: what is right (each task and layer its own) instead of what the reference does.
    """
    module = tensor.removesuffix(".weight")
    if "statistics_used" in facts and not intended:
        module = facts["statistics_used"].get(tensor)
    found = []
    for number in range(facts["n_tasks"]):
        task = "task_0" if facts["method"].startswith("scale_svd+") and not intended else None
        task = task or f"task_{number}"
        keys = (tensor, f"{task}/{tensor}", f"{task}/{module}")
        moments = (stored[key] for key in keys if key in stored)
        found.append(next(moments, torch.ones(inputs)))
    return found
