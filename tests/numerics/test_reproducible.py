"""Order-independent products, exact scaling, and rounding exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.numerics import reproducible
from svd_hybrid.numerics.reproducible import (
    ReproducibleProduct,
    exponent_above,
    grid_bits,
    power_of_two,
    round_once,
    weighted_sum,
)
from tests.numerics.oracle import nearest_even, rounded

SIZES = st.integers(0, 9)
HALF_TYPES = [torch.float16, torch.bfloat16]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def factors(m: int, r: int, n: int, seed: int, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """Normal float32 factors; `spread` gives rows and columns sizes up to that many binades."""
    random = torch.Generator().manual_seed(seed)
    left, right = torch.randn((m, r), generator=random), torch.randn((r, n), generator=random)
    left *= torch.exp2((torch.rand((m, 1), generator=random) - 0.5) * 2 * spread)
    right *= torch.exp2((torch.rand((1, n), generator=random) - 0.5) * 2 * spread)
    return left, right


# --- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limbs", [1, 2])
def test_a_product_has_the_same_bits_for_any_threads_rows_panels_and_order(
    threads, monkeypatch, limbs
):
    left, right = factors(37, 211, 1500, seed=1, spread=20)
    whole = ReproducibleProduct(left, right, limbs).rows(0, 37)
    order = torch.randperm(211, generator=torch.Generator().manual_seed(2))
    for count, block, panel in ((1, 1, 64), (2, 5, 1000), (4, 36, 7)):
        threads(count)
        monkeypatch.setattr(reproducible, "COLUMN_PANEL", panel)
        product = ReproducibleProduct(left[:, order], right[order], limbs)
        blocks = [product.rows(start, min(start + block, 37)) for start in range(0, 37, block)]
        assert torch.equal(torch.cat(blocks), whole)


@given(m=SIZES, r=SIZES, n=SIZES, seed=st.integers(0, 999), limbs=st.sampled_from([1, 2]))
def test_products_of_small_integers_are_exact(m, r, n, seed, limbs):
    random = torch.Generator().manual_seed(seed)
    left = torch.randint(-1000, 1001, (m, r), generator=random)
    right = torch.randint(-1000, 1001, (r, n), generator=random)
    product = ReproducibleProduct(left.float(), right.float(), limbs).rows(0, m)
    assert torch.equal(product, (left @ right).double())


@given(
    m=st.integers(1, 5),
    r=st.integers(1, 9),
    n=st.integers(1, 5),
    seed=st.integers(0, 999),
    spread=st.sampled_from([0.0, 30.0]),
    limbs=st.sampled_from([1, 2]),
)
def test_the_error_of_a_product_stays_within_its_grid(m, r, n, seed, spread, limbs):
    """Rounding a factor to b bits below 2**e costs half a unit, 2**(e - b - 1), per entry.

    One limb: r * 2**(e + f) * (2**-b + 2**(-2b - 2)). Two limbs: the same with 2b bits, plus the
    product of the two rests that is left out, plus one float64 rounding of the sum.
    """
    left, right = factors(m, r, n, seed, spread)
    product = ReproducibleProduct(left, right, limbs)
    got, bits = product.rows(0, m), Fraction(2) ** -product.bits
    for i, row in enumerate(left.tolist()):
        for j, column in enumerate(right.T.tolist()):
            exact = sum((Fraction(a) * Fraction(b) for a, b in zip(row, column, strict=True)))
            scale = r * _above(row) * _above(column)
            bound = scale * (bits + bits**2 / 4)
            if limbs == 2:
                bound = scale * (bits**2 + bits**2 / 4 + bits**4) + scale * Fraction(2) ** -53
            assert abs(Fraction(float(got[i, j])) - exact) <= bound


def _above(values: list[float]) -> Fraction:
    """The power of two above the largest magnitude."""
    return Fraction(2) ** math.frexp(max(map(abs, values)))[1]


def test_two_limbs_are_far_more_exact_than_one():
    left, right = factors(20, 300, 20, seed=3)
    want = left.double() @ right.double()
    errors = [
        float((ReproducibleProduct(left, right, limbs).rows(0, 20) - want).norm() / want.norm())
        for limbs in (1, 2)
    ]
    assert errors[0] < 1e-6
    assert errors[1] < 1e-12


def test_only_one_or_two_limbs_exist():
    with pytest.raises(ValueError, match="limbs is 3"):
        ReproducibleProduct(*factors(1, 1, 1, seed=0), limbs=3)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
def test_products_without_rows_columns_or_terms_are_zeros_of_their_shape(shape):
    m, r, n = shape
    product = ReproducibleProduct(torch.ones(m, r), torch.ones(r, n))
    assert torch.equal(product.rows(0, m), torch.zeros((m, n), dtype=torch.float64))


@given(inner=st.integers(1, 2**28))
@example(inner=2**5)
@example(inner=2**5 + 1)
def test_grid_bits_keep_every_partial_sum_an_exact_integer(inner):
    assert inner * 2 ** (2 * grid_bits(inner)) <= 2**53


# --- powers of two -------------------------------------------------------------------------------


@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_exponent_above_is_the_least_power_of_two_above(x):
    (exponent,) = exponent_above(torch.tensor([x], dtype=torch.float64)).tolist()
    if x == 0:
        assert exponent == 0
    else:
        assert Fraction(2) ** (exponent - 1) <= abs(Fraction(x)) < Fraction(2) ** exponent


def test_power_of_two_is_exact_over_its_whole_range():
    exponents = torch.arange(-1022, 1024)
    assert power_of_two(exponents).tolist() == [2.0**e for e in range(-1022, 1024)]


# --- weighted sums -------------------------------------------------------------------------------


@given(
    weights=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    seed=st.integers(0, 999),
)
def test_a_weighted_sum_is_as_exact_as_float64_adds(weights, seed):
    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(5, generator=random) for _ in weights]
    got = weighted_sum(zip(weights, tensors, strict=True))
    for position, value in enumerate(got.tolist()):
        terms = [w * float(x[position]) for w, x in zip(weights, tensors, strict=True)]
        size = math.fsum(map(abs, terms))
        assert abs(value - math.fsum(terms)) <= 2 * len(terms) * 2.0**-53 * size


def test_a_weighted_sum_adds_in_the_order_given_and_rounds_every_step():
    terms = [(1.0, torch.tensor([x], dtype=torch.float64)) for x in (1.0, 1e16, -1e16)]
    assert float(weighted_sum(terms)) == (1.0 + 1e16) - 1e16
    assert float(weighted_sum(terms[::-1])) == 1.0


def test_a_single_term_of_weight_one_comes_back_unchanged():
    x = torch.randn(7)
    assert torch.equal(weighted_sum([(1.0, x)]), x.double())


def test_a_weighted_sum_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one term"):
        weighted_sum([])


# --- rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*HALF_TYPES, torch.float32])
@given(x=st.floats(-1e39, 1e39) | st.floats(-1e-37, 1e-37) | st.floats(-70000, 70000))
def test_rounding_gives_the_nearest_value_halves_to_even(dtype, x):
    got = round_once(torch.tensor([x], dtype=torch.float64), dtype)
    want = torch.tensor([nearest_even(x, dtype)], dtype=torch.float64).to(dtype)
    assert torch.equal(got, want)
    assert torch.equal(got.signbit(), want.signbit())


@pytest.mark.parametrize("dtype", HALF_TYPES)
@given(
    bits=st.integers(0, 2**15 - 1),
    negative=st.booleans(),
    nudge=st.integers(-52, -24) | st.none(),
    up=st.booleans(),
)
def test_rounding_near_the_middle_of_two_neighbours_happens_once(dtype, bits, negative, nudge, up):
    """A nudge too small for float32 would be lost there, and the tie then broken the wrong way."""
    pair = torch.tensor([bits, bits + 1], dtype=torch.int32).to(torch.int16).view(dtype).double()
    if not bool(torch.isfinite(pair).all()):
        return
    middle = pair.mean()
    if nudge is not None:
        middle = middle * (1 + (1 if up else -1) * 2.0**nudge)
    middle = -middle if negative else middle
    assert float(round_once(middle, dtype)) == nearest_even(float(middle), dtype)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_rounding_through_float32_would_be_wrong_where_once_is_right(dtype):
    """The case the rounding to odd is there for."""
    unit = float(torch.finfo(dtype).eps)
    x = torch.tensor([1 + unit / 2 + 2.0**-40], dtype=torch.float64)
    assert float(x.float().to(dtype)) == 1.0  # two roundings: the nudge is gone, the tie is even
    assert float(round_once(x, dtype)) == 1 + unit


def test_rounding_to_float16_is_the_direct_cast_of_numpy():
    x = torch.randn(20000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = torch.cat([x, x * 1e-6, x * 1e4])
    direct = torch.from_numpy(x.numpy().astype(np.float16))
    assert torch.equal(round_once(x, torch.float16), direct)


@pytest.mark.parametrize("dtype", [*HALF_TYPES, torch.float32, torch.float64])
def test_infinities_zeros_and_what_is_too_large_round_as_ieee_says(dtype):
    values = [math.inf, -math.inf, 0.0, -0.0, 1e300, -1e300]
    got = round_once(torch.tensor(values, dtype=torch.float64), dtype)
    far = values[4:] if dtype == torch.float64 else [math.inf, -math.inf]
    assert got.tolist() == [*values[:4], *far]
    assert got.signbit().tolist() == [False, True, False, True, False, True]
    assert bool(round_once(torch.tensor([math.nan], dtype=torch.float64), dtype).isnan())


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_the_largest_values_round_to_infinity_only_half_a_unit_beyond(dtype):
    largest = torch.finfo(dtype).max
    unit = largest - float(
        torch.tensor(largest, dtype=dtype).nextafter(torch.tensor(0.0).to(dtype))
    )
    edge = largest + unit / 2
    x = torch.tensor([edge * (1 - 2.0**-50), edge], dtype=torch.float64)
    assert round_once(x, dtype).tolist() == [largest, math.inf]
    assert rounded(x, dtype).tolist() == [largest, math.inf]
