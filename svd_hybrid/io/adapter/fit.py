"""Factors of an adapter, checked against the base and laid out as its weights are."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial

from torch import Tensor

from svd_hybrid.errors import FamilyError, shorten
from svd_hybrid.io.adapter.config import MERGE_IT
from svd_hybrid.io.adapter.contents import AGAIN, AdapterContents, ModuleTensors
from svd_hybrid.io.adapter.modules import base_prefix, joined, module_of, renamed, stored_in_out
from svd_hybrid.io.adapter.update import BiasUpdate, LowRankUpdate, Read, Update
from svd_hybrid.io.reader import ADAPTER_ENTRY
from svd_hybrid.io.tensors import TensorInfo

FUSED = "in_proj_weight"
TRAINED_ON = "pass the base it was trained on"


class AdapterFit:
    """How an adapter changes a base.

    Args:
        contents: of the adapter.
        base: dtype and shape of the base's tensors.
        prefix: what to take from, and put before, the adapter's module names; None to find it.

    Attributes:
        updates: change by name of the base tensor it is added to.
        replaced: name in the adapter file of what stands in place of a tensor, by that tensor's
            name; the base may lack it.
        prefix: the one in use.

    Raises (on construction):
        FamilyError: they do not fit.
    """

    def __init__(
        self,
        contents: AdapterContents,
        base: Mapping[str, TensorInfo],
        prefix: tuple[str, str] | None = None,
    ) -> None:
        self.updates: dict[str, Update] = {}
        self.replaced: dict[str, str] = {}
        self._contents = contents
        self._config = contents.config
        self._base = base
        self._in_out = stored_in_out(base)
        self.prefix = self._prefix({module_of(name) for name in base}, prefix)
        for module, found in contents.modules.items():
            target = renamed(module, self.prefix)
            for leaf, stored in found.replaced.items():
                self.replaced[joined(target, leaf)] = stored
            if found.factors:
                self._add(module, target, found)

    def _prefix(self, known: Collection[str], prefix: tuple[str, str] | None) -> tuple[str, str]:
        """How the adapter's module names become the base's."""
        modules = self._contents.modules
        prefix = prefix or base_prefix(modules, known)
        if prefix is None:
            raise self._unfit(
                "module names of the adapter fit the base in several ways",
                "pass the base as it was saved from the class the adapter was trained on",
            )
        adapted = [module for module, found in modules.items() if found.factors]
        lacking = sorted(module for module in adapted if renamed(module, prefix) not in known)
        if lacking:
            named = self._config.base_name
            raise self._unfit(
                f"adapter changes modules the base lacks: {shorten(lacking, 3)}",
                TRAINED_ON + (f", which it calls {named!r}" if named else ""),
            )
        return prefix

    def _add(self, module: str, target: str, found: ModuleTensors) -> None:
        rest = dict(found.factors)
        embedding = any(role.startswith("lora_embedding") for role, _ in rest)
        kind = "lora_embedding_" if embedding else "lora_"
        down, up = (rest.pop((kind + side, "weight"), None) for side in "AB")
        if down is None or up is None:
            lacking = kind + ("A" if down is None else "B")
            raise self._unfit(f"adapter has no {lacking} for module {module!r}", AGAIN)
        magnitude = rest.pop(("lora_magnitude_vector", "weight"), None)
        bias = rest.pop(("lora_B", "bias"), None)
        if rest:
            odd = shorten(sorted(rest.values()))
            raise self._unfit(f"adapter holds tensors svdh does not know: {odd}", AGAIN)
        name = self._weight_name(target)
        self.updates[name] = self._low_rank(module, name, down, up, magnitude)
        if bias is not None:
            self._add_bias(module, name.removesuffix("weight") + "bias", bias)

    def _weight_name(self, target: str) -> str:
        name = joined(target, "weight")
        if joined(target, FUSED) in self._base and name not in self._base:
            raise self._unfit(
                f"adapter changes module {target!r}, a torch.nn.MultiheadAttention, to whose "
                "output projection PEFT 0.21.2 adds the product twice",
                MERGE_IT,
            )
        if name not in self._base or not self._base[name].is_float:
            raise self._unfit(
                f"the base has no weight of floats for module {target!r}",
                "pass the base unquantised, as it was published",
            )
        return name

    def _low_rank(
        self, module: str, name: str, down: str, up: str, magnitude: str | None
    ) -> LowRankUpdate:
        base = self._base[name].shape
        a, b = self._shape(down), self._shape(up)
        rank, want = a[:1], self._config.rank(module)
        if rank != (want,):
            raise self._unfit(
                f"A of module {module!r} is {list(a)}, and the configuration says rank {want}",
                f"repair r or rank_pattern in {ADAPTER_ENTRY}",
            )
        outputs, inputs = b[0] if b else 0, math.prod(a[1:])
        plain = (outputs, inputs) == (base[0], math.prod(base[1:]))
        turned = (inputs, outputs) == base
        if not (plain or turned) or b[1:] != (want,) + (1,) * (len(base) - 2):
            raise self._unfit(
                f"factors of module {module!r} do not fit its weight {list(base)}: "
                f"A is {list(a)}, B is {list(b)}",
                f"{TRAINED_ON}; resized vocabularies and grouped convolutions are not read",
            )
        if plain and turned:
            turned = self._is_turned(name, down)
        self._check_magnitude(module, magnitude, outputs)
        read_a = partial(self._read, down, want)
        read_b = partial(self._read, up, outputs)
        return LowRankUpdate(
            partial(_transposed, read_a) if turned else read_b,
            partial(_transposed, read_b) if turned else read_a,
            self._config.scaling(module),
            None if magnitude is None else partial(self._contents.weights.read, magnitude),
            outputs_last=turned,
        )

    def _is_turned(self, name: str, down: str) -> bool:
        """Whether a square weight is stored (in, out); embeddings are, in PEFT's eyes."""
        if "lora_embedding" in down:
            return True
        unknown = self._config.fan_in_fan_out and not self._in_out
        return self._in_out.get(name, unknown)

    def _check_magnitude(self, module: str, magnitude: str | None, outputs: int) -> None:
        if (magnitude is not None) != self._config.dora:
            has = "no magnitudes" if magnitude is None else "magnitudes"
            raise self._unfit(
                f"use_dora is {str(self._config.dora).lower()}, yet module {module!r} has {has}",
                AGAIN,
            )
        if magnitude is not None and math.prod(self._shape(magnitude)) != outputs:
            shape = list(self._shape(magnitude))
            raise self._unfit(
                f"magnitudes of module {module!r} are {shape}, its outputs {outputs}", AGAIN
            )

    def _add_bias(self, module: str, name: str, stored: str) -> None:
        info = self._base.get(name)
        if info is None or info.shape != self._shape(stored):
            have = "none" if info is None else list(info.shape)
            raise self._unfit(
                f"adapter adds a bias {list(self._shape(stored))} to module {module!r}; "
                f"the base has {have}",
                TRAINED_ON,
            )
        read = partial(self._contents.weights.read, stored)
        self.updates[name] = BiasUpdate(read, self._config.scaling(module))

    def _shape(self, stored: str) -> tuple[int, ...]:
        return self._contents.weights.infos[stored].shape

    def _read(self, stored: str, rows: int) -> Tensor:
        return self._contents.weights.read(stored).reshape(rows, -1)

    def _unfit(self, what: str, fix: str) -> FamilyError:
        return FamilyError(what, where=str(self._contents.path), fix=fix)


def _transposed(read: Read) -> Tensor:
    return read().T
