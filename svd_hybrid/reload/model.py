"""`Artifact`: an opened artifact for use in a notebook or another program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svd_hybrid.artifact.diagnostics import read_diagnostics
from svd_hybrid.artifact.merges import LinearMerge
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.stable import read_stable
from svd_hybrid.artifact.verify import VerifyReport, verify
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.reload.deep import verify_deep
from svd_hybrid.reload.rebuild import Rebuilder, delta_tensor
from svd_hybrid.reload.selection import select

if TYPE_CHECKING:
    from torch import Tensor


class Artifact:
    """Tasks, merges and tensors of an artifact directory; nothing is written.

    >>> Artifact.open("artifacts/golden-v1-hybrid").tasks
    ('alpha', 'beta', 'gamma')
    """

    def __init__(self, reader: ArtifactReader) -> None:
        self._reader = reader

    @classmethod
    def open(cls, path: str | PathLike[str], *, expect: str | None = None) -> Artifact:
        """Read the manifest of a directory.

        Args:
            path: the directory.
            expect: `sha256:` and the artifact's id, when only that artifact will do.

        Raises:
            StorageError, ArtifactError, VersionError: as the directory deserves.
            UsageError: `expect` is no id.
        """
        return cls(ArtifactReader.open(Path(path), expect))

    @property
    def path(self) -> Path:
        """The directory."""
        return self._reader.folder

    @property
    def id(self) -> str:
        """SHA-256 (hex) of the manifest, which covers every file."""
        return self._reader.manifest.artifact_id

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in order."""
        return self._reader.manifest.tasks

    @property
    def merges(self) -> dict[str, dict[str, float]]:
        """Merge name → effective weight per task (scaling not included); none for stored ones."""
        return {
            name: dict(zip(self.tasks, merge.weights, strict=True))
            if isinstance(merge, LinearMerge)
            else {}
            for name, merge in self._reader.manifest.merges.items()
        }

    @property
    def scalings(self) -> dict[str, float]:
        """Merge name → factor on its merged delta."""
        return {name: merge.scaling for name, merge in self._reader.manifest.merges.items()}

    @property
    def default_merge(self) -> str:
        """The merge that is rebuilt when nothing is asked for."""
        return self._reader.manifest.default_merge

    def iter_tensors(
        self,
        base: str | PathLike[str] | None = None,
        *,
        task: str | None = None,
        weights: Mapping[str, float] | None = None,
        merge: str | None = None,
        dtype: str | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of one task, a weighting or a merge (default), one at a time.

        Args:
            base: the base checkpoint: yields weights in base order and base dtype (an exact task in
                its own). Without it, yields the deltas alone, float32, by ascending name.
            task: one fine-tune; with `merge`, as that merge gives it back.
            weights: task → weight, every task named; not together with `task`.
            merge: name of a merge; the default one when nothing is given.
            dtype: F64, F32, F16 or BF16 for float weights; None keeps the base's.

        Raises:
            UsageError, UnknownNameError: a selection that does not exist; or no base, where tasks
                are stored exactly, as changes of its bits.
            BaseMismatchError: a base tensor is not the one the artifact was made from.
            ArtifactError: stored parts are damaged.
        """
        manifest = self._reader.manifest
        selection = select(manifest, task=task, weights=weights, merge=merge)
        if base is not None:
            rebuilder = Rebuilder(self._reader, open_checkpoint(Path(base)), selection, dtype)
            yield from rebuilder.stream(list(rebuilder.infos))
            return
        for record in manifest.tensors:
            yield record.name, delta_tensor(self._reader, record, selection)

    def tensor(
        self,
        name: str,
        base: str | PathLike[str] | None = None,
        *,
        task: str | None = None,
        weights: Mapping[str, float] | None = None,
        merge: str | None = None,
        dtype: str | None = None,
    ) -> Tensor:
        """One tensor of a task, a weighting or a merge, as `iter_tensors` gives it.

        Reads of the shards the bytes of its own parts and what shares a block with them (64 KiB),
        the headers included; whole shards where an artifact has no digests of blocks. All that is
        read is compared with the manifest. Of the base only this tensor is read, and headers.

        Args:
            name: of the tensor.
            base: the base checkpoint; without it, gives the delta alone, float32.
            task: as for `iter_tensors`, like the others.
            weights: task → weight.
            merge: name of a merge.
            dtype: of the result.

        Raises:
            UnknownNameError: no such tensor, task or merge.
            UsageError, BaseMismatchError, ArtifactError: as `iter_tensors`.
        """
        manifest = self._reader.manifest
        record = manifest.tensor(name)
        selection = select(manifest, task=task, weights=weights, merge=merge)
        if base is None:
            return delta_tensor(self._reader, record, selection)
        rebuilder = Rebuilder(self._reader, open_checkpoint(Path(base)), selection, dtype)
        return rebuilder.tensor(record.name)

    def diagnostics(self) -> dict[str, Any]:
        """What compress measured: diagnostics.json with `per_parameter`; empty without one.

        Raises:
            ArtifactError: its files are damaged.
        """
        return read_diagnostics(self.path, self._reader.manifest)

    def verify(
        self, base: str | PathLike[str] | None = None, *, deep: bool = False
    ) -> VerifyReport:
        """Compare every file with the manifest and, when given, the base with its fingerprint.

        Args:
            base: the base checkpoint.
            deep: also decode every part and, with a base, rebuild every task and stored merge and
                compare them with the digests that the writer recorded.
        """
        checked = None if base is None else Path(base)

        def check() -> VerifyReport:
            if deep:
                return verify_deep(self.path, checked, expect=self.id)
            return verify(self.path, checked, self.id)

        return read_stable(self.path, check, lambda report: not report.problems)
