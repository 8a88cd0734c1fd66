"""The factor of every task in a run: given by the user, or by a weighting rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.artifact.files import read_manifest
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.settings import SMALLEST_TOTAL
from svd_hybrid.compress.source import DeltaSource
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.weighting import (
    TaskWeights,
    cluster_weights,
    load_performance,
    performance_weights,
    uniform_weights,
)
from svd_hybrid.errors import ParameterError, UsageError, shorten
from svd_hybrid.io.lookup import match_name
from svd_hybrid.methods import METHODS
from svd_hybrid.numerics.linalg import gram_of_rows
from svd_hybrid.numerics.threads import one_thread


def task_weights(
    config: CompressConfig,
    source: DeltaSource,
    performance_file: Path | None,
    progress: Progress | None,
) -> TaskWeights:
    """The factor of every task; a pass over the deltas only for clusters.

    Weighting rules give weights that sum to 1. A method that adds its tasks, instead of averaging
    them, takes N times that, so that the mean weight is 1.

    Raises:
        UsageError, ParameterError: weights that cannot be meant, or a file that is missing.
        FamilyError: a performance file that does not fit the tasks.
    """
    count = len(source.task_names)
    method = METHODS[config.method]
    if config.weights:
        return _given_weights(config, count)
    weights = _weighting(config, source, performance_file, progress)
    if method.weights == "average":
        return weights
    if config.weighting == "uniform":
        return replace(weights, weights=(1.0,) * count)
    return replace(weights, weights=tuple(count * weight for weight in weights.weights))


def _given_weights(config: CompressConfig, count: int) -> TaskWeights:
    weights = config.weights
    if config.weighting != "uniform":
        raise UsageError(
            f"weights are given and weighting is {config.weighting}", fix="drop one of the two"
        )
    if len(weights) != count or not all(math.isfinite(weight) for weight in weights):
        raise ParameterError(f"weights are {list(weights)}, must be {count} finite numbers")
    if METHODS[config.method].weights == "average" and config.normalize_weights:
        total = math.fsum(weights)
        if abs(total) < SMALLEST_TOTAL:
            raise ParameterError(
                f"weights sum to {total:g}, so they define no average",
                fix="pass other weights, or --no-normalize-weights",
            )
        weights = tuple(weight / total for weight in weights)
    return TaskWeights(weights)


def _weighting(
    config: CompressConfig,
    source: DeltaSource,
    performance_file: Path | None,
    progress: Progress | None,
) -> TaskWeights:
    """What the weighting rule says; the weights sum to 1."""
    needs_accuracy = config.weighting == "performance" or (
        config.weighting == "cluster" and config.cluster_across == "performance"
    )
    if needs_accuracy and performance_file is None:
        raise UsageError(
            "performance weighting needs a performance file",
            fix="pass --performance-file FILE: a JSON object task → accuracy in [0, 1]",
        )
    accuracies = None
    notes: list[str] = []
    if needs_accuracy and performance_file is not None:
        accuracies = load_performance(performance_file, source.task_names)
    elif performance_file is not None:
        notes.append(f"the performance file is not used: weighting is {config.weighting}")
    if config.weighting == "uniform":
        return replace(uniform_weights(len(source.task_names)), notes=tuple(notes))
    if config.weighting == "performance" and accuracies is not None:
        return performance_weights(accuracies, config.temperature)
    if config.cluster_k > len(source.task_names):
        raise ParameterError(
            f"cluster_k is {config.cluster_k}, but there are only {len(source.task_names)} tasks"
        )
    gram = _task_gram(source, progress)
    clusters = cluster_weights(
        gram, config.cluster_k, accuracies=accuracies, temperature=config.temperature
    )
    return replace(clusters, notes=(*notes, *clusters.notes))


def _task_gram(source: DeltaSource, progress: Progress | None) -> Tensor:
    """(N, N) float64 inner products of the whole task vectors, streamed tensor by tensor."""
    count = len(source.task_names)
    total = torch.zeros((count, count), dtype=torch.float64)
    names = sorted(name for name in source.base.infos if source.has_deltas(name))
    with one_thread():
        for done, name in enumerate(names, start=1):
            deltas = source.stack(name).deltas
            assert deltas is not None  # has_deltas
            total += gram_of_rows([deltas.unsqueeze(-1).flatten(1)])  # 0-d tensors too
            if progress:
                progress("scan", done, len(names))
    return total


def weights_by_task(
    given: Mapping[str, Any], tasks: Sequence[str], from_artifact: Path | None, where: str
) -> list[Any]:
    """Factors in task order, from a mapping that names every task.

    Args:
        given: task → factor.
        tasks: in order; empty for those of the artifact.
        from_artifact: where the tasks come from, if no checkpoints are given.
        where: what to call the mapping in errors.

    Raises:
        UsageError: a name that is no task, or a task without a factor.
        StorageError, ArtifactError: there is no such artifact.
    """
    if not tasks and from_artifact is not None:
        tasks = read_manifest(from_artifact).tasks
    by_task = {match_name(name, tasks, "task", where): value for name, value in given.items()}
    missing = [task for task in tasks if task not in by_task]
    if missing or len(by_task) != len(given):
        raise UsageError(
            f"no weight for task {shorten(missing)}" if missing else "a task has two weights",
            where=where,
            fix="give every task one weight; 0 leaves it out",
        )
    return [by_task[task] for task in tasks]
