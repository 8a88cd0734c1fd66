"""The end of every run that writes an artifact: documents, manifest, proof that it reads back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.jsonfile import readable_json
from svd_hybrid.artifact.manifest import Manifest, Rebuilt
from svd_hybrid.artifact.merges import Merge
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.verify import verify
from svd_hybrid.artifact.writer import ArtifactWriter
from svd_hybrid.compress.card import model_card
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.weighting import TaskWeights
from svd_hybrid.errors import ArtifactError
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.reload.digests import Key, recorded_digests, recorded_selections


def rebuilt_facts(
    artifact: ArtifactReader,
    base: CheckpointReader,
    carried: ArtifactReader | None,
    tasks: Mapping[str, str],
    progress: Progress | None,
) -> Rebuilt:
    """Digests of what comes back; those of what is carried over, or was measured, are known.

    Args:
        artifact: its shards are written.
        base: its base.
        carried: the artifact it is made from.
        tasks: digests of the tasks that were coded and measured.
        progress: called as tensors are rebuilt.

    Raises:
        ArtifactError: what was written does not decode.
    """
    before = carried.manifest.rebuilt if carried else None
    known: dict[Key, str] = {("task", n): digest for n, digest in tasks.items()}
    if carried and before:
        known |= {("merge", name): digest for name, digest in before.merges.items()}
        if carried.manifest.holds_tasks:
            known |= {("task", name): digest for name, digest in before.tasks.items()}
    selections = recorded_selections(artifact.manifest)
    wanted = {key: selection for key, selection in selections.items() if key not in known}
    return recorded_digests(artifact, base, known, wanted, progress)


def finish_artifact(
    writer: ArtifactWriter,
    config: CompressConfig,
    merges: Mapping[str, Merge],
    tasks: list[str],
    weights: TaskWeights,
    diagnostics: Diagnostics,
    rebuilt: Callable[[Manifest], Rebuilt | None] = lambda _: None,
) -> Manifest:
    """Write documents, diagnostics and manifest, and check that all of it reads back.

    Args:
        writer: holds every tensor.
        config: of the run; names the default merge.
        merges: by name.
        tasks: task names in order.
        weights: factor of every task.
        diagnostics: complete.
        rebuilt: digests of what comes back from a draft of the manifest.

    Raises:
        ArtifactError: what was written does not read back.
    """
    by_task = dict(zip(tasks, weights.weights, strict=True))
    clusters = None if weights.clusters is None else dict(zip(tasks, weights.clusters, strict=True))
    documents = {
        layout.CARD: model_card(config, tasks).encode(),
        layout.CONFIG: readable_json(config.to_json() | {"tasks": tasks}),
        layout.WEIGHTS: readable_json(by_task),
    }
    if clusters is not None:
        documents[layout.CLUSTERS] = readable_json(clusters)
    table = diagnostics.table(writer.tensors)
    if table is not None:
        documents[layout.DIAGNOSTICS_TENSORS] = table
    manifest = writer.finish(
        merges,
        config.merge_name,
        documents,
        lambda breakdown: diagnostics.document(breakdown, by_task, clusters),
        rebuilt,
    )
    report = verify(writer.folder)
    if report.problems:
        raise ArtifactError(
            f"what was written does not read back: {report.problems[0]}",
            where=str(writer.folder),
            fix="check the disk; nothing was published",
        )
    return manifest
