"""compress: family → artifact, one tensor at a time.

checkpoints, or artifact + base ─► deltas ─► [scans: clusters, model-wide numbers of a method] ─►
per tensor: task stacks coded by the profile, the merge as weights over them or as parts of its own
─► errors measured with the real decoder ─► shards ─► documents, manifest ─► verified with the
reader ─► renamed into place
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.fingerprint import check_names
from svd_hybrid.artifact.jsonfile import readable_json
from svd_hybrid.artifact.manifest import Manifest, Rebuilt
from svd_hybrid.artifact.merges import Merge
from svd_hybrid.artifact.output import ARTIFACT, staged_artifact
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.stable import identity, refuse_replaced
from svd_hybrid.artifact.verify import verify
from svd_hybrid.artifact.writer import ArtifactWriter
from svd_hybrid.compress.allocation import StepSearch
from svd_hybrid.compress.card import model_card
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.encoder import FamilyEncoder, RunPlan
from svd_hybrid.compress.layer_inputs import FamilyInputs
from svd_hybrid.compress.masks.family import FamilyMasks
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.source import ArtifactSource, DeltaSource
from svd_hybrid.compress.statistics import FamilyStatistics, MeasuredFamily
from svd_hybrid.compress.stream import FamilyStream, Progress
from svd_hybrid.compress.task_weights import task_weights
from svd_hybrid.compress.weighting import TaskWeights
from svd_hybrid.delta.evaluate import BeyondRangeError
from svd_hybrid.errors import ArtifactError, UsageError, shorten
from svd_hybrid.io.family import Family, FamilyPolicy, open_family
from svd_hybrid.io.new_file import renew_folder
from svd_hybrid.io.outputs import check_free, protect_inputs
from svd_hybrid.io.reader import CheckpointReader, file_bytes
from svd_hybrid.methods import METHODS
from svd_hybrid.numerics.threads import one_thread
from svd_hybrid.reload.digests import Key, as_record, rebuild_digests, recorded_selections

TOY_BYTES = 2**20
"""Below this an artifact's fixed files outweigh any saving, and nobody expects one."""


@dataclass(frozen=True, slots=True)
class CompressRequest:
    """One run: what to read, where to write, and the configuration.

    Args:
        base: base checkpoint.
        tasks: checkpoint by task name; the order is kept everywhere. Empty to read the deltas
            from `from_artifact`.
        artifact_dir: the directory to make.
        config: everything else that decides its content.
        mask_dir: per-task masks; None for whole tensors.
        performance_file: task → accuracy; needed for performance weighting.
        statistics_dir: per-task layer statistics, for methods that read them.
        from_artifact: an artifact of this base whose content is kept beside the new merge.
        overwrite: replace an existing directory, whole.
    """

    base: Path
    tasks: Mapping[str, Path]
    artifact_dir: Path
    config: CompressConfig
    mask_dir: Path | None = None
    performance_file: Path | None = None
    statistics_dir: Path | None = None
    from_artifact: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class CompressResult:
    """What a run made.

    Args:
        artifact_dir: the published directory.
        manifest: its manifest.
        bytes: sizes and ratios, as in diagnostics.json.
        relative_error: over all tasks and tensors; None when not measured.
        task_errors: the same per task.
        merge_error: of the stored merge against what the method computed; None for a weighting.
        weights: effective weight per task.
        notes: what the user should know.
        wall_s, cpu_s: time of the run.
    """

    artifact_dir: Path
    manifest: Manifest
    bytes: Mapping[str, Any]
    relative_error: float | None
    task_errors: Mapping[str, float | None]
    merge_error: float | None
    weights: Mapping[str, float]
    notes: tuple[str, ...]
    wall_s: float
    cpu_s: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "artifact_dir": str(self.artifact_dir),
            "artifact_id": self.manifest.artifact_id,
            "bytes": dict(self.bytes),
            "relative_error": self.relative_error,
            "task_errors": dict(self.task_errors),
            "merge_error": self.merge_error,
            "weights": dict(self.weights),
            "notes": list(self.notes),
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }


