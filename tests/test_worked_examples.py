"""The worked examples of methods.md §26, §21.1, §21.8 and §21.12, by hand-computed numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from svd_hybrid.codec import ResidualAffineCodec
from svd_hybrid.codec.bitpack import unpack
from svd_hybrid.compress.profiles.base import EncodedParts
from svd_hybrid.compress.profiles.hybrid import encode
from svd_hybrid.compress.profiles.params import HybridParams
from svd_hybrid.compress.weighting import cluster_weights, performance_weights, uniform_weights
from svd_hybrid.delta.evaluate import Mix, evaluate
from svd_hybrid.io.masks import open_masks
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.methods.svd_hybrid import SvdHybridParams, combine_masks
from svd_hybrid.numerics.energy import explained_energy, rank_for_energy
from svd_hybrid.numerics.linalg import gram_of_rows, principal_directions
from tests.families import deltas_of, pack, relative_error, write_states

AFFINE_EXAMPLE = (-0.55, -0.1, 0.0, 0.2, 0.45)
COLUMNS = ((1.0, 0.0, 2.0, 1.0), (2.0, 1.0, 2.0, -1.0), (3.0, -1.0, 2.0, 0.0))
ACCURACIES = (0.85, 0.92, 0.78, 0.81)
CLUSTERED = {"A": 0, "B": 0, "C": 1, "D": 1, "E": 1, "F": 2}


def affine_stages(bits: int, stages: int) -> tuple[list[tuple[list[int], float, int]], list[float]]:
    """(codes, levels per unit, zero) of each stage for the example, and what they decode to."""
    x = torch.tensor(AFFINE_EXAMPLE).reshape(1, 1, -1)
    codec = ResidualAffineCodec(bits, stages, group_size=0, step="F32")
    arrays = codec.encode(x)
    found = []
    for stage in range(stages):
        codes = unpack(arrays[f"stage{stage}.codes"], bits, x.numel()).flatten().tolist()
        step = float(arrays[f"stage{stage}.step"]) * 2.0 ** int(arrays[f"stage{stage}.exponent"])
        found.append((codes, 1 / step, int(arrays[f"stage{stage}.zero"])))
    return found, codec.decode(arrays, (1, 1, x.numel())).flatten().tolist()


def test_two_bit_affine_example():
    ((codes, scale, zero),), decoded = affine_stages(2, 1)
    assert (codes, zero) == ([0, 2, 2, 3, 3], 2)
    assert scale == pytest.approx(3.0)
    assert decoded == pytest.approx([-2 / 3, 0, 0, 1 / 3, 1 / 3], abs=1e-7)


def test_four_bit_affine_example():
    ((codes, scale, zero),), decoded = affine_stages(4, 1)
    assert (codes, zero) == ([0, 6, 8, 11, 15], 8)
    assert scale == pytest.approx(15.0)
    assert decoded == pytest.approx([-0.533333, -0.133333, 0, 0.2, 0.466667], abs=1e-6)


def test_second_stage_of_the_two_bit_example():
    (_, (codes, scale, zero)), decoded = affine_stages(2, 2)
    assert (codes, zero) == ([3, 1, 2, 0, 3], 2)
    assert scale == pytest.approx(12.0)
    assert decoded == pytest.approx([-0.583333, -0.083333, 0, 0.166667, 0.416667], abs=1e-6)


def test_rank_rule_example():
    energies = torch.tensor([10.0, 5.0, 2.0, 1.0]).square()
    shares = explained_energy(energies).tolist()
    assert shares == pytest.approx([0.769231, 0.961538, 0.992308, 1.0], abs=1e-6)
    ranks = {threshold: rank_for_energy(energies, threshold) for threshold in RANKS}
    assert ranks == RANKS


RANKS = {0.5: 1, 0.9: 2, 0.95: 2, 0.99: 3, 1.0: 4}


def test_centred_columns_of_the_example_have_two_equal_singular_values():
    columns = torch.tensor(COLUMNS)
    assert columns.mean(0).tolist() == [2, 0, 2, 0]
    energies, vectors = principal_directions(gram_of_rows([columns - columns.mean(0)]), 4)
    assert energies.tolist() == pytest.approx([3, 3])  # and no third: the null column is dropped
    assert vectors.shape == (3, 2)


@pytest.mark.parametrize("basis", ["tasks", "left", "right", "auto"])
@pytest.mark.parametrize(("fp16", "bound"), [(False, 1e-6), (True, 2.0**-10)])
def test_svd_hybrid_example_merges_to_the_weighted_average(tmp_path, basis, fp16, bound):
    names = ("one", "two", "three")
    tasks = {task: {"w": torch.tensor(c)} for task, c in zip(names, COLUMNS, strict=True)}
    family = write_states(tmp_path, {"w": torch.zeros(4)}, tasks)
    artifact = pack(family, tmp_path / "a", basis=basis, fp16=fp16)
    weights = dict(zip(names, (0.5, 0.3, 0.2), strict=True))
    merged = deltas_of(artifact, weights=weights)["w"]
    assert relative_error(merged, torch.tensor([1.7, 0.1, 2.0, 0.2])) < bound


def test_performance_softmax_examples():
    sharp = performance_weights(ACCURACIES, 0.05)
    assert sharp.weights == pytest.approx([0.174, 0.705, 0.043, 0.078], abs=5e-4)
    assert sharp.notes == ()
    flat = performance_weights(ACCURACIES, 5.0)
    assert flat.weights == pytest.approx([0.2505, 0.2540, 0.2470, 0.2485], abs=5e-5)
    (note,) = flat.notes  # uniform to within 2 %, so the user is told what helps
    assert "0.05 to 0.1" in note


def test_cluster_example_weighs_clusters_alike_and_members_alike():
    directions = torch.eye(3, dtype=torch.float64)
    vectors = torch.stack([directions[c] for c in CLUSTERED.values()])
    found = cluster_weights(vectors @ vectors.T, 3)
    assert found.clusters == tuple(CLUSTERED.values())
    assert found.weights == pytest.approx([1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9, 1 / 3])
    seed = (0.159881, 0.159881, 0.100827, 0.100827, 0.100827, 0.377755)  # two-level softmax
    assert max(abs(a - b) for a, b in zip(found.weights, seed, strict=True)) > 0.005


def test_packed_mask_example_is_read_most_significant_bit_first(tmp_path):
    bits = [1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1]
    packed = np.packbits(np.array(bits, dtype=bool))
    assert packed.tolist() == [177, 160]
    np.save(tmp_path / "TALL_mask_1task.npy", {"cars": packed}, allow_pickle=True)
    masks = open_masks(tmp_path, ["cars"], {"w": TensorInfo("F32", (11,))})
    read = masks["cars"].read("w")
    assert read is not None
    assert read.int().tolist() == bits


def test_packed_mask_bits_run_through_the_tensors_in_order_of_their_names(tmp_path):
    packed = np.array([177, 160], dtype=np.uint8)
    np.save(tmp_path / "TALL_mask_1task.npy", {"cars": packed}, allow_pickle=True)
    infos = {
        "b": TensorInfo("F32", (2, 3)),
        "a": TensorInfo("F16", (5,)),
        "steps": TensorInfo("I64", (4,)),
    }
    masks = open_masks(tmp_path, ["cars"], infos)
    assert masks["cars"].read("a").int().tolist() == [1, 0, 1, 1, 0]
    assert masks["cars"].read("b").int().tolist() == [[0, 0, 1], [1, 0, 1]]
    assert masks["cars"].read("steps") is None  # integers are not part of the flattening


def test_majority_counts_exactly_half():
    votes = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=torch.bool)
    masks = list(votes)
    combined = {
        strategy: combine_masks(masks, SvdHybridParams(mask_strategy=strategy)).int().tolist()
        for strategy in ("union", "intersection", "majority")
    }
    assert combined == {
        "union": [1, 1, 1, 1],
        "intersection": [0, 0, 0, 1],
        "majority": [1, 1, 0, 1],
    }


@given(count=st.integers(1, 30), percent=st.integers(1, 100))
@example(count=25, percent=28)  # 0.28 * 25 is above 7 in float64
def test_majority_needs_the_least_number_of_votes_that_reaches_its_share(count, percent):
    params = SvdHybridParams(mask_strategy="majority", majority_threshold=percent / 100)
    masks = [torch.arange(count) <= task for task in range(count)]  # scalar i has count - i votes
    votes = torch.stack(masks).sum(0).tolist()
    wanted = [Fraction(vote, count) >= Fraction(percent, 100) for vote in votes]
    assert combine_masks(masks, params).tolist() == wanted


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**31),
    basis=st.sampled_from(["tasks", "left", "right"]),
    center=st.booleans(),
)
def test_with_all_directions_kept_the_merge_is_the_weighted_average(shape, seed, basis, center):
    """methods.md §21.12: U U^T (tau - mu) + mu = tau, so the SVD changes storage, not the merge."""
    random = torch.Generator().manual_seed(seed)
    stack = torch.randn(shape, generator=random)
    weights = torch.rand(shape[0], generator=random, dtype=torch.float64)
    params = HybridParams(
        fp16=False, energy_threshold=1.0, max_rank=10**6, basis=basis, center=center
    )
    stored = encode(stack, None, params)
    assert stored is not None
    size = (stack[0].numel(), 1) if stored.flat else tuple(shape[1:])
    mix = Mix(dict(enumerate(weights.tolist())))
    merged = evaluate(stored.expr, EncodedParts(stored.parts), mix, size).rows(0, size[0])
    want = torch.einsum("t,tmn->mn", weights, stack.double())
    scale = float(weights.sum()) * float(stack.norm())
    assert float((merged.reshape(want.shape) - want).norm()) <= 1e-6 * scale


@given(tasks=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_centred_uniform_merge_is_the_mean_alone(tasks, seed):
    """Sum of w_t c_t is 0 there, so the coefficients add nothing but their own rounding."""
    stack = torch.randn((tasks, 5, 4), generator=torch.Generator().manual_seed(seed))
    stored = encode(stack, None, HybridParams(fp16=False, energy_threshold=1.0))
    assert stored is not None
    mix = Mix(dict(enumerate(uniform_weights(tasks).weights)))
    merged = evaluate(stored.expr, EncodedParts(stored.parts), mix, (5, 4)).rows(0, 5)
    assert relative_error(merged, stack.double().mean(0)) < 1e-5
