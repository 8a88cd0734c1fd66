"""compress: family → artifact, one tensor at a time.

checkpoints ─► checked family ─► [scan: Gram for clusters] ─► per tensor: deltas ─► method cuts
regions ─► profile encodes parts ─► errors measured with the real decoder ─► shards ─► documents,
manifest ─► verified with the reader ─► renamed into place
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.jsonfile import readable_json
from svd_hybrid.artifact.manifest import LinearMerge, Manifest, TensorRecord
from svd_hybrid.artifact.verify import verify
from svd_hybrid.artifact.writer import ArtifactWriter
from svd_hybrid.compress.card import model_card
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.masking import FamilyMasks
from svd_hybrid.compress.tensor import encode_tensor
from svd_hybrid.compress.weighting import (
    TaskWeights,
    cluster_weights,
    load_performance,
    performance_weights,
    uniform_weights,
)
from svd_hybrid.delta.serial import expr_to_json
from svd_hybrid.errors import ArtifactError, ParameterError, UsageError
from svd_hybrid.io.family import Family, FamilyPolicy, is_buffer, open_family
from svd_hybrid.io.model_writer import check_free, protect_inputs
from svd_hybrid.io.reader import file_bytes
from svd_hybrid.io.staging import staged_directory
from svd_hybrid.io.tensors import tensor_digest
from svd_hybrid.methods import METHODS
from svd_hybrid.numerics.linalg import gram_of_rows
from svd_hybrid.numerics.threads import one_thread

TOY_BYTES = 2**20
"""Below this an artifact's fixed files outweigh any saving, and nobody expects one."""

Progress = Callable[[str, int, int], None]
"""Called with (step, done, total) as tensors are finished."""


@dataclass(frozen=True, slots=True)
class CompressRequest:
    """One run: what to read, where to write, and the configuration.

    Args:
        base: base checkpoint.
        tasks: checkpoint by task name; the order is kept everywhere.
        artifact_dir: the directory to make.
        config: everything else that decides its content.
        mask_dir: per-task masks; None for whole tensors.
        performance_file: task → accuracy; needed for performance weighting.
        overwrite: replace an existing directory, whole.
    """

    base: Path
    tasks: Mapping[str, Path]
    artifact_dir: Path
    config: CompressConfig
    mask_dir: Path | None = None
    performance_file: Path | None = None
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
        weights: effective weight per task.
        notes: what the user should know.
        wall_s, cpu_s: time of the run.
    """

    artifact_dir: Path
    manifest: Manifest
    bytes: Mapping[str, Any]
    relative_error: float | None
    task_errors: Mapping[str, float | None]
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
    """
    wall, cpu = time.monotonic(), time.process_time()
    check_free(request.artifact_dir, request.overwrite)
    extras = (request.mask_dir, request.performance_file)
    inputs = (request.base, *request.tasks.values(), *(path for path in extras if path))
    protect_inputs(request.artifact_dir, inputs)
    config = request.config
    policy = FamilyPolicy(
        config.on_missing, config.on_extra, config.on_shape_mismatch, config.nonfinite
    )
    family = open_family(request.base, request.tasks, policy)
    masks = FamilyMasks.open(request.mask_dir, family, config)
    weights = _task_weights(request, family, progress)
    diagnostics = Diagnostics(
        config,
        family.task_names,
        file_bytes(family.base),
        sum(file_bytes(reader) for reader in family.tasks.values()),
    )
    with staged_directory(request.artifact_dir, request.overwrite) as staging, one_thread():
        writer = ArtifactWriter(staging, config.profile, family.task_names)
        _encode_tensors(family, masks, config, writer, diagnostics, progress)
        diagnostics.notes += [*weights.notes, *family.all_notes(), *masks.notes]
        manifest = finish_artifact(writer, config, family.task_names, weights, diagnostics)
    measured = config.eval_reconstruction
    sizes = diagnostics.bytes_report(manifest.breakdown)
    return CompressResult(
        request.artifact_dir,
        manifest,
        sizes,
        diagnostics.relative_error,
        {
            task: total.relative_error if measured else None
            for task, total in zip(family.task_names, diagnostics.totals, strict=True)
        },
        dict(zip(family.task_names, weights.weights, strict=True)),
        (*diagnostics.notes, *_size_notes(sizes)),
        time.monotonic() - wall,
        time.process_time() - cpu,
    )


def _size_notes(sizes: Mapping[str, Any]) -> list[str]:
    """A warning when nothing is saved, as with half-precision checkpoints; toys are left alone."""
    if sizes["bytes_artifact"] < sizes["bytes_replaced"] or sizes["bytes_replaced"] < TOY_BYTES:
        return []
    return [
        "the artifact is larger than the checkpoints it replaces; --rtvq-stages 1, --no-center and "
        "--basis-dtype auto make it smaller"
    ]


