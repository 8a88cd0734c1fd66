"""How much each task counts in the merge: uniform, by performance, or by cluster.

Whatever the rule, the result is one effective weight per task. It is what weights.json says, what
the merge uses and what reload uses. Source: methods.md §21.8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.artifact.jsonfile import read_json_object
from svd_hybrid.errors import FamilyError, UsageError
from svd_hybrid.io.lookup import match_name

FLAT_SPREAD = 0.02
"""Weights within 2 % of uniform are called flat: the temperature then drowns the accuracies."""
KMEANS_RESTARTS = 10
KMEANS_SEED = 42
EMBEDDING_NOISE = 2.0**-40
EMBEDDING_GRID = 2.0**-30
"""Equal tasks must be equal points: what rounding leaves between them is no distance to cluster."""


@dataclass(frozen=True, slots=True)
class TaskWeights:
    """Effective weights and how they came about.

    Args:
        weights: one per task, in task order; they sum to 1.
        clusters: cluster id per task, numbered by first appearance; only for cluster weighting.
        notes: sentences for the user.
    """

    weights: tuple[float, ...]
    clusters: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def uniform_weights(count: int) -> TaskWeights:
    """1 / N each."""
    return TaskWeights((1.0 / count,) * count)


def softmax(values: Sequence[float], temperature: float) -> list[float]:
    """exp(v / T), normalised; stable for any size of v.

    >>> [round(w, 3) for w in softmax([0.85, 0.92, 0.78, 0.81], 0.05)]
    [0.174, 0.705, 0.043, 0.078]
    """
    top = max(values)
    powers = [math.exp((value - top) / temperature) for value in values]
    return [power / math.fsum(powers) for power in powers]


def performance_weights(accuracies: Sequence[float], temperature: float) -> TaskWeights:
    """Softmax of the tasks' accuracies.

    Args:
        accuracies: one per task, in [0, 1].
        temperature: > 0; with 5.0 accuracies in [0, 1] give all but uniform weights.
    """
    weights = softmax(accuracies, temperature)
    notes = []
    uniform = 1.0 / len(weights)
    spread = max(abs(weight - uniform) for weight in weights) / uniform
    if len(weights) > 1 and spread < FLAT_SPREAD:
        notes.append(
            f"performance weights are uniform to within {FLAT_SPREAD:.0%} at temperature "
            f"{temperature:g}; --temperature 0.05 to 0.1 lets accuracies count"
        )
    return TaskWeights(tuple(weights), notes=tuple(notes))


def cluster_weights(
    gram: Tensor,
    clusters: int,
    *,
    accuracies: Sequence[float] | None = None,
    temperature: float = 5.0,
) -> TaskWeights:
    """Weights that count clusters of similar tasks, not tasks.

    Args:
        gram: (N, N) float64, inner products of the whole task vectors.
        clusters: number of clusters, 1..N.
        accuracies: when given, clusters weigh by the softmax of their members' mean accuracy;
            else all clusters weigh the same.
        temperature: of that softmax.

    Returns:
        Effective weight = weight of the cluster / its number of members.
    """
    labels = kmeans_on_gram(gram, clusters)
    members = [[i for i, label in enumerate(labels) if label == c] for c in range(max(labels) + 1)]
    if accuracies is None:
        across = [1.0 / len(members)] * len(members)
    else:
        means = [math.fsum(accuracies[i] for i in group) / len(group) for group in members]
        across = softmax(means, temperature)
    weights = tuple(across[label] / len(members[label]) for label in labels)
    notes: tuple[str, ...] = ()
    if len(members) < clusters:
        notes = (f"asked for {clusters} clusters, the tasks form only {len(members)}",)
    return TaskWeights(weights, tuple(labels), notes)


def kmeans_on_gram(gram: Tensor, clusters: int) -> list[int]:
    """k-means of the L2-normalised task vectors, from their inner products alone.

    Distances between points depend only on the Gram matrix, so clustering the rows of its
    N-dimensional eigen-embedding is the same problem as clustering the N vectors of model size.

    Args:
        gram: (N, N) float64.
        clusters: 1..N.

    Returns:
        N cluster ids, numbered by first appearance. A task without any change counts as the origin.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    norms = gram.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1.0), 0.0)
    energies, vectors = torch.linalg.eigh(gram * inverse.outer(inverse))
    energies = torch.where(energies > EMBEDDING_NOISE * energies.amax(), energies, 0.0)
    grid = (vectors * energies.sqrt() / EMBEDDING_GRID).round() * EMBEDDING_GRID
    points: np.ndarray[Any, Any] = grid.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        labels = (
            KMeans(clusters, n_init=KMEANS_RESTARTS, random_state=KMEANS_SEED).fit(points).labels_
        )
    order: dict[int, int] = {}
    return [order.setdefault(int(label), len(order)) for label in labels]


def load_performance(path: Path, tasks: Iterable[str]) -> list[float]:
    """Accuracies of the tasks from a JSON object task → accuracy in [0, 1].

    Raises:
        StorageError: the file cannot be read.
        FamilyError: it is no such object, a task is missing, or a value is outside [0, 1].
    """
    record = read_json_object(path, "performance file", FamilyError)
    accuracies = []
    for task in tasks:
        try:
            name = match_name(task, record, "accuracy for task", str(path))
        except UsageError as error:
            raise FamilyError(error.what, where=error.where, fix=error.fix) from error
        value = record[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise FamilyError(
                f"accuracy of task {task!r} is {value!r}, outside [0, 1]",
                where=str(path),
                fix="write every accuracy as a fraction: 0.85, not 85",
            )
        accuracies.append(float(value))
    return accuracies
