"""Task weights: clusters from inner products alone, accuracies from a file."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from svd_hybrid import compress
from svd_hybrid.compress.weighting import (
    cluster_weights,
    kmeans_on_gram,
    performance_weights,
    softmax,
    uniform_weights,
)
from svd_hybrid.errors import FamilyError, SvdhError
from svd_hybrid.numerics.linalg import gram_of_rows
from tests.families import load_state, write_family

TASKS = ("ant", "bee", "cat", "dog")


def by_first_appearance(labels) -> list[int]:
    order: dict[int, int] = {}
    return [order.setdefault(int(label), len(order)) for label in labels]


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    length=st.floats(1e-6, 1e6),
)
def test_planted_clusters_are_found_from_inner_products_alone(sizes, seed, length):
    random = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(64, len(sizes), generator=random, dtype=torch.float64)).Q
    planted = [c for c, size in enumerate(sizes) for _ in range(size)]
    order = torch.randperm(len(planted), generator=random).tolist()
    labels = [planted[index] for index in order]
    noise = 0.02 * torch.randn(len(labels), 64, generator=random, dtype=torch.float64)
    stretch = torch.rand(len(labels), 1, generator=random, dtype=torch.float64) + 0.5
    vectors = length * stretch * (centres.T[labels] + noise)  # lengths must not matter
    assert kmeans_on_gram(vectors @ vectors.T, len(sizes)) == by_first_appearance(labels)


@settings(max_examples=15)
@given(count=st.integers(2, 9), clusters=st.integers(1, 4), seed=st.integers(0, 999))
def test_clusters_are_as_tight_as_those_of_scikit_learn_on_the_vectors_themselves(
    count, clusters, seed
):
    clusters = min(clusters, count)
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 200, generator=random, dtype=torch.float64)
    vectors /= vectors.norm(dim=1, keepdim=True)
    theirs = KMeans(clusters, n_init=10, random_state=42).fit(vectors.numpy()).labels_
    ours = kmeans_on_gram(vectors @ vectors.T, clusters)

    def scatter(labels: list[int]) -> float:
        groups = [vectors[[i for i, g in enumerate(labels) if g == c]] for c in set(labels)]
        return sum(float((group - group.mean(0)).square().sum()) for group in groups)

    assert scatter(ours) == pytest.approx(scatter(by_first_appearance(theirs)), rel=1e-9, abs=1e-12)


def test_tasks_without_any_change_are_a_cluster_at_the_origin():
    gram = torch.diag(torch.tensor([0.0, 4.0, 0.0, 4.0], dtype=torch.float64))
    gram[1, 3] = gram[3, 1] = 3.9
    assert kmeans_on_gram(gram, 2) == [0, 1, 0, 1]


@given(
    pattern=st.lists(st.integers(0, 3), min_size=2, max_size=8),
    clusters=st.integers(1, 8),
    seed=st.integers(0, 999),
)
def test_equal_tasks_share_a_cluster_however_many_are_asked_for(pattern, clusters, seed):
    distinct = torch.randn(4, 300, generator=torch.Generator().manual_seed(seed))
    clusters = min(clusters, len(pattern))
    found = cluster_weights(gram_of_rows([distinct[pattern]]), clusters)
    assert {task: found.clusters[pattern.index(task)] for task in pattern} == dict(
        zip(pattern, found.clusters, strict=True)
    )
    formed = min(clusters, len(set(pattern)))
    assert len(set(found.clusters)) == formed
    assert bool(found.notes) == (formed < clusters)
    assert math.fsum(found.weights) == pytest.approx(1)


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    temperature=st.floats(1e-3, 1e3),
    shift=st.floats(-1e3, 1e3),
)
def test_softmax_sums_to_one_keeps_the_order_and_ignores_a_shift(values, temperature, shift):
    weights = softmax(values, temperature)
    assert math.fsum(weights) == pytest.approx(1)
    ranks = sorted(range(len(values)), key=values.__getitem__)
    ordered = [weights[i] for i in ranks]
    assert ordered == sorted(ordered)
    if temperature >= 0.1:  # below, the rounding of the shift itself is amplified
        shifted = softmax([value + shift for value in values], temperature)
        assert shifted == pytest.approx(weights, rel=1e-6, abs=1e-12)


def test_equal_accuracies_weigh_alike_whatever_the_temperature():
    for temperature in (1e-3, 5.0, 1e6):
        assert performance_weights((0.8,) * 3, temperature).weights == pytest.approx([1 / 3] * 3)
    assert uniform_weights(4).weights == (0.25,) * 4


def test_clusters_weigh_by_mean_accuracy_when_asked_and_members_share_alike():
    gram = torch.block_diag(torch.ones(2, 2), torch.ones(1, 1)).double()
    found = cluster_weights(gram, 2, accuracies=(0.5, 0.7, 0.9), temperature=0.1)
    across = softmax((0.6, 0.9), 0.1)
    assert found.weights == pytest.approx([across[0] / 2, across[0] / 2, across[1]])
    assert math.fsum(found.weights) == pytest.approx(1)


# --- through the pipeline ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("family"), {"w": (6, 7)}, TASKS, seed=31)


def merged_with(family, tmp_path, record, **parameters):
    path = tmp_path / "performance.json"
    path.write_text(json.dumps(record))
    defaults = {"weighting": "performance", "temperature": 0.1}
    return compress(
        family.base,
        family.tasks,
        tmp_path / "artifact",
        performance_file=path,
        **(defaults | parameters),
    )


def test_accuracies_are_found_by_folded_task_names(family, tmp_path):
    record = {"Ant": 0.5, "b_ee": 0.6, "CAT": 0.7, "d-o-g": 0.9, "other": 0.1}
    weights = merged_with(family, tmp_path, record).weights
    assert list(weights.values()) == pytest.approx(softmax((0.5, 0.6, 0.7, 0.9), 0.1))


GOOD = dict.fromkeys(TASKS, 0.5)


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({task: 0.5 for task in TASKS if task != "cat"}, "cat"),
        (GOOD | {"bee": 85}, "bee"),
        (GOOD | {"bee": -0.1}, "bee"),
        (GOOD | {"bee": "0.9"}, "bee"),
        (GOOD | {"bee": True}, "bee"),
        (GOOD | {"bee": None}, "bee"),
        ([0.5] * 4, "object"),
    ],
    ids=["missing", "percent", "negative", "text", "bool", "null", "list"],
)
def test_performance_files_that_do_not_fit_are_refused_by_name(family, tmp_path, record, named):
    """The original gave a missing task 1.0, the best, and a missing file uniform weights."""
    with pytest.raises(FamilyError, match=named):
        merged_with(family, tmp_path, record)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    "parameters",
    [
        {"weighting": "performance"},
        {"weighting": "cluster", "cluster_k": 5},
        {"weighting": "cluster", "cluster_k": 0},
        {"weighting": "cluster", "cluster_across": "performance"},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
    ],
    ids=str,
)
def test_weightings_that_cannot_work_are_refused(family, tmp_path, parameters):
    with pytest.raises(SvdhError):
        compress(family.base, family.tasks, tmp_path / "artifact", **parameters)


def test_weights_do_not_change_what_is_stored_of_the_tasks(family, tmp_path):
    shards = []
    for name, parameters in {"a": {}, "b": {"weighting": "cluster", "cluster_k": 3}}.items():
        compress(family.base, family.tasks, tmp_path / name, **parameters)
        folder = tmp_path / name
        shards.append(
            {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.safetensors")}
        )
    assert shards[0] == shards[1]
    assert load_state(family.base).keys() == {"w"}
