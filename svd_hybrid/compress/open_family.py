"""A family and all that stands beside it, read and checked: what an artifact is written from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svd_hybrid.artifact.fingerprint import check_names
from svd_hybrid.artifact.manifest import Manifest
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.writer import ArtifactWriter
from svd_hybrid.compress.allocation import StepSearch, has_step_to_find
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.encoder import FamilyEncoder
from svd_hybrid.compress.finish import finish_artifact, rebuilt_facts
from svd_hybrid.compress.layer_inputs import FamilyInputs
from svd_hybrid.compress.masks.family import FamilyMasks
from svd_hybrid.compress.plan import RunPlan
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.compress.request import CompressRequest
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.source import ArtifactSource, DeltaSource
from svd_hybrid.compress.statistics import FamilyStatistics, MeasuredFamily
from svd_hybrid.compress.stream import FamilyStream, Progress
from svd_hybrid.compress.task_weights import task_weights
from svd_hybrid.compress.weighting import TaskWeights
from svd_hybrid.compress.workers import Workers
from svd_hybrid.errors import UsageError, shorten
from svd_hybrid.io.family import Family, FamilyPolicy, open_family
from svd_hybrid.io.reader import file_bytes
from svd_hybrid.methods import METHODS


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
            inputs = FamilyInputs.open(request.statistics_dir, measured, config.missing_statistics)
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

    def search(self, workers: Workers, progress: Progress | None) -> StepSearch | None:
        """The search for the profile's step; None where there is nothing to find."""
        params = self.config.profile_params
        if not has_step_to_find(params) or not self.plan(self.config).encodes_tasks:
            return None
        scalars = sum(info.count for info in self.source.base.infos.values())
        stream = self.stream(self.config)
        return StepSearch(self.config, stream, self.settings, scalars, workers, progress)

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
        self, staging: Path, config: CompressConfig, workers: Workers, progress: Progress | None
    ) -> tuple[Manifest, Diagnostics]:
        """The whole artifact, into an empty directory."""
        source, plan = self.source, self.plan(config)
        diagnostics = self.diagnostics(plan)
        writer = ArtifactWriter(
            staging, config.profile, source.task_names, holds_tasks=plan.holds_tasks
        )
        encoder = FamilyEncoder(plan, self.stream(config), writer, diagnostics, workers)
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
            *dict.fromkeys((*self.statistics.notes, *self.inputs.notes)),
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
