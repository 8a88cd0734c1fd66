"""Running a model block by block, with no block computed twice for a batch.

Repeated blocks (the members of its ModuleLists) are run one after another over all batches. To run
block k, the model is called as always; the blocks before it give back what they gave before, and
what comes after it is not run. So one set of outputs per batch is kept, and the code around the
blocks (masks, positions, norms) is the model's own. That blocks depend on each other in no other
way is checked on the first batch; where they do, the whole model runs for every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from svd_hybrid.collect.forwards import Forward, replaced
from svd_hybrid.data.batches import Batch
from svd_hybrid.models.live import LiveModel


class _StopAfterBlock(Exception):  # noqa: N818 # no error: it ends a run that is done
    """The block that was asked for has run."""


@dataclass(slots=True)
class _Progress:
    """How far one batch has come: the last block done and the last output of every list."""

    done: int = -1
    outputs: dict[str, Any] = field(default_factory=dict)


class Blocks:
    """A model's repeated blocks, in the order they run.

    Args:
        live: the model.
        first: a batch, with which order and independence are found out.
    """

    def __init__(self, live: LiveModel, first: Batch) -> None:
        self.live = live
        self.paths = _in_order(live, first)
        self._batches: dict[int, _Progress] = {}
        self._now: _Progress | None = None
        self._stop: int | None = None
        self.chained = len(set(self.paths)) == len(self.paths) and self._is_chain(first)
        self.paths = list(dict.fromkeys(self.paths))
        self._batches.clear()

    def run(self, batch: Batch, block: int | None) -> None:
        """Run one batch up to the end of a block, or (None) what lies around all blocks."""
        if not self.chained:
            self.live(batch.inputs)
            return
        self._now = self._batches.setdefault(batch.first, _Progress())
        self._stop = block
        with self._stepping():
            try:
                self.live(batch.inputs)
            except _StopAfterBlock:
                pass
            finally:
                self._now = None

    def _stepping(self) -> AbstractContextManager[None]:
        modules = [self.live.module.get_submodule(path) for path in self.paths]
        return replaced(modules, lambda place, module: self._step(place, module.forward))

    def _step(self, place: int, whole: Forward) -> Forward:
        owner = self.paths[place].rpartition(".")[0]

        def forward(*args: Any, **kwargs: Any) -> Any:
            now = self._now
            assert now is not None
            if place > now.done:
                now.outputs[owner] = whole(*args, **kwargs)
                now.done = place
                if place == self._stop:
                    raise _StopAfterBlock
            return now.outputs[owner]

        return forward

    def _is_chain(self, batch: Batch) -> bool:
        """Whether running block by block gives the model's own output, bit for bit."""
        want = _tensors(self.live(batch.inputs))
        self.chained = True
        for block in (*range(len(self.paths)), None):
            self.run(batch, block)
        self._now = self._batches[batch.first]
        with self._stepping():
            got = _tensors(self.live(batch.inputs))
        return len(got) == len(want) and all(
            torch.equal(x, y) for x, y in zip(got, want, strict=True)
        )


def _in_order(live: LiveModel, batch: Batch) -> list[str]:
    """Paths of the blocks in the order this batch runs them."""
    order: list[str] = []
    with _watched(live.module, order):
        live(batch.inputs)
    return order


@contextmanager
def _watched(module: nn.Module, order: list[str]) -> Iterator[None]:
    hooks = []
    for path in block_paths(module):
        part = module.get_submodule(path)
        note = _appender(order, path)
        hooks.append(part.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _appender(order: list[str], path: str) -> Callable[[nn.Module, Any], None]:
    def note(_module: nn.Module, _args: Any) -> None:
        order.append(path)

    return note


def block_paths(module: nn.Module) -> list[str]:
    """Members of the outermost lists of two or more modules of one class.

    >>> block_paths(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    []
    """
    found: list[str] = []
    for path, part in module.named_modules():
        inside = any(path == block or path.startswith(f"{block}.") for block in found)
        if inside or not isinstance(part, (nn.ModuleList, nn.Sequential)) or len(part) < 2:
            continue
        alike = len({type(member) for member in part}) == 1
        if alike and all(any(True for _ in member.parameters()) for member in part):
            prefix = f"{path}." if path else ""
            found += [f"{prefix}{name}" for name, _ in part.named_children()]
    return found


def _tensors(output: Any) -> list[Tensor]:
    """Every tensor of a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _tensors(part)]
    return []
