"""`adapter_config.json` of an exported adapter."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def adapter_config(
    *,
    rank: int,
    targets: Collection[str],
    saved: Collection[str],
    in_out: bool,
    with_bias: bool,
    base_name: str,
    task_type: str | None,
) -> dict[str, Any]:
    """The keys every release of PEFT knows, with a scaling of one.

    Args:
        rank: of every factor.
        targets: names of target modules, as PEFT matches them.
        saved: modules that are saved whole.
        in_out: whether a target is stored (inputs, outputs).
        with_bias: whether B has a bias; older releases of PEFT cannot read such adapters.
        base_name: path or name of the base.
        task_type: PEFT's; None for a plain model.
    """
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": in_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(saved) or None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(targets),
        "task_type": task_type,
        "use_dora": False,
        "use_rslora": False,
    }
    return config | ({"lora_bias": True} if with_bias else {})


def target_names(targets: Collection[str], modules: Collection[str]) -> set[str]:
    """The shortest names by which PEFT finds the targets and no other module.

    Args:
        targets: module paths.
        modules: every module path of the base that has tensors.

    >>> sorted(target_names({"h.0.q", "h.1.q"}, {"h.0.q", "h.1.q", "h.0.v"}))
    ['q']
    >>> sorted(target_names({"h.0.q", "h.0.v"}, {"h.0.q", "h.1.q", "h.0.v"}))
    ['h.0.q', 'v']
    """
    ambiguous = {_last(module) for module in modules if module not in targets}
    return {target if _last(target) in ambiguous else _last(target) for target in targets}


def _last(module: str) -> str:
    return module.rpartition(".")[2]