def run_compress(request: CompressRequest, progress: Progress | None = None) -> CompressResult:
    """Compress a family into an artifact directory.

    Equal inputs give equal bytes, whatever the thread count, the files' layout or their paths.

    Raises:
        UsageError: parameters or names that cannot work.
        FamilyError: checkpoints, masks or performance file that do not fit.
        UnsafeError: an input needs code to load.
        StorageError: a path is missing, in the way, or cannot be written.
        LockedError: another run writes the same artifact, or has replaced the one that was read.
    """
    wall, cpu = time.monotonic(), time.process_time()
    _check_paths(request)
    carried = None if request.from_artifact is None else identity(request.from_artifact)
    source = open_source(request)
    family = OpenFamily.open(request, source, progress)
    search = family.search(progress)
    with staged_artifact(request.artifact_dir, request.overwrite) as staging, one_thread():
        if request.from_artifact is not None:
            refuse_replaced(request.from_artifact, carried)
        while True:
            config = search.propose() if search else request.config
            manifest, diagnostics = family.write(staging, config, progress)
            size = sum(manifest.breakdown.values())
            if search is None or search.accepts(size, diagnostics.stored_error):
                break
            renew_folder(staging)
    plan, weights = family.plan(config), family.weights
    sizes = diagnostics.bytes_report(manifest.breakdown)
    return CompressResult(
        request.artifact_dir,
        manifest,
        sizes,
        diagnostics.relative_error,
        dict(zip(source.task_names, diagnostics.task_errors, strict=True)),
        diagnostics.merge_error,
        dict(zip(source.task_names, weights.weights, strict=True)),
        (*diagnostics.notes, *_size_notes(sizes, plan)),
        time.monotonic() - wall,
        time.process_time() - cpu,
    )


@dataclass(frozen=True, slots=True)
class OpenFamily:
    """Everything a run has read, from which it writes an artifact under one configuration or more.

    Args:
        source: where deltas come from.
        carried: the artifact whose content is kept; None for none.
        masks, weights: as the user gave them.
        statistics, inputs: layer statistics, for the method and for the profile.
    """

    config: CompressConfig
    source: DeltaSource
    carried: ArtifactReader | None
    masks: FamilyMasks
    weights: TaskWeights
    statistics: FamilyStatistics
    inputs: FamilyInputs

    @classmethod
    def open(
        cls, request: CompressRequest, source: DeltaSource, progress: Progress | None
    ) -> OpenFamily:
        """Check and read what stands beside the checkpoints."""
        config = request.config
        masks = FamilyMasks.open(request.mask_dir, source, config)
        weights = task_weights(config, source, request.performance_file, progress)
        settings = FamilySettings(config, source.task_names, weights.weights, source.base.infos)
        carried = _open_carried(request, source)
        checkpoints = source.tasks if isinstance(source, Family) else {}
        measured = MeasuredFamily(source.base, source.task_names, checkpoints)
        profile = PROFILES[config.profile]
        coded = _plan(config, carried, settings, source).encodes_tasks
        minded = coded and profile.minds_inputs(config.profile_params)
        statistics = FamilyStatistics.of_method(
            request.statistics_dir,
            measured,
            METHODS[config.method],
            settings.method_params,
            config.missing_statistics,
            also_minded=minded,
        )
        inputs = FamilyInputs()
        if minded and request.statistics_dir is not None:
            if request.mask_dir is not None:
                raise UsageError(
                    f"profile {profile.name} minds no inputs under masks",
                    fix="drop --statistics-dir or --mask-dir",
                )
            inputs = FamilyInputs(
                FamilyStatistics.open(
                    request.statistics_dir, measured, "gram", config.missing_statistics
                )
            )
        return cls(config, source, carried, masks, weights, statistics, inputs)

    def settings(self, config: CompressConfig) -> FamilySettings:
        """Parameters of every tensor."""
        infos = self.source.base.infos
        return FamilySettings(config, self.source.task_names, self.weights.weights, infos)

    def stream(self, config: CompressConfig) -> FamilyStream:
        """Deltas and contexts."""
        method = METHODS[config.method]
        settings = self.settings(config)
        return FamilyStream(method, self.source, settings, self.masks, self.statistics, self.inputs)

    def plan(self, config: CompressConfig) -> RunPlan:
        """What the artifact will hold."""
        return _plan(config, self.carried, self.settings(config), self.source)

    def search(self, progress: Progress | None) -> StepSearch | None:
        """The search for the profile's step; None where there is nothing to find."""
        params = self.config.profile_params
        if getattr(params, "step", self) is not None or not self.plan(self.config).encodes_tasks:
            return None
        scalars = sum(info.count for info in self.source.base.infos.values())
        stream = self.stream(self.config)
        return StepSearch(self.config, stream, self.settings, scalars, progress)

    def diagnostics(self, plan: RunPlan) -> Diagnostics:
        """Where the facts of a run are collected; empty."""
        source = self.source
        return Diagnostics(
            plan.config,
            source.task_names,
            file_bytes(source.base),
            source.bytes_replaced,
            recovers_tasks=plan.recovers_tasks,
        )

    def write(
        self, staging: Path, config: CompressConfig, progress: Progress | None
    ) -> tuple[Manifest, Diagnostics]:
        """The whole artifact, into an empty directory."""
        source, plan = self.source, self.plan(config)
        diagnostics = self.diagnostics(plan)
        writer = ArtifactWriter(
            staging, config.profile, source.task_names, holds_tasks=plan.holds_tasks
        )
        encoder = FamilyEncoder(plan, self.stream(config), writer, diagnostics)
        encoder.run(progress)
        method = METHODS[config.method]
        untuned = method.advice and "scaling" not in config.parameters
        implied = f"profile {config.profile}, because of its parameters; --profile chooses another"
        diagnostics.notes += [
            *([implied] if config.profile_implied else []),
            *([method.advice] if untuned else []),
            *self.weights.notes,
            *source.all_notes(),
            *self.masks.notes,
            *self.statistics.notes,
            *self.inputs.notes,
        ]
        merges = {**plan.merges, config.merge_name: encoder.merge(self.weights.weights)}
        manifest = finish_artifact(
            writer,
            config,
            merges,
            source.task_names,
            self.weights,
            diagnostics,
            lambda draft: (
                rebuilt_facts(
                    ArtifactReader(staging, draft),
                    source.base,
                    self.carried,
                    encoder.task_digests(),
                    progress,
                )
                if config.eval_reconstruction
                else None
            ),
        )
        return manifest, diagnostics


