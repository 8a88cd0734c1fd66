"""One digest for all a selection gives: what the writer rebuilt, a verifier rebuilds again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

from svd_hybrid.artifact.fingerprint import check_names, check_tensor
from svd_hybrid.artifact.manifest import Manifest, Rebuilt
from svd_hybrid.artifact.merges import StoredMerge
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.delta.evaluate import BeyondRangeError
from svd_hybrid.errors import ArtifactError
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.io.tensors import tensor_digest
from svd_hybrid.reload.rebuild import Rebuilder
from svd_hybrid.reload.selection import Selection, select

Key = tuple[str, str]
"""`("task", name)` or `("merge", name)`."""
Progress = Callable[[str, int, int], None]


def recorded_selections(manifest: Manifest) -> dict[Key, Selection]:
    """What digests are recorded of: every task that comes back, and every stored merge."""
    tasks = manifest.tasks if manifest.recovers_tasks else ()
    found: dict[Key, Selection] = {("task", t): select(manifest, task=t) for t in tasks}
    for name, merge in manifest.merges.items():
        if isinstance(merge, StoredMerge):
            found["merge", name] = select(manifest, merge=name)
    return found


def rebuild_digests(
    artifact: ArtifactReader,
    base: CheckpointReader,
    selections: Mapping[Key, Selection],
    progress: Progress | None = None,
) -> dict[Key, str | ArtifactError]:
    """Rebuild selections and digest them, tensor by tensor, each base tensor read once.

    Args:
        artifact: opened.
        base: its base.
        selections: what to rebuild.
        progress: called with ("rebuild", tensors done, tensors).

    Returns:
        SHA-256 (hex) of the `tensor_digest`s of every tensor, one after the other, by ascending
        name; or the error, where a selection cannot be rebuilt in the dtypes of the base.

    Raises:
        BaseMismatchError: another base.
    """
    check_names(artifact.manifest, base)
    artifact.keeps_shared = True
    rebuilders = {key: Rebuilder(artifact, base, wanted) for key, wanted in selections.items()}
    digests = {key: hashlib.sha256() for key in selections}
    faults: dict[Key, str | ArtifactError] = {}
    records = artifact.manifest.tensors if selections else ()
    for done, record in enumerate(records, start=1):
        tensor = base.read(record.name)
        check_tensor(record, tensor, base.path)
        for key, rebuilder in rebuilders.items():
            if key in faults:
                continue
            try:
                rebuilt = rebuilder.rebuild(record, tensor)
            except ArtifactError as fault:
                faults[key] = fault
                continue
            digest = record.sha256 if rebuilt is tensor else tensor_digest(rebuilt)
            digests[key].update(digest.encode())
        if progress:
            progress("rebuild", done, len(records))
    return {key: faults.get(key, digest.hexdigest()) for key, digest in digests.items()}


def recorded_digests(
    artifact: ArtifactReader,
    base: CheckpointReader,
    known: Mapping[Key, str],
    selections: Mapping[Key, Selection],
    progress: Progress | None = None,
) -> Rebuilt:
    """What the manifest says of an artifact just written.

    Args:
        artifact: its shards are written.
        base: its base.
        known: digests that need no rebuilding.
        selections: what is rebuilt.
        progress: as for `rebuild_digests`.

    Raises:
        ArtifactError: what was written does not decode.
    """
    made = rebuild_digests(artifact, base, selections, progress)
    for fault in made.values():
        if isinstance(fault, ArtifactError) and not isinstance(fault, BeyondRangeError):
            raise fault
    return as_record(artifact.manifest, {**known, **made})


def as_record(manifest: Manifest, digests: Mapping[Key, str | ArtifactError]) -> Rebuilt:
    """What the manifest says of the digests; those that could not be made are left out."""

    def found(kind: str, names: Iterable[str]) -> dict[str, str]:
        known = ((name, digests.get((kind, name))) for name in names)
        return {name: digest for name, digest in known if isinstance(digest, str)}

    return Rebuilt(found("task", manifest.tasks), found("merge", manifest.merges))
