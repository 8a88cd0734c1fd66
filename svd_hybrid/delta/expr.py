"""The closed vocabulary of expressions.

An expression gives the delta of one tensor as a matrix (rows, columns) from named parts. A part is
either shared by all tasks or stacked (one slice per task). With task weights w an expression gives
sum_t w_t * (its value for task t); where only one stacked leaf is involved that is computed by
mixing the leaf, sum_t w_t * slice_t, and terms without any are multiplied by sum_t w_t.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, assert_never


@dataclass(frozen=True, slots=True)
class Dense:
    """delta = part, read row by row."""

    part: str


@dataclass(frozen=True, slots=True)
class LowRank:
    """delta = left.T @ right;  left (r, m), right (r, n), `limbs` as in ReproducibleProduct.

    Both factors are stored component by component, so that a row holds numbers of one size.
    """

    left: str
    right: str
    limbs: int = 1


@dataclass(frozen=True, slots=True)
class Exact:
    """delta = what the part makes of the base, minus the base.

    The part holds differences of bit patterns (numerics.bit_patterns), so the base must be at hand.
    A single task is not that sum but the fine-tune's own bits, in `dtype` (F64, F32, F16, BF16).
    """

    part: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Tucker:
    """delta = left.T @ core @ right;  left (p, m), core (p, q), right (q, n).

    `core @ right` is rounded to float32; `limbs` as in ReproducibleProduct, for both products.
    """

    left: str
    core: str
    right: str
    limbs: int = 1


@dataclass(frozen=True, slots=True)
class Masked:
    """delta = inner where the mask is True (`inside`) or False (not `inside`), else 0.

    The mask is shared, or stacked: then each task has its own.
    """

    mask: str
    inner: Expr
    inside: bool = True


@dataclass(frozen=True, slots=True)
class Scattered:
    """Like Masked, but inner is (D, 1): only the D selected scalars, in row-major order."""

    mask: str
    inner: Expr
    inside: bool = True


@dataclass(frozen=True, slots=True)
class Flat:
    """delta (m, n) = inner (m * n, 1), read row by row."""

    inner: Expr


@dataclass(frozen=True, slots=True)
class Scale:
    """delta = factor * inner."""

    factor: float
    inner: Expr


@dataclass(frozen=True, slots=True)
class Weighted:
    """delta = sum_t weights[t] * (inner for task t): a merge of what `inner` gives per task."""

    weights: tuple[float, ...]
    inner: Expr


@dataclass(frozen=True, slots=True)
class Sum:
    """delta = the terms added in order; no terms give 0."""

    terms: tuple[Expr, ...]


Expr: TypeAlias = (
    Dense | LowRank | Tucker | Exact | Masked | Scattered | Flat | Scale | Weighted | Sum
)


def parts_of(expr: Expr) -> Iterator[str]:
    """Names of all parts the expression reads, in order, repeats included."""
    match expr:
        case Dense(part) | Exact(part):
            yield part
        case LowRank(left, right):
            yield left
            yield right
        case Tucker(left, core, right):
            yield from (left, core, right)
        case Masked(mask, inner) | Scattered(mask, inner):
            yield mask
            yield from parts_of(inner)
        case Flat(inner) | Scale(_, inner) | Weighted(_, inner):
            yield from parts_of(inner)
        case Sum(terms):
            for term in terms:
                yield from parts_of(term)
        case _ as unreachable:
            assert_never(unreachable)


def weights_of(expr: Expr) -> Iterator[tuple[float, ...]]:
    """The weights of every `Weighted` in the expression."""
    match expr:
        case Dense() | LowRank() | Tucker() | Exact():
            return
        case Weighted(weights, inner):
            yield weights
            yield from weights_of(inner)
        case Masked(_, inner) | Scattered(_, inner) | Flat(inner) | Scale(_, inner):
            yield from weights_of(inner)
        case Sum(terms):
            for term in terms:
                yield from weights_of(term)
        case _ as unreachable:
            assert_never(unreachable)


def renamed(expr: Expr, prefix: str) -> Expr:
    """The expression with `prefix` put before the name of every part."""
    match expr:
        case Dense(part):
            return Dense(prefix + part)
        case Exact(part, dtype):
            return Exact(prefix + part, dtype)
        case LowRank(left, right, limbs):
            return LowRank(prefix + left, prefix + right, limbs)
        case Tucker(left, core, right, limbs):
            return Tucker(prefix + left, prefix + core, prefix + right, limbs)
        case Masked(mask, inner, inside):
            return Masked(prefix + mask, renamed(inner, prefix), inside)
        case Scattered(mask, inner, inside):
            return Scattered(prefix + mask, renamed(inner, prefix), inside)
        case Flat(inner):
            return Flat(renamed(inner, prefix))
        case Scale(factor, inner):
            return Scale(factor, renamed(inner, prefix))
        case Weighted(weights, inner):
            return Weighted(weights, renamed(inner, prefix))
        case Sum(terms):
            return Sum(tuple(renamed(term, prefix) for term in terms))
        case _ as unreachable:
            assert_never(unreachable)
