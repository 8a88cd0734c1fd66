"""Hooks that add up what chosen layers get as inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svd_hybrid.collect.layers import Layer, find_parameter
from svd_hybrid.data.batches import Batch
from svd_hybrid.errors import FamilyError
from svd_hybrid.numerics.moments import InputMoments, summed

Kind = Literal["moment", "gram"]
ARGUMENTS = {"query": 0, "key": 1, "value": 2}
PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.mm)


@dataclass(frozen=True, slots=True)
class _Sum:
    """What the last call's inputs added up to: query, key and value get the same ones."""

    inputs: Tensor
    version: int
    kind: Kind
    rows: Any
    total: Tensor
    samples: int

    def serves(self, inputs: Tensor, kind: Kind, layer: Layer) -> bool:
        same = self.inputs is inputs and self.version == inputs._version
        plain = layer.rows is None and self.rows is None
        return same and plain and self.kind == kind and len(self.total) == layer.features


class Recorder:
    """Statistics of some layers over the batches that pass while it records.

    Args:
        kind: `gram` for matrices; norms always get moments.
        layers: whose inputs count.
        where: what to call the data in errors.
        own_module: the model is the user's, and may have the sequence before the sample.
    """

    def __init__(
        self, kind: Kind, layers: Sequence[Layer], where: str, *, own_module: bool = False
    ) -> None:
        self.layers = layers
        self.where = where
        self.own_module = own_module
        self.batch: Batch | None = None
        self.moments = {
            layer.names: InputMoments("moment" if layer.role == "norm" else kind)
            for layer in layers
        }
        self._last: _Sum | None = None

    @contextmanager
    def recording(self, module: nn.Module, batch: Batch) -> Iterator[None]:
        """Count what passes through `module` inside the block as inputs of this batch."""
        self.batch = batch
        with ExitStack() as stack:
            bare = [layer for layer in self.layers if layer.role == "bare"]
            if bare:
                stack.enter_context(_BareProducts(self, module, bare))
            for layer in self.layers:
                if layer.role != "bare":
                    part = module.get_submodule(layer.path)
                    hook = part.register_forward_pre_hook(self._hook(layer), with_kwargs=True)
                    stack.callback(hook.remove)
            try:
                yield
            finally:
                self.batch, self._last = None, None

    def add(self, layer: Layer, inputs: Tensor) -> None:
        """Count the inputs of one call, padding left out.

        Raises:
            FamilyError: they hold NaN or infinity, or do not line up with the padding.
        """
        assert self.batch is not None
        moments = self.moments[layer.names]
        if self._last is not None and self._last.serves(inputs, moments.kind, layer):
            moments.include(self._last.total, self._last.samples)
            return
        rows = layer.rows(inputs) if layer.rows else inputs
        if rows.shape[-1] != layer.features:
            rows = rows.flatten(-_axes(rows, layer.features))
        self._last = None  # its matrix is not needed beside the next one
        kept = self._without_padding(layer, rows)
        total = summed(kept, moments.kind)
        if not bool(torch.isfinite(total).all()):
            self._refuse(layer, inputs)
        version = inputs._version
        self._last = _Sum(inputs, version, moments.kind, layer.rows, total, len(kept))
        moments.include(total, len(kept))

    def _hook(self, layer: Layer) -> Any:
        place = ARGUMENTS.get(layer.role, 0)
        keyword = layer.role if layer.role in ARGUMENTS else "input"

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer.role == "query":
                _refuse_cross_attention(layer, args, kwargs)
            given = args[place] if len(args) > place else kwargs.get(keyword)
            if given is None:
                given = next(x for x in kwargs.values() if isinstance(x, Tensor))
            self.add(layer, given)

        return hook

    def _without_padding(self, layer: Layer, rows: Tensor) -> Tensor:
        """(N, features): the rows of real positions."""
        assert self.batch is not None
        mask, leading = self.batch.mask, tuple(rows.shape[:-1])
        flat = rows.reshape(-1, rows.shape[-1])
        if mask is None or leading == (len(mask),):  # one row per sample
            return flat
        if self.own_module and len(mask) == mask.shape[1]:
            raise FamilyError(
                f"a batch of {len(mask)} samples of {len(mask)} tokens hides which axis is which",
                where=self.where,
                fix="pass --batch-size 1",
            )
        if leading[:2] == tuple(mask.shape):
            return rows[mask].reshape(-1, rows.shape[-1])
        if leading[:2] == tuple(mask.T.shape):
            return rows[mask.T].reshape(-1, rows.shape[-1])
        if leading == (mask.numel(),):
            return rows[mask.flatten()]
        raise FamilyError(
            f"inputs {list(rows.shape)} of {layer.names[0]!r} do not line up with padding "
            f"{list(mask.shape)}",
            where=self.where,
            fix="pass --batch-size 1, which needs no padding",
        )

    def _refuse(self, layer: Layer, inputs: Tensor) -> None:
        assert self.batch is not None
        size = len(self.batch)
        axis = next((axis for axis in (0, 1) if inputs.shape[axis] == size), None)
        sample = "of one of its batches"
        if axis is not None:
            bad = ~torch.isfinite(inputs).transpose(0, axis).flatten(1).all(1)
            sample = str(self.batch.first + int(bad.to(torch.int8).argmax()))
        raise FamilyError(
            f"inputs of {layer.names[0]!r} hold NaN or infinity at sample {sample}",
            where=self.where,
            fix="repair the checkpoint, or drop the sample",
        )


def _axes(rows: Tensor, features: int) -> int:
    """How many last axes make up a norm's features."""
    count = 1
    for axes in range(1, rows.ndim + 1):
        count *= rows.shape[-axes]
        if count == features:
            return axes
    return 1


def _refuse_cross_attention(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The fused projection has one input only where query, key and value are one."""
    given = [*args[:3], *(kwargs[name] for name in ARGUMENTS if name in kwargs)]
    same = all(part is given[0] for part in given)
    if not same and layer.names[0].endswith("in_proj_weight"):
        raise FamilyError(
            f"{layer.names[0]!r} has different inputs for query, key and value",
            fix="its statistics are not defined; build the model with separate projections",
        )


class _BareProducts(TorchFunctionMode):
    """Sees products with matrices that belong to no layer: `x @ proj`."""

    def __init__(self, recorder: Recorder, module: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.recorder = recorder
        self.layers = {id(find_parameter(module, layer.path)): layer for layer in layers}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and len(args) == 2 and id(args[1]) in self.layers:
            self.recorder.add(self.layers[id(args[1])], args[0])
        return func(*args, **(kwargs or {}))
