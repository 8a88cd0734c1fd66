"""Which layers of a live model have statistics, and under which checkpoint names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from svd_hybrid.models.live import LiveModel

Role = Literal["linear", "conv", "norm", "query", "key", "value", "bare"]


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight and where its inputs are seen.

    Args:
        names: checkpoint names of the weight; several when tied weights are stored twice.
        path: of the module that is called with the inputs; of the parameter itself for `bare`.
        role: what the inputs are to the weight.
        features: length of one input.
        inputs_first: the weight is stored inputs x outputs.
        rows: the module's input → (..., features).
    """

    names: tuple[str, ...]
    path: str
    role: Role
    features: int
    inputs_first: bool = False
    rows: Callable[[Tensor], Tensor] | None = None


def weight_layers(live: LiveModel) -> tuple[list[Layer], list[str]]:
    """Every weight whose inputs can be seen; and notes about layers that are left out.

    Linear, Conv1D of transformers (stored inputs x outputs), convolutions without groups (inputs
    are unfolded patches), LayerNorm and RMSNorm (for people; no method reads them), the fused
    projection of nn.MultiheadAttention, and matrices that belong to no layer (`x @ proj`).
    Embeddings have no inputs in this sense.
    """
    checkpoint = live.checkpoint_names
    stored: dict[int, tuple[str, ...]] = {}
    for name, tied in live.module.named_parameters(remove_duplicate=False):
        if name in checkpoint:
            stored[id(tied)] = (*stored.get(id(tied), ()), checkpoint[name])
    layers: list[Layer] = []
    seen: set[int] = set()
    grouped: list[str] = []
    for path, module in live.module.named_modules():
        if isinstance(module, nn.Embedding):
            seen.add(id(module.weight))
        for parameter, layer in _of_module(path, module):
            seen.add(id(parameter))
            if layer is None:
                grouped.append(path)
            elif id(parameter) in stored:
                layers.append(replace(layer, names=stored[id(parameter)]))
    for path, bare in live.module.named_parameters():
        if bare.ndim == 2 and id(bare) not in seen and id(bare) in stored:
            names = stored[id(bare)]
            layers.append(Layer(names, path, "bare", bare.shape[0], inputs_first=True))
    notes = [f"no statistics of grouped convolutions: {', '.join(grouped)}"] if grouped else []
    return layers, notes


def _of_module(path: str, module: nn.Module) -> list[tuple[Tensor, Layer | None]]:
    """(weight, layer without names) of what the module itself computes; None: not supported."""
    if isinstance(module, nn.MultiheadAttention):
        projections: tuple[tuple[Role, Tensor | None], ...] = (
            ("query", module.in_proj_weight),
            ("query", module.q_proj_weight),
            ("key", module.k_proj_weight),
            ("value", module.v_proj_weight),
        )
        return [
            (weight, Layer((), path, role, weight.shape[1]))
            for role, weight in projections
            if weight is not None
        ]
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return []
    if isinstance(module, nn.Linear):
        return [(weight, Layer((), path, "linear", module.in_features))]
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return [(weight, Layer((), path, "linear", weight.shape[0], inputs_first=True))]
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        if module.groups != 1:
            return [(weight, None)]
        return [(weight, Layer((), path, "conv", weight[0].numel(), rows=_unfolder(module)))]
    norm = isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    if norm or type(module).__name__.endswith("RMSNorm"):
        return [(weight, Layer((), path, "norm", weight.numel()))]
    return []


def _unfolder(module: nn.Conv1d | nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Images (B, C, H, W) or signals (B, C, L) → patches (B, P, C * kernel), in weight order."""

    def unfold(inputs: Tensor) -> Tensor:
        flat = isinstance(module, nn.Conv1d)
        x = inputs.unsqueeze(2) if flat else inputs
        kernel, dilation, stride = (
            (1, *size) if flat else tuple(size)
            for size in (module.kernel_size, module.dilation, module.stride)
        )
        padding = _padding(module)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = functional.pad(x, padding, mode=mode)
        patches = functional.unfold(x, kernel, dilation=dilation, stride=stride)
        return patches.transpose(1, 2)

    return unfold


def _padding(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    """As functional.pad takes it, for a picture: left, right, top, bottom."""
    sizes: list[tuple[int, int]] = []
    for axis in range(len(module.kernel_size)):
        if module.padding == "same":
            whole = module.dilation[axis] * (module.kernel_size[axis] - 1)
            sizes.append((whole // 2, whole - whole // 2))
        elif isinstance(module.padding, str):
            sizes.append((0, 0))
        else:
            sizes.append((module.padding[axis], module.padding[axis]))
    if len(sizes) == 1:
        sizes.insert(0, (0, 0))
    return [number for pair in reversed(sizes) for number in pair]


def find_parameter(module: nn.Module, path: str) -> Tensor:
    """The parameter at a dotted path."""
    owner, _, name = path.rpartition(".")
    found = getattr(module.get_submodule(owner) if owner else module, name)
    assert isinstance(found, torch.Tensor)
    return found