def _task_weights(
    request: CompressRequest, family: Family, progress: Progress | None
) -> TaskWeights:
    """The effective weights; a pass over the deltas only for clusters."""
    config = request.config
    needs_accuracy = config.weighting == "performance" or (
        config.weighting == "cluster" and config.cluster_across == "performance"
    )
    if needs_accuracy and request.performance_file is None:
        raise UsageError(
            "performance weighting needs a performance file",
            fix="pass --performance-file FILE: a JSON object task → accuracy in [0, 1]",
        )
    accuracies = None
    if needs_accuracy and request.performance_file is not None:
        accuracies = load_performance(request.performance_file, family.tasks)
    elif request.performance_file is not None:
        family.notes.append(f"the performance file is not used: weighting is {config.weighting}")
    if config.weighting == "uniform":
        return uniform_weights(len(family.tasks))
    if config.weighting == "performance" and accuracies is not None:
        return performance_weights(accuracies, config.temperature)
    if config.cluster_k > len(family.tasks):
        raise ParameterError(
            f"cluster_k is {config.cluster_k}, but there are only {len(family.tasks)} tasks"
        )
    gram = _task_gram(family, progress)
    return cluster_weights(
        gram, config.cluster_k, accuracies=accuracies, temperature=config.temperature
    )


def _task_gram(family: Family, progress: Progress | None) -> Tensor:
    """(N, N) float64 inner products of the whole task vectors, streamed tensor by tensor."""
    total = torch.zeros((len(family.tasks), len(family.tasks)), dtype=torch.float64)
    names = sorted(name for name in family.base.infos if family.has_deltas(name))
    with one_thread():
        for done, name in enumerate(names, start=1):
            deltas = family.stack(name).deltas
            assert deltas is not None  # has_deltas
            total += gram_of_rows([deltas.unsqueeze(-1).flatten(1)])  # 0-d tensors too
            if progress:
                progress("scan", done, len(names))
    return total


def _encode_tensors(
    family: Family,
    masks: FamilyMasks,
    config: CompressConfig,
    writer: ArtifactWriter,
    diagnostics: Diagnostics,
    progress: Progress | None,
) -> None:
    first_with: dict[str, str] = {}  # base digest → first tensor with that content
    names = sorted(family.base.infos)
    for done, name in enumerate(names, start=1):
        info = family.base.infos[name]
        stack = family.stack(name)
        digest = tensor_digest(stack.base)
        record = TensorRecord(name, info.dtype, info.shape, digest, {}, buffer=is_buffer(name))
        diagnostics.count_scalars(info)
        twin = first_with.setdefault(digest, name) if stack.deltas is not None else name
        if stack.deltas is None:
            writer.add_tensor(record, {})
        elif twin != name and family.same_everywhere(name, twin) and masks.same(name, twin):
            writer.add_alias(record, twin)
            diagnostics.add_alias(name, twin, info)
        else:
            encoded = encode_tensor(stack.deltas, masks.combined(name), config)
            writer.add_tensor(
                record,
                encoded.parts,
                task=None if encoded.task is None else expr_to_json(encoded.task),
                blend=None if encoded.blend is None else expr_to_json(encoded.blend),
            )
            diagnostics.add(name, info, encoded)
        if progress:
            progress("encode", done, len(names))


def finish_artifact(
    writer: ArtifactWriter,
    config: CompressConfig,
    tasks: list[str],
    weights: TaskWeights,
    diagnostics: Diagnostics,
) -> Manifest:
    """Write documents, diagnostics and manifest, and check that all of it reads back.

    Raises:
        ArtifactError: what was written does not read back.
    """
    method = METHODS[config.method]
    merge = LinearMerge(method.name, method.version, weights.weights, config.method_params.scaling)
    by_task = dict(zip(tasks, weights.weights, strict=True))
    clusters = None if weights.clusters is None else dict(zip(tasks, weights.clusters, strict=True))
    documents = {
        layout.CARD: model_card(config, by_task).encode(),
        layout.CONFIG: readable_json(config.to_json() | {"tasks": tasks}),
        layout.WEIGHTS: readable_json(by_task),
    }
    if clusters is not None:
        documents[layout.CLUSTERS] = readable_json(clusters)
    manifest = writer.finish(
        {config.merge_name: merge},
        config.merge_name,
        documents,
        lambda breakdown: diagnostics.document(breakdown, by_task, clusters),
    )
    report = verify(writer.folder)
    if report.problems:
        raise ArtifactError(
            f"what was written does not read back: {report.problems[0]}",
            where=str(writer.folder),
            fix="check the disk; nothing was published",
        )
    return manifest
