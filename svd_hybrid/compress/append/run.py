"""append: artifact + fine-tunes it lacks → the artifact of all of them.

Stored tasks keep every slice they have, so they come back to the same bits. What a tensor's
expression gives a task without slices (a mean, say) is taken from the new delta; the rest is coded
as a stack of one. Its slices go into the parts of an earlier term where they are of one kind,
else into new parts, in which the old tasks have none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.diagnostics import read_diagnostics
from svd_hybrid.artifact.fingerprint import check_digest, check_names
from svd_hybrid.artifact.jsonfile import read_json_object
from svd_hybrid.artifact.manifest import Manifest, Rebuilt, TensorRecord
from svd_hybrid.artifact.output import ARTIFACT, staged_artifact
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.stable import refuse_replaced
from svd_hybrid.artifact.writer import ArtifactWriter
from svd_hybrid.compress.append.config import document_config
from svd_hybrid.compress.append.measure import recall, tensor_facts
from svd_hybrid.compress.append.merges import grown_document_weights, grown_merges
from svd_hybrid.compress.append.rest import RestSource, found_step
from svd_hybrid.compress.append.tensor import GrowingTensor, reweighed, to_json, weighs
from svd_hybrid.compress.config import CompressConfig, params_to_json
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.profiles.base import Originals
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.compress.run import CompressResult, finish_artifact
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.tensor import settings_of_kind
from svd_hybrid.compress.weighting import TaskWeights
from svd_hybrid.delta.evaluate import BeyondRangeError
from svd_hybrid.errors import ArtifactError, UsageError, shorten
from svd_hybrid.io.family import Family, FamilyPolicy, Stack, open_family
from svd_hybrid.io.lookup import fold_name
from svd_hybrid.io.outputs import check_free, protect_inputs
from svd_hybrid.io.reader import file_bytes
from svd_hybrid.io.tensors import DTYPE_NAMES, tensor_digest
from svd_hybrid.limits import MOST_TASKS
from svd_hybrid.numerics.metrics import ErrorSums
from svd_hybrid.numerics.threads import one_thread
from svd_hybrid.reload.digests import Key, as_record, rebuild_digests, recorded_selections


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
        grower = _Grower(config, rest, writer, diagnostics, recorded)
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


@dataclass(slots=True)
class _Grower:
    """Writes the tensors of the grown artifact, one at a time."""

    config: CompressConfig
    rest: RestSource
    writer: ArtifactWriter
    diagnostics: Diagnostics
    recorded: Mapping[str, Any]
    untied: list[str] = field(default_factory=list)

    @property
    def artifact(self) -> ArtifactReader:
        """What is grown."""
        return self.rest.artifact

    @property
    def family(self) -> Family:
        """Base and new tasks."""
        return self.rest.family

    @property
    def places(self) -> Mapping[str, int]:
        """Index of every new task."""
        return self.rest.places

    def run(self, progress: Progress | None) -> None:
        """Read, extend and write every tensor."""
        settings = FamilySettings(
            self.config, list(self.places), (0.0,) * len(self.places), self.family.base.infos
        )
        prefixes = self._prefixes()
        profile = self.config.profile
        records = self.artifact.manifest.tensors
        for done, record in enumerate(records, start=1):
            base = self.family.base.read(record.name)
            check_digest(record, tensor_digest(base), self.family.base.path)
            self.diagnostics.count_scalars(self.family.base.infos[record.name])
            own = settings_of_kind(settings.of(record.name), profile, record.name, record.shape)
            self._write(record, own.profile, prefixes)
            if progress:
                progress("append", done, len(records))

    def notes(self, new: list[str], replaced: list[str]) -> Iterator[str]:
        """How the new tasks were stored."""
        chosen = params_to_json(self.config.profile_params)
        facts = ", ".join(f"{key}={value}" for key, value in chosen.items() if value is not None)
        how = f"by profile {self.config.profile}" + (f" ({facts})" if facts else "")
        if new:
            yield f"appended {how}: {shorten(new)}"
        if replaced:
            yield f"replaced {how}: {shorten(replaced)}"
        if self.untied:
            yield f"no longer tied, and stored twice for all tasks: {shorten(self.untied)}"

    def _prefixes(self) -> tuple[str, ...]:
        """Those of earlier additions, and a free one."""
        tensors = self.artifact.manifest.tensors
        used = {name.split(".", 1)[0] for tensor in tensors for name in tensor.parts if "." in name}
        used |= {name for tensor in tensors for name in tensor.parts}
        numbers = range(len(used) + 1)
        free = next(number for number in numbers if f"n{number}" not in used)
        return tuple(f"n{number}." for number in range(free + 1))

    def _write(self, record: TensorRecord, params: Any, prefixes: tuple[str, ...]) -> None:
        plain = replace(record, parts={}, task=None, blend=None, merges={}, alias=None)
        if record.alias is not None:
            if self.family.same_everywhere(record.name, record.alias):
                self.writer.add_alias(plain, record.alias)
                info = self.family.base.infos[record.name]
                self.diagnostics.add_alias(record.name, record.alias, info)
                return
            self.untied.append(record.name)
        owner = self.artifact.owner(record)
        stack = self.family.stack(record.name)
        grown = self.rest.grown(record, stack.base, prefixes)
        before = dict(grown.parts)
        for index in self.places.values():
            grown.clear(index)
        errors: dict[str, ErrorSums | None] = {}
        for number, (task, index) in enumerate(self.places.items()):
            errors[task] = self._add(grown, stack, record, number, index, params)
        grown.drop_unused()
        more = len(self.writer.tasks) - len(self.artifact.manifest.tasks)
        self.writer.add_tensor(
            plain,
            grown.parts,
            task=reweighed(to_json(grown.task), more),
            blend=reweighed(to_json(grown.blend), more),
            merges=reweighed(grown.merges, more),
        )
        if stack.deltas is not None:
            self._measure(record, owner, grown, before, errors)
            self.family.recycle(stack.deltas)

    def _add(
        self,
        grown: GrowingTensor,
        stack: Stack,
        record: TensorRecord,
        number: int,
        index: int,
        params: Any,
    ) -> ErrorSums | None:
        """Code one task; returns what is lost, where that is measured."""
        if stack.deltas is None:
            return None
        delta = stack.deltas[number].reshape(grown.shape)
        profile = PROFILES[self.config.profile]
        if profile.encode_originals is not None:
            mine = next(islice(self.family.tuned(record.name), number, None))
            dtype = DTYPE_NAMES[mine.dtype]
            matrix = mine.reshape(grown.shape)
            originals = Originals(
                record.name,
                record.shape,
                grown.base,
                (list(self.places)[number],),
                lambda: iter((matrix,)),
            )
            grown.add_exact(index, profile.encode_originals(originals, params), dtype, record.dtype)
            delta = matrix.to(torch.float64) - grown.base.to(torch.float64)
        else:
            rest = (delta.to(torch.float64) - grown.delta(index)).to(delta.dtype)
            stored = profile.encode(rest.unsqueeze(0), None, params, "")
            if stored is not None and stored.parts:
                grown.add(index, stored)
        return grown.error(index, delta) if self.config.eval_reconstruction else None

    def _measure(
        self,
        record: TensorRecord,
        owner: TensorRecord,
        grown: GrowingTensor,
        before: Mapping[str, Any],
        errors: Mapping[str, ErrorSums | None],
    ) -> None:
        info = self.family.base.infos[record.name]
        known = self.recorded.get("per_parameter", {}).get(owner.name)
        facts = tensor_facts(known, info, grown, before, errors, self.diagnostics.tasks)
        self.diagnostics.per_parameter[record.name] = facts
        self.diagnostics.tasks_measured = True
        if grown.task is not None:
            self.diagnostics.delta_scalars += info.count
        for task, error in errors.items():
            if error is not None:
                self.diagnostics.totals[self.places[task]].merge(error)


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
    known: dict[Key, str | ArtifactError] = {}
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
    made = rebuild_digests(grown, family.base, wanted, progress)
    for fault in made.values():
        if isinstance(fault, ArtifactError) and not isinstance(fault, BeyondRangeError):
            raise fault
    return as_record(grown.manifest, known | made) if known or made else None
