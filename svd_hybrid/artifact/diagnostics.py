"""diagnostics.json, and the table beside it that holds its `per_parameter` in few bytes.

The table has one column for each number that does not follow from others: tensors are in the order
of the manifest, so it repeats no name, and of the eight numbers of an error it keeps five.
`read_diagnostics` gives back what a reader of the original diagnostics knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.files import read_manifest
from svd_hybrid.artifact.jsonfile import canonical_json, parse_json, read_json, read_limited
from svd_hybrid.artifact.manifest import Manifest, TensorRecord
from svd_hybrid.artifact.schema import validate
from svd_hybrid.errors import ArtifactError
from svd_hybrid.frames import compress, decompress_stated
from svd_hybrid.limits import MOST_JSON_BYTES

ENERGY_DIGITS = 7  # one number a tensor, which people compare with their own
VERSION = 1
PRECISIONS = ((4, 4, 4), (3, 2, 3), (2, 1, 3))
"""Digits of a number and of the largest and the mean error, and decimals of the angle."""
ALWAYS_FITS = 2048
LARGEST_SHARE = 64
"""The table has fewer digits when it would be larger than this part of the stored deltas."""
DERIVED_DIGITS = 6
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def read_diagnostics(folder: Path, manifest: Manifest | None = None) -> dict[str, Any]:
    """diagnostics.json with `per_parameter`, checked against its schema; empty without one.

    Args:
        folder: an artifact.
        manifest: its manifest, when it is at hand.

    Raises:
        ArtifactError: diagnostics.json or its table is not as the format says.
    """
    path, table = folder / layout.DIAGNOSTICS, folder / layout.DIAGNOSTICS_TENSORS
    if not path.is_file():
        return {}
    record: dict[str, Any] = read_json(path, "diagnostics")
    validate(record, "diagnostics-v1", str(path))
    if table.is_file() and "per_parameter" not in record:
        manifest = manifest or read_manifest(folder)
        try:
            data = decompress_stated(read_limited(table, "table"), MOST_JSON_BYTES)
            packed = parse_json(data, str(table))
            validate(packed, "diagnostics-tensors-v1", str(table))
            record["per_parameter"] = unpack(packed, manifest.tensors, manifest.tasks)
        except ArtifactError as error:
            error.where = error.where or str(table)
            raise
        except (IndexError, KeyError, ValueError) as error:
            raise ArtifactError("table fits no such artifact", where=str(table)) from error
    return record


def table_bytes(
    per_parameter: Mapping[str, Mapping[str, Any]],
    tensors: Sequence[TensorRecord],
    tasks: Sequence[str],
) -> bytes:
    """The content of the table's file: as precise as is small beside what is stored."""
    facts = per_parameter.values()
    stored = sum(sum(f.get("bytes", {}).values()) for f in facts)
    stored += sum(f.get("merge", {}).get("bytes", 0) for f in facts)
    for precision in PRECISIONS:
        packed = canonical_json(pack(per_parameter, tensors, tasks, precision))
        data = compress(packed, layout.INDEX_LEVEL)
        if len(data) <= max(ALWAYS_FITS, stored // LARGEST_SHARE):
            break
    return data


def pack(
    per_parameter: Mapping[str, Mapping[str, Any]],
    tensors: Sequence[TensorRecord],
    tasks: Sequence[str],
    precision: tuple[int, int, int] = PRECISIONS[0],
) -> dict[str, Any]:
    """The table of `per_parameter`; aliases are left out, for the manifest has them.

    Args:
        per_parameter: facts by name of tensor.
        tensors: of the manifest, all of them, in its order.
        tasks: names in order.
        precision: digits of the numbers and of the largest and mean errors, decimals of the angle.
    """
    listed = [i for i, t in enumerate(tensors) if t.name in per_parameter and t.alias is None]
    rows = [per_parameter[tensors[index].name] for index in listed]
    digits, fewer, decimals = precision
    columns: dict[str, list[Any]] = {
        "k": [row.get("k") for row in rows],
        "energy_retained": [_rounded(row.get("energy_retained"), ENERGY_DIGITS) for row in rows],
        "masked_size": [row.get("masked_size") for row in rows],
        "scalars": [row.get("basis", {}).get("D") for row in rows],
        "directions": [row.get("basis", {}).get("directions") for row in rows],
        "noise": [_packed_noise(row.get("noise_basis"), digits) for row in rows],
        "bytes": [row.get("bytes") for row in rows],
        "merge": [_packed_merge(row.get("merge"), digits) for row in rows],
    }
    packed: dict[str, Any] = {"diagnostics_version": VERSION, "tensors": _runs(listed)}
    packed |= {
        name: column
        for name, column in columns.items()
        if any(value is not None for value in column)
    }
    cells = [row.get("reconstruction_errors", {}).get(task) for row in rows for task in tasks]
    spread = [_spread(tensors[index]) for index in listed for _ in tasks]
    if any(cells):
        packed["errors"] = {
            "original_norm": numbers([c and c["original_norm"] for c in cells], digits),
            "error": numbers([c and _relative_or_absolute(c) for c in cells], digits),
            "angle": decimal_places([c and _angle(c) for c in cells], decimals),
            "largest": numbers(_of_error(cells, spread, "max_absolute_error"), fewer),
            "mean": numbers(_of_error(cells, spread, "mean_absolute_error"), fewer),
        }
    if any("relative_error_with_unstored" in row for row in rows):
        unstored = [
            row.get("relative_error_with_unstored", {}).get(task) for row in rows for task in tasks
        ]
        packed["unstored"] = numbers(unstored, digits)
        packed["masked"] = ["relative_error_with_unstored" in row for row in rows]
    return packed


def unpack(
    packed: Mapping[str, Any], tensors: Sequence[TensorRecord], tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """`per_parameter` of a table.

    Raises:
        IndexError, KeyError, ValueError: it is one of another artifact.
    """
    listed = [tensors[i] for first, count in packed["tensors"] for i in range(first, first + count)]
    count = len(listed)
    errors: list[dict[str, float | None] | None] = [None] * (count * len(tasks))
    if "errors" in packed:
        columns = {name: values_of(column) for name, column in packed["errors"].items()}
        spread = [_spread(tensor) for tensor in listed for _ in tasks]
        cells = zip(*(columns[n] for n in ERROR_COLUMNS), spread, strict=True)
        errors = [_error(*cell) for cell in cells]
    unstored = values_of(packed["unstored"]) if "unstored" in packed else []
    found = {}
    for row, tensor in enumerate(listed):
        facts: dict[str, Any] = {"param_name": tensor.name, "original_shape": list(tensor.shape)}
        one = {name: packed[name][row] for name in FACT_COLUMNS if name in packed}
        facts |= _facts({k: v for k, v in one.items() if v is not None}, tensor, tasks)
        own = slice(row * len(tasks), (row + 1) * len(tasks))
        known = {t: e for t, e in zip(tasks, errors[own], strict=True) if e is not None}
        if known:
            facts |= error_facts(known)
        if "unstored" in packed and packed["masked"][row]:
            facts["relative_error_with_unstored"] = dict(zip(tasks, unstored[own], strict=True))
        found[tensor.name] = facts
    for tensor in tensors:
        if tensor.alias is not None:
            found[tensor.name] = {
                "param_name": tensor.name,
                "original_shape": list(tensor.shape),
                "alias_of": tensor.alias,
            }
    return dict(sorted(found.items()))


FACT_COLUMNS = (
    *("k", "energy_retained", "masked_size", "scalars", "directions", "noise", "bytes", "merge"),
)
ERROR_COLUMNS = ("original_norm", "error", "angle", "largest", "mean")


def error_facts(errors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The errors of one tensor by task, and their statistics."""
    known = [e["relative_error"] for e in errors.values() if e["relative_error"] is not None]
    return {
        "reconstruction_errors": dict(errors),
        "mean_relative_error": _mean(known) if known else None,
        "std_relative_error": _deviation(known) if known else None,
        "max_relative_error": max(known, default=None),
        "min_relative_error": min(known, default=None),
    }


def _mean(values: Sequence[float]) -> float:  # statistics would be half of what inspect imports
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values]))


def _facts(one: Mapping[str, Any], tensor: TensorRecord, tasks: Sequence[str]) -> dict[str, Any]:
    """What the columns say of one tensor, in the words of the original diagnostics."""
    facts: dict[str, Any] = {"merge": one["merge"]} if "merge" in one else {}
    if "k" not in one:
        return facts
    count = math.prod(tensor.shape)
    stored = sum(one["bytes"].values())
    ratio = len(tasks) * count * ITEM_BYTES[tensor.dtype] / stored if stored else None
    facts |= {
        "masked_size": one["masked_size"],
        "unmasked_size": count - one["masked_size"],
        "k": one["k"],
        "energy_retained": one["energy_retained"],
        "basis": _basis(
            one["k"], one["scalars"], len(tasks), one["directions"], one["energy_retained"]
        ),
        "compression_ratios": dict.fromkeys(tasks, _rounded(ratio, 7)),
        "bytes": one["bytes"],
    }
    if "noise" in one:
        k, scalars, directions, energy = one["noise"]
        facts["noise_basis"] = _basis(k, scalars, len(tasks), directions, energy)
    return facts


def _basis(k: int, scalars: int, tasks: int, directions: int, energy: float) -> dict[str, Any]:
    return {"k": k, "D": scalars, "N": tasks, "directions": directions, "energy_retained": energy}


def _runs(ordinals: Sequence[int]) -> list[list[int]]:
    """Ascending integers as pairs of first and count.

    >>> _runs([0, 1, 2, 7])
    [[0, 3], [7, 1]]
    """
    runs: list[list[int]] = []
    for ordinal in ordinals:
        if runs and sum(runs[-1]) == ordinal:
            runs[-1][1] += 1
        else:
            runs.append([ordinal, 1])
    return runs


def _packed_noise(basis: Mapping[str, Any] | None, digits: int) -> list[Any] | None:
    if basis is None:
        return None
    energy = _rounded(basis["energy_retained"], ENERGY_DIGITS)
    return [basis["k"], basis["D"], basis["directions"], energy]


def _packed_merge(merge: Mapping[str, Any] | None, digits: int) -> dict[str, Any] | None:
    if merge is None:
        return None
    return {key: _rounded(value, digits) for key, value in merge.items()}


def _spread(tensor: TensorRecord) -> float:
    """The norm of an error whose numbers are all 1."""
    return math.sqrt(max(math.prod(tensor.shape), 1))


def _relative_or_absolute(cell: Mapping[str, Any]) -> float:
    """The relative error; where there was nothing to compare it with, the absolute one."""
    which = "absolute_error" if cell["relative_error"] is None else "relative_error"
    error: float = cell[which]
    return error


def _angle(cell: Mapping[str, Any]) -> float | None:
    """Between the error and lost signal, in half turns: 0 is all shrink, 0.5 all noise."""
    if cell["shrink"] is None or cell["noise"] is None:
        return None
    return math.atan2(cell["noise"], cell["shrink"]) / math.pi


def _of_error(
    cells: Sequence[Mapping[str, Any] | None], spread: Sequence[float], name: str
) -> list[float | None]:
    """Numbers in the unit of the weights over the root mean square of the error."""
    found: list[float | None] = []
    for cell, many in zip(cells, spread, strict=True):
        if cell is None:
            found.append(None)
        else:
            norm = cell["absolute_error"]
            found.append(cell[name] * many / norm if norm else 0.0)
    return found


def _error(
    norm: float | None,
    error: float | None,
    angle: float | None,
    largest: float | None,
    mean: float | None,
    spread: float,
) -> dict[str, float | None] | None:
    """The error of one task in one tensor; None where it was not measured."""
    if norm is None or error is None or largest is None or mean is None:
        return None
    absolute, shrink, noise = error, None, None
    rebuilt, relative = error, None if error else 0.0
    if angle is not None:  # else the task left the tensor alone
        absolute, relative = error * norm, error
        shrink, noise = error * math.cos(angle * math.pi), error * math.sin(angle * math.pi)
        rebuilt = norm * math.hypot(1 - shrink, noise)
    return {
        "absolute_error": _rounded(absolute, DERIVED_DIGITS),
        "relative_error": relative,
        "max_absolute_error": _rounded(largest * absolute / spread, DERIVED_DIGITS),
        "mean_absolute_error": _rounded(mean * absolute / spread, DERIVED_DIGITS),
        "original_norm": norm,
        "reconstructed_norm": _rounded(rebuilt, DERIVED_DIGITS),
        "shrink": _rounded(shrink, DERIVED_DIGITS),
        "noise": _rounded(noise, DERIVED_DIGITS),
    }


def _rounded(value: Any, digits: int) -> Any:
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def numbers(values: Sequence[float | None], digits: int) -> dict[str, Any]:
    """A column of numbers, `digits` figures each.

    >>> numbers([0.12345, -20.0, 0.0, None], 3)
    {'digits': '123200000000', 'exponents': [-3, -1, 0, None], 'negative': [1]}
    """
    figures, exponents = [], []
    for value in values:
        mantissa, exponent = f"{abs(value or 0.0):.{digits - 1}e}".split("e")
        figures.append(mantissa.replace(".", ""))
        exponents.append(None if value is None else int(exponent) - (digits - 1 if value else 0))
    negative = [index for index, value in enumerate(values) if value is not None and value < 0]
    column: dict[str, Any] = {"digits": "".join(figures), "exponents": exponents}
    return column | ({"negative": negative} if negative else {})


def decimal_places(values: Sequence[float | None], decimals: int) -> dict[str, Any]:
    """A column of numbers from 0 to 1, rounded to so many decimals.

    >>> decimal_places([0.5, 1.0, None], 2)
    {'digits': '050100000', 'exponents': [-2, -2, None]}
    """
    figures = [f"{round((value or 0.0) * 10**decimals):0{decimals + 1}d}" for value in values]
    exponents = [None if value is None else -decimals for value in values]
    return {"digits": "".join(figures), "exponents": exponents}


def values_of(column: Mapping[str, Any]) -> list[float | None]:
    """The numbers of a column.

    Raises:
        ValueError: it is malformed.

    >>> values_of(numbers([0.12345, -20.0, 0.0, None], 3))
    [0.123, -20.0, 0.0, None]
    """
    exponents, figures = column["exponents"], column["digits"]
    digits = len(figures) // max(len(exponents), 1)
    if digits * len(exponents) != len(figures):
        raise ValueError("a column has figures left over")
    values: list[float | None] = [
        None if e is None else float(f"{figures[i * digits : (i + 1) * digits]}e{e}")
        for i, e in enumerate(exponents)
    ]
    for index in column.get("negative", ()):
        values[index] = -(values[index] or 0.0)
    return values
