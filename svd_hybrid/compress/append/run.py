"""append: artifact + fine-tunes it lacks → the artifact of all of them.

Stored tasks keep every slice they have, so they come back to the same bits. What a tensor's
expression gives a task without slices (a mean, say) is taken from the new delta; the rest is coded
as a stack of one. Its slices go into the parts of an earlier term where they are of one kind,
else into new parts, in which the old tasks have none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.diagnostics import read_diagnostics
from svd_hybrid.artifact.fingerprint import check_names
from svd_hybrid.artifact.jsonfile import read_json_object
from svd_hybrid.artifact.manifest import Manifest, Rebuilt
from svd_hybrid.artifact.output import ARTIFACT, staged_artifact
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.stable import refuse_replaced
from svd_hybrid.artifact.writer import ArtifactWriter
from svd_hybrid.compress.append.config import document_config
from svd_hybrid.compress.append.grower import Grower
from svd_hybrid.compress.append.measure import recall
from svd_hybrid.compress.append.merges import grown_document_weights, grown_merges
from svd_hybrid.compress.append.rest import RestSource, found_step
from svd_hybrid.compress.append.tensor import weighs
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.finish import finish_artifact
from svd_hybrid.compress.request import CompressResult
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.weighting import TaskWeights
from svd_hybrid.errors import ArtifactError, UsageError
from svd_hybrid.io.family import Family, FamilyPolicy, open_family
from svd_hybrid.io.lookup import fold_name
from svd_hybrid.io.outputs import check_free, protect_inputs
from svd_hybrid.io.reader import file_bytes
from svd_hybrid.limits import MOST_TASKS
from svd_hybrid.numerics.threads import one_thread
from svd_hybrid.reload.digests import Key, recorded_digests, recorded_selections


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """One run: what to read, where to write, and how the new tasks are stored.

    Args:
        base: the base of the artifact.
        tasks: checkpoint of every new task by name, in the order in which they are added.
        artifact: what they are added to; it is only read.
        artifact_dir: the directory to make; may be that of the artifact, with `overwrite`.
        config: profile, its parameters, and what to do where tasks and base disagree.
        replace: whether a task may take the place of a stored one of its name.
        overwrite: replace an existing directory, whole.
    """

    base: Path
    tasks: Mapping[str, Path]
    artifact: Path
    artifact_dir: Path
    config: CompressConfig
    replace: bool = False
    overwrite: bool = False


def run_append(request: AppendRequest, progress: Progress | None = None) -> CompressResult:
    """Make the grown artifact.

    Raises:
        UsageError: names or parameters that cannot work, or an artifact that cannot grow.
        FamilyError: checkpoints that do not fit.
        BaseMismatchError: the base is not the artifact's.
        StorageError: a path is missing, in the way, or cannot be written.
        LockedError: another run writes the same artifact, or has replaced the one that was read.
    """
    wall, cpu = time.monotonic(), time.process_time()
    config = request.config
    protect_inputs(request.artifact_dir, [request.base, *request.tasks.values()])
    if request.artifact.resolve() != request.artifact_dir.resolve():
        protect_inputs(request.artifact_dir, [request.artifact])
    check_free(request.artifact_dir, request.overwrite, ARTIFACT)
    artifact = ArtifactReader.open(request.artifact)
    manifest = artifact.manifest
    policy = FamilyPolicy(
        config.on_missing, config.on_extra, config.on_shape_mismatch, config.nonfinite
    )
    family = open_family(request.base, request.tasks, policy)
    check_names(manifest, family.base)
    places = _places(request, manifest)
    rest = RestSource(artifact, family, places)
    config = found_step(config, rest, progress)
    stored = manifest
    new = [task for task in places if task not in manifest.tasks]
    replaced = [task for task in places if task in manifest.tasks]
    tasks = [*manifest.tasks, *new]
    merges, notes = grown_merges(manifest.merges, new, replaced)
    recorded = read_diagnostics(request.artifact, manifest)
    stated = document_config(request.artifact, manifest, config, len(new))
    before = recorded.get("bytes", {}).get("bytes_replaced")
    each = file_bytes(family.base)
    source_bytes = (before or len(manifest.tasks) * each) - len(replaced) * each
    diagnostics = Diagnostics(stated, tasks, each, source_bytes + family.bytes_replaced)
    recall(diagnostics, recorded, list(places) if config.eval_reconstruction else new)
    if not config.eval_reconstruction:
        diagnostics.unmeasured |= set(places)
    weights = TaskWeights(
        grown_document_weights(
            merges[manifest.default_merge], _recorded_weights(request), manifest.tasks, new
        )
    )
    with staged_artifact(request.artifact_dir, request.overwrite) as staging, one_thread():
        refuse_replaced(request.artifact, artifact.known)
        writer = ArtifactWriter(staging, manifest.profile, tasks)
        grower = Grower(config, rest, writer, diagnostics, recorded)
        grower.run(progress)
        diagnostics.notes += dict.fromkeys(
            [*recorded.get("notes", []), *grower.notes(new, replaced), *notes, *family.all_notes()]
        )
        manifest = finish_artifact(
            writer,
            stated,
            merges,
            tasks,
            weights,
            diagnostics,
            lambda draft: _digests(
                ArtifactReader(staging, draft), stored, family, replaced, config, progress
            ),
        )
    return CompressResult(
        request.artifact_dir,
        manifest,
        diagnostics.bytes_report(manifest.breakdown),
        diagnostics.relative_error,
        dict(zip(tasks, diagnostics.task_errors, strict=True)),
        diagnostics.merge_error,
        dict(zip(tasks, weights.weights, strict=True)),
        tuple(diagnostics.notes),
        time.monotonic() - wall,
        time.process_time() - cpu,
    )


def _places(request: AppendRequest, manifest: Manifest) -> dict[str, int]:
    """The index of every new task.

    Raises:
        UsageError: the artifact cannot grow, a name is taken, or there are too many.
    """
    where = str(request.artifact)
    if not manifest.holds_tasks:
        raise UsageError(
            "the artifact holds merges and no task deltas, so no task can be added to it",
            where=where,
            fix="compress the fine-tunes with --store-tasks on first",
        )
    known = {fold_name(task): task for task in manifest.tasks}
    places: dict[str, int] = {}
    for task in request.tasks:
        there = known.get(fold_name(task))
        if there is None:
            places[task] = len(known)
            known[fold_name(task)] = task
        elif there != task:
            raise UsageError(
                f"task {task!r} and the stored {there!r} differ only in case, '_' or '-'",
                where=where,
                fix="choose another name, or the very same one with --replace",
            )
        elif not request.replace:
            raise UsageError(
                f"the artifact already has a task {task!r}",
                where=where,
                fix="choose another name, or pass --replace to put this one in its place",
            )
        else:
            places[task] = manifest.task_index(task)
            _check_replaceable(manifest, task, where)
    if len(known) > MOST_TASKS:
        raise UsageError(f"an artifact holds at most {MOST_TASKS} tasks", where=where)
    return places


def _check_replaceable(manifest: Manifest, task: str, where: str) -> None:
    """Refuse to take away what a stored merge is made of."""
    index = manifest.task_index(task)
    for tensor in manifest.tensors:
        for name, entry in tensor.merges.items():
            if weighs(entry.get("merged"), index):
                raise UsageError(
                    f"merge {name!r} is stored as a weighting of tasks, {task!r} among them",
                    where=where,
                    fix="append it under another name, or make the artifact anew",
                )


def _recorded_weights(request: AppendRequest) -> dict[str, Any]:
    path = request.artifact / layout.WEIGHTS
    return read_json_object(path, "weights", ArtifactError) if path.is_file() else {}


def _digests(
    grown: ArtifactReader,
    before: Manifest,
    family: Family,
    replaced: list[str],
    config: CompressConfig,
    progress: Progress | None,
) -> Rebuilt | None:
    """Digests of the grown artifact; those of stored tasks and merges are what they were."""
    recorded = before.rebuilt
    known: dict[Key, str] = {}
    if recorded is not None:
        known |= {("merge", name): digest for name, digest in recorded.merges.items()}
        tasks = recorded.tasks.items()
        known |= {("task", name): digest for name, digest in tasks if name not in replaced}
    wanted = {}
    if config.eval_reconstruction:
        old = set(before.tasks) - set(replaced)
        wanted = {
            key: selection
            for key, selection in recorded_selections(grown.manifest).items()
            if key not in known and not (recorded is not None and key[1] in old)
        }
    if not known and not wanted:
        return None
    return recorded_digests(grown, family.base, known, wanted, progress)
