"""What an adapter folder holds: its configuration, and its tensors by module and role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from svd_hybrid.errors import FamilyError, shorten
from svd_hybrid.io.adapter.config import AdapterConfig, read_config
from svd_hybrid.io.adapter.keys import parse_key
from svd_hybrid.io.reader import ADAPTER_ENTRY, CheckpointReader, open_checkpoint

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
AGAIN = "save the adapter again with PEFT's save_pretrained(), or download it again"


@dataclass(frozen=True, slots=True)
class ModuleTensors:
    """What the file holds for one module.

    Args:
        factors: tensor name by (role, `weight` or `bias`).
        replaced: tensor name by leaf: what stands in place of the base's.
    """

    factors: dict[tuple[str, str], str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterContents:
    """An opened adapter folder; nothing but headers is in memory.

    Args:
        path: the folder.
        config: its configuration.
        weights: reader of its weight file.
        modules: tensors by module path, as the model it was trained on calls it.
    """

    path: Path
    config: AdapterConfig
    weights: CheckpointReader
    modules: Mapping[str, ModuleTensors]

    @classmethod
    def open(cls, path: Path) -> AdapterContents:
        """Read configuration and headers.

        Raises:
            FamilyError: it is damaged, or no LoRA that svdh computes.
            UnsafeError: its weights are a pickle that needs code to load.
        """
        config = read_config(path / ADAPTER_ENTRY)
        weights = _open_weights(path)
        return cls(path, config, weights, _by_module(weights, path))


def _open_weights(folder: Path) -> CheckpointReader:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return open_checkpoint(folder / name)
    raise FamilyError(
        "adapter has no weights",
        where=str(folder),
        fix="it needs one of " + ", ".join(WEIGHT_FILES),
    )


def _by_module(weights: CheckpointReader, path: Path) -> dict[str, ModuleTensors]:
    modules: dict[str, ModuleTensors] = {}
    adapters: dict[str, None] = {}
    for stored, info in weights.infos.items():
        key = parse_key(stored)
        if key is None:
            continue
        if key.adapter:
            adapters[key.adapter] = None
        if key.role and not info.is_float:
            raise FamilyError(
                f"factors are {info.dtype}, not floats",
                where=f"tensor {stored!r} in {path}",
                fix="save the adapter unquantised",
            )
        found = modules.setdefault(key.module, ModuleTensors())
        role = key.role, "bias" if key.leaf == "bias" else "weight"
        other = found.factors.get(role) if key.role else found.replaced.get(key.leaf)
        if other is not None and len(adapters) < 2:
            raise FamilyError(
                f"adapter holds the same tensor twice: {other!r} and {stored!r}",
                where=str(path),
                fix=AGAIN,
            )
        if key.role:
            found.factors[role] = stored
        else:
            found.replaced[key.leaf] = stored
    if len(adapters) > 1:
        raise FamilyError(
            f"file holds several adapters: {shorten(list(adapters))}",
            where=str(path),
            fix="save each of them alone",
        )
    if not modules:
        raise FamilyError("adapter holds no tensors", where=str(path), fix=AGAIN)
    return modules
