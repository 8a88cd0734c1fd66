"""What an artifact will hold, before anything is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from svd_hybrid.artifact.merges import Merge, StoredMerge
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.methods import METHODS


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What an artifact will hold.

    Args:
        config: the resolved configuration.
        carried: an artifact whose content is kept; None for none.
        encodes_tasks: whether the tasks' deltas are coded anew.
        holds_tasks: whether the artifact has them, coded anew or carried.
        uniform: whether every tensor has the same weights and scaling.
    """

    config: CompressConfig
    carried: ArtifactReader | None
    encodes_tasks: bool
    holds_tasks: bool
    uniform: bool

    @property
    def stores_merge(self) -> bool:
        """Whether the merge has expressions of its own, not only weights."""
        return not (METHODS[self.config.method].linear and self.holds_tasks and self.uniform)

    @property
    def recovers_tasks(self) -> bool:
        """Whether every fine-tune comes back, from task deltas or from a merge that keeps them."""
        merges = self.merges.values()
        kept = any(isinstance(merge, StoredMerge) and merge.tasks for merge in merges)
        return self.holds_tasks or METHODS[self.config.method].per_task_reload or kept

    @property
    def merges(self) -> Mapping[str, Merge]:
        """The merges that are carried over."""
        return self.carried.manifest.merges if self.carried else {}

    @property
    def prefix(self) -> str:
        """Put before the parts of the stored merge; no carried part begins with it."""
        tensors = self.carried.manifest.tensors if self.carried else ()
        used = {name.split(".", 1)[0] for tensor in tensors for name in tensor.parts}
        return next(f"m{n}." for n in range(len(used) + 1) if f"m{n}" not in used)
