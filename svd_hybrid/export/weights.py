"""`adapter_model.safetensors` of an exported adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from svd_hybrid.export.factors import padded
from svd_hybrid.export.plan import AdapterPlan
from svd_hybrid.io.adapter.keys import PREFIX
from svd_hybrid.io.adapter.modules import joined
from svd_hybrid.io.model_writer import HF_METADATA
from svd_hybrid.io.safetensors_writer import SafetensorsWriter
from svd_hybrid.io.tensors import DTYPES, TensorInfo, info_of
from svd_hybrid.reload.rebuild import Rebuilder

Entry = tuple[TensorInfo, Callable[[], Tensor]]


def write_weights(
    path: Path,
    plan: AdapterPlan,
    dtype: str,
    rebuilder: Rebuilder,
    bias_delta: Callable[[str], Tensor],
    module_prefix: str,
) -> None:
    """Write factors, biases and saved modules; one rebuilt tensor in memory at a time.

    Args:
        path: a new file.
        plan: what to write.
        dtype: of factors and of the biases behind them.
        rebuilder: gives the tensors of saved modules.
        bias_delta: gives the change of a bias.
        module_prefix: put before the names of the base's modules.
    """
    entries: dict[str, Entry] = {}
    for module, factors in plan.factors.items():
        stem = PREFIX + module_prefix + module
        for side, tensor in zip("AB", padded(factors, plan.rank), strict=True):
            entries[f"{stem}.lora_{side}.weight"] = info_of(tensor), partial(_same, tensor)
        if plan.biases:  # PEFT gives every target one, or none
            count = len(factors.up)
            name = joined(module, "bias")
            bias = partial(bias_delta, name) if name in plan.biases else partial(torch.zeros, count)
            entries[f"{stem}.lora_B.bias"] = TensorInfo(dtype, (count,)), bias
    infos = rebuilder.infos
    for names in plan.saved.values():
        for name in names:
            key = PREFIX + module_prefix + name
            entries[key] = infos[name], partial(rebuilder.tensor, name)
    for name, source in plan.copies.items():
        entries[PREFIX + name] = infos[source], partial(rebuilder.tensor, source)
    headers = {key: info for key, (info, _) in entries.items()}
    with SafetensorsWriter(path, headers, HF_METADATA) as writer:
        for key in writer.order:
            info, read = entries[key]
            writer.write(key, read().to(DTYPES[info.dtype]).reshape(info.shape).contiguous())


def _same(tensor: Tensor) -> Tensor:
    return tensor
