"""`adapter_config.json`: what scales an adapter's factors, and what svdh cannot read, by name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from svd_hybrid.errors import FamilyError

T = TypeVar("T")

BASE_CHANGING_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that change the base itself, so that base + product is not the model."""
LARGEST = 1e30
"""Of a scaling; anything near it is damage."""
MERGE_IT = "merge it into its base with PEFT's merge_and_unload(), and pass the result"
REFUSED = {
    "alora_invocation_tokens": "activated LoRA depends on the prompt",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA truncates the base",
    "layer_replication": "the model has more layers than the base",
    "megatron_config": "its layers are split over devices",
    "monteclora_config": "MonteCLoRA samples its weights",
    "target_parameters": "its factors belong to parameters the file does not name",
    "trainable_token_indices": "it stores single rows of an embedding",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "QA-LoRA pools the inputs",
    "velora_config": "VeLoRA is not known to leave the forward pass as it is",
}
"""Keys that must be unset, and why."""
KNOWN = {
    "auto_mapping", "alpha_pattern", "base_model_class", "base_model_name_or_path", "bias",
    "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "parent_library", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora",
    "use_rslora",
}  # fmt: skip
"""Keys svdh understands, or that say nothing of the weights."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What a LoRA configuration says of the weights.

    Args:
        path: the file.
        r: rank, where no pattern names another.
        alpha: numerator of the scaling, where no pattern names another.
        rank_pattern, alpha_pattern: other values by module; regular expressions that match the end
            of its path, the first that does counts.
        rank_stabilised: whether the scaling is alpha / sqrt(r) instead of alpha / r.
        dora: whether magnitudes are stored (DoRA).
        fan_in_fan_out: whether target weights are stored (in, out).
        base_name: the base it was trained on, as it was called there; may be empty.
    """

    path: Path
    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    dora: bool
    fan_in_fan_out: bool
    base_name: str

    def rank(self, module: str) -> int:
        """The rank of a module's factors."""
        return _matching(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """The factor on a module's product B @ A."""
        alpha, rank = _matching(self.alpha_pattern, module, self.alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _matching(patterns: Mapping[str, T], module: str, otherwise: T) -> T:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def read_config(path: Path) -> AdapterConfig:
    """Read and check the configuration of a LoRA adapter.

    Raises:
        FamilyError: it is damaged, no LoRA, or a kind of LoRA svdh does not compute.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise TypeError("it is not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    _refuse_other_kinds(record, path)
    return AdapterConfig(
        path,
        _rank(record.get("r"), "r", path),
        _number(record.get("lora_alpha"), "lora_alpha", path),
        {k: _rank(v, f"rank_pattern {k!r}", path) for k, v in _patterns(record, "rank", path)},
        {k: _number(v, f"alpha_pattern {k!r}", path) for k, v in _patterns(record, "alpha", path)},
        bool(record.get("use_rslora")),
        bool(record.get("use_dora")),
        bool(record.get("fan_in_fan_out")),
        str(record.get("base_model_name_or_path") or ""),
    )


def _refuse_other_kinds(record: Mapping[str, Any], path: Path) -> None:
    kind = record.get("peft_type")
    if kind != "LORA":
        raise FamilyError(
            f"adapter is of type {kind!r}; svdh reads LoRA",
            where=str(path),
            fix=MERGE_IT,
        )
    found = {key: why for key, why in REFUSED.items() if record.get(key)}
    init = str(record.get("init_lora_weights", "")).lower()
    if init.startswith(BASE_CHANGING_INITS):
        found["init_lora_weights"] = f"{init} changes the base"
    unknown = [key for key, value in record.items() if value and key not in {*KNOWN, *REFUSED}]
    found |= dict.fromkeys(unknown, "svdh does not know what it changes")
    if found:
        key, why = next(iter(found.items()))
        raise FamilyError(
            f"adapter sets {key!r}, which svdh does not compute: {why}",
            where=str(path),
            fix=f"remove the key if it leaves the weights alone; else {MERGE_IT}"
            if key in unknown
            else MERGE_IT,
        )


def _patterns(record: Mapping[str, Any], kind: str, path: Path) -> list[tuple[str, Any]]:
    patterns = record.get(f"{kind}_pattern") or {}
    if not isinstance(patterns, dict):
        raise _damaged(path, f"{kind}_pattern is not an object")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise _damaged(path, f"{kind}_pattern {pattern!r}: {error}") from error
    return list(patterns.items())


def _rank(value: Any, key: str, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _damaged(path, f"{key} is {value!r}, must be a whole number of 1 or more")
    return value


def _number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise _damaged(path, f"{key} is {str(value)[:40]!r}, must be a number")
    return float(value)


def _damaged(path: Path, why: str) -> FamilyError:
    return FamilyError(
        f"adapter configuration cannot be used: {why[:200]}",
        where=str(path),
        fix="save the adapter again with PEFT's save_pretrained()",
    )