def _check_paths(request: CompressRequest) -> None:
    """Refuse outputs that are in the way or would replace an input."""
    extras = (request.mask_dir, request.performance_file, request.statistics_dir)
    inputs = [request.base, *request.tasks.values(), *(path for path in extras if path)]
    protect_inputs(request.artifact_dir, inputs)
    check_free(request.artifact_dir, request.overwrite, ARTIFACT)


def open_source(request: CompressRequest) -> DeltaSource:
    """Where the deltas of a run come from: its checkpoints, or its artifact."""
    if request.from_artifact is not None and not request.tasks:
        return ArtifactSource(request.from_artifact, request.base)
    config = request.config
    policy = FamilyPolicy(
        config.on_missing, config.on_extra, config.on_shape_mismatch, config.nonfinite
    )
    return open_family(request.base, request.tasks, policy)


def _open_carried(request: CompressRequest, source: DeltaSource) -> ArtifactReader | None:
    """The artifact whose content is kept; its base, tasks and merge names must fit."""
    if request.from_artifact is None or request.config.store_tasks == "off":
        return None
    carried = ArtifactReader.open(request.from_artifact)
    check_names(carried.manifest, source.base)
    where = str(request.from_artifact)
    if list(carried.manifest.tasks) != source.task_names:
        raise UsageError(
            "the artifact holds other tasks, or in another order: "
            + shorten(list(carried.manifest.tasks)),
            where=where,
            fix="name the same tasks in the same order, or none to use the stored ones",
        )
    if request.config.merge_name in carried.manifest.merges:
        raise UsageError(
            f"the artifact already has a merge {request.config.merge_name!r}",
            where=where,
            fix="choose another --merge-name",
        )
    return carried


def _plan(
    config: CompressConfig,
    carried: ArtifactReader | None,
    settings: FamilySettings,
    source: DeltaSource,
) -> RunPlan:
    carries_tasks = carried is not None and carried.manifest.holds_tasks
    wanted = config.store_tasks == "on" or (
        config.store_tasks == "auto" and METHODS[config.method].linear
    )
    found = [settings.of(name) for name in source.base.infos if source.has_deltas(name)]
    uniform = not any(
        s.keep_base
        or (s.weights, s.method.scaling) != (settings.common.weights, found[0].method.scaling)
        for s in found
    )
    return RunPlan(
        config,
        carried,
        encodes_tasks=wanted and not carries_tasks,
        holds_tasks=wanted or carries_tasks,
        uniform=uniform,
    )


def _size_notes(sizes: Mapping[str, Any], plan: RunPlan) -> list[str]:
    """A warning when nothing is saved, as with half-precision checkpoints; toys are left alone."""
    if sizes["bytes_artifact"] < sizes["bytes_replaced"] or sizes["bytes_replaced"] < TOY_BYTES:
        return []
    smaller = []
    if plan.encodes_tasks and plan.config.profile in ("auto", "max"):
        smaller.append("a larger --target-error")
    if plan.encodes_tasks and plan.config.profile == "hybrid":
        smaller.append("--rtvq-stages 1, --no-center and --basis-dtype auto")
    if plan.stores_merge and plan.config.merged_dtype == "fp32":
        smaller.append("--merged-dtype fp16")
    advice = f"; {' or '.join(smaller)} would make it smaller" if smaller else ""
    return [f"the artifact is larger than the checkpoints it replaces{advice}"]


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
    known: dict[Key, str | ArtifactError] = {("task", n): digest for n, digest in tasks.items()}
    if carried and before:
        known |= {("merge", name): digest for name, digest in before.merges.items()}
        if carried.manifest.holds_tasks:
            known |= {("task", name): digest for name, digest in before.tasks.items()}
    selections = recorded_selections(artifact.manifest)
    wanted = {key: selection for key, selection in selections.items() if key not in known}
    made = rebuild_digests(artifact, base, wanted, progress)
    for fault in made.values():
        if isinstance(fault, ArtifactError) and not isinstance(fault, BeyondRangeError):
            raise fault
    return as_record(artifact.manifest, known | made)


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
