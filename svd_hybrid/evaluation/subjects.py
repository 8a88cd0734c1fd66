"""What is evaluated: the base, fine-tunes, and whatever an artifact gives back.

State dicts come straight from base and artifact, or from the checkpoints; nothing is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from svd_hybrid.artifact.fingerprint import check_digest, check_names
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.evaluation.base import State
from svd_hybrid.io.family import FamilyPolicy, open_family
from svd_hybrid.io.reader import CheckpointReader, open_checkpoint
from svd_hybrid.io.tensors import tensor_digest
from svd_hybrid.reload.rebuild import Rebuilder
from svd_hybrid.reload.selection import select

Kind = Literal["base", "fine-tuned", "recovered", "merge", "weights"]
KINDS: tuple[Kind, ...] = ("base", "fine-tuned", "recovered", "merge", "weights")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be scored.

    Args:
        kind: what it is.
        name: `base`, a task, a merge, or a word for a weighting.
        load: its tensors.
        identity: what tells it from any other model, as JSON.
    """

    kind: Kind
    name: str
    load: Callable[[], State]
    identity: Callable[[], Mapping[str, Any]]

    @property
    def label(self) -> str:
        """For people."""
        return self.name if self.kind == "base" else f"{self.kind} {self.name}"

    @property
    def own_task(self) -> str | None:
        """The task a fine-tune was made for; None for models meant for all."""
        return self.name if self.kind in ("fine-tuned", "recovered") else None


def state_identity(state: State) -> dict[str, Any]:
    """The digest of every name and tensor of a model.

    >>> import torch
    >>> state_identity({"w": torch.zeros(2)})["tensors"][:8]
    '2a879119'
    """
    return digests_identity({name: tensor_digest(tensor) for name, tensor in state.items()})


def digests_identity(digests: Mapping[str, str]) -> dict[str, Any]:
    """As `state_identity`, of the tensors' digests."""
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{digests[name]} {name}\n".encode())
    return {"tensors": whole.hexdigest()}


def held(kind: Kind, name: str, state: State) -> Subject:
    """A model that is in memory."""
    return Subject(kind, name, lambda: state, lambda: state_identity(state))


def base_subject(base: CheckpointReader) -> Subject:
    """The base itself."""
    return _lazy("base", "base", lambda: ((name, base.read(name)) for name in base.infos))


def fine_tuned(
    base: Path, checkpoints: Mapping[str, Path], policy: FamilyPolicy
) -> Iterator[Subject]:
    """The original fine-tunes, in the order given.

    Args:
        base: base checkpoint.
        checkpoints: by task.
        policy: what a tensor that is missing, superfluous or of another shape means.

    Raises:
        FamilyError: a checkpoint does not fit the base.
    """
    for task, path in checkpoints.items():
        family = open_family(base, {task: path}, policy)

        def tensors(family: Any = family) -> Iterator[tuple[str, Tensor]]:
            for name in family.base.infos:
                keeps_base = name in family.skipped
                yield name, family.base.read(name) if keeps_base else next(family.tuned(name))

        yield _lazy("fine-tuned", task, tensors)


def _lazy(kind: Kind, name: str, tensors: Callable[[], Iterable[tuple[str, Tensor]]]) -> Subject:
    def identity() -> dict[str, Any]:
        return digests_identity({name: tensor_digest(tensor) for name, tensor in tensors()})

    return Subject(kind, name, lambda: dict(tensors()), identity)


class ArtifactSubjects:
    """The models of an artifact.

    Args:
        folder: the artifact.
        base: its base; every tensor of it is compared with the fingerprint here, so that a result
            that was kept is never given for another base.

    Raises:
        BaseMismatchError: another base.
        StorageError, ArtifactError, VersionError: as the artifact deserves.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.artifact = ArtifactReader.open(folder)
        self.base = open_checkpoint(base)
        check_names(self.artifact.manifest, self.base)
        for record in self.artifact.manifest.tensors:
            check_digest(record, tensor_digest(self.base.read(record.name)), self.base.path)
        self.artifact_id = self.artifact.manifest.artifact_id

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in order."""
        return self.artifact.manifest.tasks

    @property
    def merges(self) -> tuple[str, ...]:
        """Names of the merges, the default one first."""
        manifest = self.artifact.manifest
        others = (name for name in manifest.merges if name != manifest.default_merge)
        return (manifest.default_merge, *others)

    @property
    def recovers_tasks(self) -> bool:
        """Whether single fine-tunes come back."""
        return self.artifact.manifest.recovers_tasks

    def recovered(self, task: str) -> Subject:
        """A fine-tune as the artifact gives it back.

        Raises:
            UsageError: there is no such task, or the artifact gives none back.
        """
        return self._subject("recovered", task, {"task": task})

    def merge(self, name: str) -> Subject:
        """A merge.

        Raises:
            UnknownNameError: there is none of that name.
        """
        return self._subject("merge", name, {"merge": name})

    def weighting(self, name: str, weights: Mapping[str, float]) -> Subject:
        """A new weighting of the tasks.

        Args:
            name: for people.
            weights: task → weight, every task named.

        Raises:
            UsageError: weights that do not fit the tasks.
        """
        return self._subject("weights", name, {"weights": dict(weights)})

    def _subject(self, kind: Kind, name: str, wanted: dict[str, Any]) -> Subject:
        selection = select(self.artifact.manifest, **wanted)
        mixes = [sorted(mix.weights.items()) for mix in (selection.mix, selection.buffer_mix)]
        facts = {
            "artifact": self.artifact_id,
            "selection": {
                "merge": selection.merge,
                "is_task": selection.is_task,
                "weights": mixes,
                "shared": [selection.mix.shared, selection.buffer_mix.shared],
                "dtype": selection.dtype,
            },
        }

        def load() -> State:
            rebuilder = Rebuilder(self.artifact, self.base, selection)
            return dict(rebuilder.stream(list(rebuilder.infos)))

        return Subject(kind, name, load, lambda: facts)
