"""Rotations of rows: orthonormal, exact on integers, the same for every order and thread count."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.numerics.hadamard import (
    block_scales,
    block_sizes,
    column_signs,
    rotate,
    rotate_back,
    sums_in_blocks,
)

COLUMNS = st.integers(1, 700)


@given(columns=COLUMNS)
def test_blocks_are_falling_powers_of_two_that_add_up(columns):
    sizes = block_sizes(columns)
    assert sum(sizes) == columns
    assert sizes == sorted(sizes, reverse=True)
    assert all(size & (size - 1) == 0 for size in sizes)
    assert len(set(sizes) - {256}) == sum(size < 256 for size in sizes)  # one of each below 256


@pytest.mark.parametrize("columns", [1, 2, 3, 8, 97, 256, 257, 600])
def test_a_rotation_is_orthonormal(columns):
    matrix = rotate(torch.eye(columns, dtype=torch.float64))
    assert torch.allclose(matrix @ matrix.T, torch.eye(columns, dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize("columns", [1, 5, 64, 300])
def test_entries_are_the_sylvester_matrix_with_signs(columns):
    matrix = rotate(torch.eye(columns, dtype=torch.float64))
    start = 0
    for size in block_sizes(columns):
        for row in range(size):
            for column in range(size):
                sign = (-1) ** (row & column).bit_count() * float(
                    column_signs(columns)[start + row]
                )
                assert float(matrix[start + row, start + column]) == sign * (1 / math.sqrt(size))
        matrix[start : start + size, start : start + size] = 0
        start += size
    assert not matrix.any()


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 1000])
def test_signs_are_bits_of_digests_over_a_counter(columns):
    for j, sign in enumerate(column_signs(columns).tolist()):
        digest = hashlib.sha256(b"svdh-rotation" + (j // 256).to_bytes(8, "little")).digest()
        bit = digest[j % 256 // 8] >> j % 8 & 1
        assert sign == (-1.0 if bit else 1.0)
    assert torch.equal(column_signs(columns), column_signs(2000)[:columns])


@given(
    columns=COLUMNS, seed=st.integers(0, 99), size=st.sampled_from([1.0, 300.0, 2.0**20, 2.0**30])
)
def test_sums_of_integers_are_exact(columns, seed, size):
    random = torch.Generator().manual_seed(seed)
    numbers = (torch.randn((3, columns), generator=random, dtype=torch.float64) * size).round()
    sums = sums_in_blocks(numbers)
    assert torch.equal(sums, sums.round())
    sizes = torch.tensor(block_sizes(columns))
    assert torch.equal(sums_in_blocks(sums), numbers * sizes.repeat_interleave(sizes))


@given(columns=COLUMNS, seed=st.integers(0, 99), size=st.sampled_from([1.0, 300.0, 2.0**20]))
def test_integers_are_rotated_back_by_exact_sums_and_two_roundings(columns, seed, size):
    """float32 sums where they are exact, float64 ones beyond: the same numbers."""
    random = torch.Generator().manual_seed(seed)
    numbers = (torch.randn((3, columns), generator=random) * size).round().to(torch.int32)
    scale = 0.0123
    sums = sums_in_blocks(numbers.to(torch.float64))
    factors = block_scales(columns) * scale * column_signs(columns)
    assert torch.equal(rotate_back(numbers, scale), (sums * factors).to(torch.float32))
    again = rotate(rotate_back(numbers, scale).double()) / scale
    assert torch.equal(again.round().to(torch.int32), numbers)


def test_the_smallest_integer_of_32_bits_is_one_of_the_large():
    """Its magnitude has no place in 32 bits."""
    numbers = torch.zeros((1, 256), dtype=torch.int32)
    numbers[0, 0], numbers[0, 1] = -(2**31), 1
    want = sums_in_blocks(numbers.double()) * block_scales(256) * column_signs(256)
    assert torch.equal(rotate_back(numbers, 1.0), want.float())


def test_one_outlier_is_spread_over_its_block():
    x = torch.zeros(1, 300, dtype=torch.float64)
    x[0, 17] = 1.0
    spread = rotate(x)
    assert torch.equal(spread[0, :256].abs(), torch.full((256,), 1 / 16, dtype=torch.float64))
    assert not spread[0, 256:].any()


def test_the_number_of_threads_and_of_rows_changes_no_bit():
    numbers = torch.randint(-900, 900, (200, 777), generator=torch.Generator().manual_seed(1))
    whole = numbers.to(torch.int32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(rotate_back(whole, 0.1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(values, found[0]) for values in found)
    assert torch.equal(torch.cat([rotate_back(row[None], 0.1) for row in whole]), found[0])
