"""compress: family → artifact, one tensor at a time.

checkpoints, or artifact + base ─► deltas ─► [scans: clusters, model-wide numbers of a method] ─►
per tensor: task stacks coded by the profile, the merge as weights over them or as parts of its own
─► errors measured with the real decoder ─► shards ─► documents, manifest ─► verified with the
reader ─► renamed into place
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from svd_hybrid.artifact.output import ARTIFACT, staged_artifact
from svd_hybrid.artifact.stable import identity, refuse_replaced
from svd_hybrid.compress.open_family import OpenFamily, open_source
from svd_hybrid.compress.plan import RunPlan
from svd_hybrid.compress.request import CompressRequest, CompressResult
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.workers import Workers
from svd_hybrid.io.new_file import renew_folder
from svd_hybrid.io.outputs import check_free, protect_inputs
from svd_hybrid.numerics.threads import one_thread

TOY_BYTES = 2**20
"""Below this an artifact's fixed files outweigh any saving, and nobody expects one."""


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
    wall, cpu = time.monotonic(), _cpu_time()
    _check_paths(request)
    carried = None if request.from_artifact is None else identity(request.from_artifact)
    source = open_source(request)
    family = OpenFamily.open(request, source, progress)
    with (
        Workers(request.workers) as workers,
        staged_artifact(request.artifact_dir, request.overwrite) as staging,
        one_thread(),
    ):
        search = family.search(workers, progress)
        if request.from_artifact is not None:
            refuse_replaced(request.from_artifact, carried)
        while True:
            config = search.propose() if search else request.config
            manifest, diagnostics = family.write(staging, config, workers, progress)
            size = sum(manifest.breakdown.values())
            if search is None or search.accepts(size, diagnostics):
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
        _cpu_time() - cpu,
    )


def _cpu_time() -> float:
    """Seconds of this process and of those it started and saw end."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _check_paths(request: CompressRequest) -> None:
    """Refuse outputs that are in the way or would replace an input."""
    extras = (request.mask_dir, request.performance_file, request.statistics_dir)
    inputs = [request.base, *request.tasks.values(), *(path for path in extras if path)]
    protect_inputs(request.artifact_dir, inputs)
    check_free(request.artifact_dir, request.overwrite, ARTIFACT)


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
