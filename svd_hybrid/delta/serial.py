"""Expression ⇄ JSON, as FORMAT.md writes it."""

from __future__ import annotations

import sys
from typing import Any, assert_never

from svd_hybrid.delta.expr import (
    Dense,
    Exact,
    Expr,
    Flat,
    LowRank,
    Masked,
    Scale,
    Scattered,
    Sum,
    Tucker,
    Weighted,
)
from svd_hybrid.errors import ArtifactError, VersionError

DEEPEST = 16
KNOWN_OPS = (
    *("dense", "low-rank", "tucker", "exact", "masked", "scattered", "flat", "scale"),
    *("weighted", "sum"),
)


def expr_to_json(expr: Expr) -> dict[str, Any]:
    """The JSON object of an expression; `expr_from_json` reads it back."""
    match expr:
        case Dense(part):
            return {"op": "dense", "part": part}
        case LowRank(left, right, limbs):
            return {"op": "low-rank", "left": left, "right": right, "limbs": limbs}
        case Exact(part, dtype):
            return {"op": "exact", "part": part, "dtype": dtype}
        case Tucker(left, core, right, limbs):
            names = {"left": left, "core": core, "right": right}
            return {"op": "tucker", **names, "limbs": limbs}
        case Masked(mask, inner, inside):
            return {"op": "masked", "mask": mask, "inside": inside, "inner": expr_to_json(inner)}
        case Scattered(mask, inner, inside):
            return {"op": "scattered", "mask": mask, "inside": inside, "inner": expr_to_json(inner)}
        case Flat(inner):
            return {"op": "flat", "inner": expr_to_json(inner)}
        case Scale(factor, inner):
            return {"op": "scale", "factor": factor, "inner": expr_to_json(inner)}
        case Weighted(weights, inner):
            return {"op": "weighted", "weights": list(weights), "inner": expr_to_json(inner)}
        case Sum(terms):
            return {"op": "sum", "terms": [expr_to_json(term) for term in terms]}
        case _ as unreachable:
            assert_never(unreachable)


def expr_from_json(record: Any, depth: int = 0) -> Expr:
    """The expression a manifest record stands for.

    Raises:
        VersionError: an operation this reader does not know.
        ArtifactError: a malformed record, or one nested deeper than `DEEPEST`.
    """
    if depth > DEEPEST:
        raise ArtifactError(f"expression is nested deeper than {DEEPEST}")
    match record:
        case {"op": "dense", "part": str(part), **rest} if not rest:
            return Dense(part)
        case {
            "op": "exact",
            "part": str(part),
            "dtype": ("F64" | "F32" | "F16" | "BF16") as dtype,
            **rest,
        } if not rest:
            return Exact(part, dtype)
        case {
            "op": "low-rank",
            "left": str(left),
            "right": str(right),
            "limbs": (1 | 2) as limbs,
            **rest,
        } if not rest and type(limbs) is int:
            return LowRank(left, right, limbs)
        case {
            "op": "tucker",
            "left": str(left),
            "core": str(core),
            "right": str(right),
            "limbs": (1 | 2) as limbs,
            **rest,
        } if not rest and type(limbs) is int:
            return Tucker(left, core, right, limbs)
        case {
            "op": "masked",
            "mask": str(mask),
            "inside": bool(inside),
            "inner": inner,
            **rest,
        } if not rest:
            return Masked(mask, expr_from_json(inner, depth + 1), inside)
        case {
            "op": "scattered",
            "mask": str(mask),
            "inside": bool(inside),
            "inner": inner,
            **rest,
        } if not rest:
            return Scattered(mask, expr_from_json(inner, depth + 1), inside)
        case {"op": "flat", "inner": inner, **rest} if not rest:
            return Flat(expr_from_json(inner, depth + 1))
        case {"op": "scale", "factor": factor, "inner": inner, **rest} if not rest and _is_finite(
            factor
        ):
            return Scale(float(factor), expr_from_json(inner, depth + 1))
        case {"op": "weighted", "weights": list(weights), "inner": inner, **rest} if (
            not rest and all(_is_finite(weight) for weight in weights)
        ):
            numbers = tuple(float(weight) for weight in weights)
            return Weighted(numbers, expr_from_json(inner, depth + 1))
        case {"op": "sum", "terms": list(terms), **rest} if not rest:
            return Sum(tuple(expr_from_json(term, depth + 1) for term in terms))
        case {"op": str(op)} if op not in KNOWN_OPS:
            raise VersionError(f"unknown expression {op[:80]!r}")
    raise ArtifactError(f"malformed expression {str(record)[:120]}")


def _is_finite(number: Any) -> bool:
    """Whether JSON gave a number that float64 holds."""
    return type(number) in (int, float) and abs(number) <= sys.float_info.max
