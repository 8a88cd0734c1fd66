"""Which parameter of a live module a checkpoint's tensor is, found by exact rules only."""

from __future__ import annotations

from collections.abc import Mapping

from svd_hybrid.errors import FamilyError, shorten
from svd_hybrid.io.tensors import TensorInfo

Shapes = Mapping[str, tuple[int, ...]]


def matched_names(infos: Mapping[str, TensorInfo], live: Shapes, where: str) -> dict[str, str]:
    """Live name by checkpoint name: the same, or the same after one prefix is dropped or added.

    Tensors that are no floats and that the module lacks are left out.

    Args:
        infos: the checkpoint's tensors.
        live: shape by name of the module's parameters and buffers.
        where: what to call the checkpoint in errors.

    Raises:
        FamilyError: names or shapes do not fit, or two prefixes fit equally well.

    >>> matched_names({"vit.a": TensorInfo("F32", (2,))}, {"a": (2,)}, "x")
    {'vit.a': 'a'}
    """
    floats = [name for name, info in infos.items() if info.is_float]
    found = {
        (drop, add): {name: add + name.removeprefix(drop) for name in infos}
        for drop, add in _prefixes(floats, list(live))
        if all(name.startswith(drop) and add + name.removeprefix(drop) in live for name in floats)
    }
    if ("", "") in found:
        found = {("", ""): found["", ""]}
    if not found:
        unexpected = [name for name in floats if name not in live]
        lacking = [name for name in live if name not in infos]
        parts = [f"the model has no {shorten(unexpected, 3)}"] if unexpected else []
        parts += [f"the checkpoint has no {shorten(lacking, 3)}"] if lacking else []
        raise FamilyError(
            f"tensors do not fit the model: {'; '.join(parts)}",
            where=where,
            fix="pass the model class that this checkpoint was saved from",
        )
    if len(found) > 1:
        raise FamilyError(
            f"tensor names fit the model with {len(found)} different prefixes: {sorted(found)}",
            where=where,
            fix="rename them to the model's own names",
        )
    names = {name: other for name, other in next(iter(found.values())).items() if other in live}
    for name, other in names.items():
        if infos[name].shape != tuple(live[other]):
            raise FamilyError(
                f"tensor {name!r} has shape {list(infos[name].shape)}, "
                f"the model has {list(live[other])}",
                where=where,
                fix="pass the configuration this checkpoint was saved with",
            )
    return names


def _prefixes(names: list[str], live: list[str]) -> list[tuple[str, str]]:
    """(dropped, added) pairs that could turn the checkpoint's names into the module's."""
    known = set(live)
    pairs = {("", "")}
    if names:
        parts = names[0].split(".")
        tails = {".".join(parts[cut:]): ".".join(parts[:cut]) for cut in range(len(parts))}
        for tail, head in tails.items():
            dropped = f"{head}." if head else ""
            pairs |= {(dropped, other.removesuffix(tail)) for other in known if _ends(other, tail)}
    return sorted(pairs)


def _ends(name: str, tail: str) -> bool:
    return name == tail or name.endswith(f".{tail}")
