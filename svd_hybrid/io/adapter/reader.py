"""A LoRA adapter beside its base, read as the fine-tune it makes: one tensor at a time.

Factors stay factors until a tensor is asked for. The delta of an adapted weight is the product of
its factors, rounded once to float32, not the difference of rounded weights; the fine-tune's own
tensor is base + delta, rounded once to the base's dtype.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from svd_hybrid.errors import FamilyError
from svd_hybrid.io.adapter.contents import WEIGHT_FILES, AdapterContents
from svd_hybrid.io.adapter.fit import AdapterFit
from svd_hybrid.io.reader import ADAPTER_ENTRY, FOLDER_ENTRIES, CheckpointReader, open_checkpoint
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.numerics.reproducible import round_once


class AdapterReader:
    """The tensors of base + adapter (a CheckpointReader).

    Args:
        path: the adapter's folder.
        base: reader of the base.
        prefix: what to take from, and put before, its module names; None to find it.

    Raises (on construction):
        FamilyError: no LoRA svdh computes, or one that does not fit the base.
        UnsafeError: its weights are a pickle that needs code to load.
    """

    def __init__(
        self, path: Path, base: CheckpointReader, prefix: tuple[str, str] | None = None
    ) -> None:
        self.path = path
        contents = AdapterContents.open(path)
        self.files = contents.weights.files
        fit = AdapterFit(contents, base.infos, prefix)
        self._base = base
        self._weights = contents.weights
        self._updates = fit.updates
        self._replaced = fit.replaced
        copies = self._tied_copies()
        self.infos: dict[str, TensorInfo] = dict(base.infos)
        for name, stored in fit.replaced.items():
            if name not in copies:
                self.infos[name] = _seen_as(self._weights.infos[stored], base.infos.get(name))
        self.notes = [
            *_prefix_note(fit.prefix),
            *_base_note(contents.config.base_name, base.path),
            *(
                f"has {copy!r} as a copy of {name!r}, to which the model ties it"
                for copy, name in copies.items()
            ),
        ]

    def read(self, name: str) -> Tensor:
        """One tensor of the fine-tune, in the base's dtype: base + delta, rounded once."""
        start = self._start(name)
        if name not in self._updates:
            return start
        wide = torch.float64 if start.dtype == torch.float64 else torch.float32
        delta = self._updates[name].delta(start, wide)
        return round_once(start.to(torch.float64) + delta.to(torch.float64), start.dtype)

    def delta(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """What the factors add to a tensor, without the rounding of a sum.

        Args:
            name: of the tensor.
            dtype: of the result, float32 or float64.

        Returns:
            A tensor of the base's shape; None where no factors change it.
        """
        if name not in self._updates:
            return None
        start = self._start(name)
        delta = self._updates[name].delta(start, dtype)
        if name in self._replaced:
            delta += start.to(dtype) - self._base.read(name).to(dtype)
        return delta

    def _tied_copies(self) -> dict[str, str]:
        """Saved tensors the base lacks, with the bits of one it has: name → that one's name."""
        extra = [name for name in self._replaced if name not in self._base.infos]
        saved = {name: stored for name, stored in self._replaced.items() if name not in extra}
        infos = self._weights.infos
        copies: dict[str, str] = {}
        for name in extra:
            stored = self._replaced[name]
            twins = [n for n, other in saved.items() if infos[other] == infos[stored]]
            content = self._weights.read(stored)
            same = [n for n in twins if torch.equal(self._weights.read(saved[n]), content)]
            copies |= {name: same[0]} if same else {}
        return copies

    def _start(self, name: str) -> Tensor:
        """What factors are added to: a saved tensor where there is one, else the base's."""
        if name not in self._replaced:
            return self._base.read(name)
        saved = self._weights.read(self._replaced[name])
        if self.infos[name].dtype == self._weights.infos[self._replaced[name]].dtype:
            return saved
        return round_once(saved.to(torch.float64), self._base.read(name).dtype)


def open_task(path: Path, base: CheckpointReader) -> CheckpointReader:
    """A reader for a fine-tune: a checkpoint, or a LoRA adapter of the base.

    Raises:
        StorageError, FamilyError, UnsafeError: as `open_checkpoint` and `AdapterReader`.
    """
    if path.name in (*WEIGHT_FILES, ADAPTER_ENTRY) and path.is_file():
        path = path.parent
    if not (path / ADAPTER_ENTRY).is_file():
        _refuse_bare_weights(path)
        return open_checkpoint(path)
    both = [name for name in FOLDER_ENTRIES if (path / name).is_file()]
    if both:
        raise FamilyError(
            f"folder holds a LoRA adapter and a whole model ({both[0]})",
            where=str(path),
            fix="move one of them elsewhere, so that it is clear which is meant",
        )
    return AdapterReader(path, base)


def _refuse_bare_weights(path: Path) -> None:
    """Factors without their scaling would otherwise be read as a model that lacks everything."""
    bare = [name for name in WEIGHT_FILES if (path / name).is_file()]
    if bare and not any((path / name).is_file() for name in FOLDER_ENTRIES):
        raise FamilyError(
            f"folder holds {bare[0]} and no {ADAPTER_ENTRY}, which says how to scale it",
            where=str(path),
            fix=f"put the adapter's {ADAPTER_ENTRY} beside it",
        )


def _seen_as(saved: TensorInfo, base: TensorInfo | None) -> TensorInfo:
    """A saved tensor as the fine-tune has it: float ones in the base's dtype."""
    if base is None or not (base.is_float and saved.is_float):
        return saved
    return TensorInfo(base.dtype, saved.shape)


def _prefix_note(prefix: tuple[str, str]) -> list[str]:
    taken, put = prefix
    if taken:
        return [f"has its modules in the base without {taken!r}"]
    return [f"has its modules in the base under {put!r}"] if put else []


def _base_note(named: str, base: Path) -> list[str]:
    """What to know when the adapter names another base than the one given."""
    given = base.resolve()
    last = Path(named).name.casefold()
    if not last or last in (given.name.casefold(), given.stem.casefold()):
        return []
    return [f"says it was trained on {named!r}; the base given is {str(base)!r}"]
