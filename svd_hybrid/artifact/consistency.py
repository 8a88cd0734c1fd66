"""What a schema cannot say of a manifest: references resolve, counts agree, nothing twice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from svd_hybrid.artifact.blocks import block_count
from svd_hybrid.artifact.layout import BLOCK_DIGITS, SHARD_PATTERN, shard_folder
from svd_hybrid.artifact.merges import Merge, StoredMerge
from svd_hybrid.artifact.shapes import check_shapes
from svd_hybrid.delta.expr import parts_of, weights_of
from svd_hybrid.delta.serial import expr_from_json
from svd_hybrid.errors import ArtifactError, shorten
from svd_hybrid.limits import MOST_EXPRESSION_NODES

if TYPE_CHECKING:
    from svd_hybrid.artifact.manifest import Manifest, Span, TensorRecord

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes that have deltas; as in io.tensors, which needs torch."""


def check_consistent(manifest: Manifest, where: str) -> None:
    """Compare what a manifest says in one place with what it says in others.

    Raises:
        ArtifactError: at the first contradiction.
        VersionError: an expression this reader does not know.
    """
    try:
        _check_lists(manifest)
        for name, merge in manifest.merges.items():
            _check_merge(name, merge, manifest)
        by_name = {tensor.name: tensor for tensor in manifest.tensors}
        for tensor in manifest.tensors:
            _check_parts(tensor, manifest)
            _check_expressions(tensor, manifest)
            _check_kind(tensor, manifest, by_name)
    except ArtifactError as error:
        error.where = error.where or where
        raise


def _require(truth: bool, what: str) -> None:
    if not truth:
        raise ArtifactError(what)


def _check_lists(manifest: Manifest) -> None:
    names = [tensor.name for tensor in manifest.tensors]
    _require(names == sorted(set(names)), "tensors are not in ascending order of distinct names")
    paths = [file.path for file in manifest.files]
    _require(paths == sorted(set(paths)), "files are not in ascending order of distinct paths")
    for file in manifest.files:
        fits = len(file.blocks) == block_count(file.bytes) * BLOCK_DIGITS
        _require(
            not file.blocks or (fits and SHARD_PATTERN.fullmatch(file.path) is not None),
            f"file {file.path!r} has digests of other blocks than its own",
        )
    _require(manifest.default_merge in manifest.merges, "default_merge names no merge")
    if manifest.rebuilt is not None:
        known = set(manifest.rebuilt.tasks) <= set(manifest.tasks)
        known = known and set(manifest.rebuilt.merges) <= set(manifest.merges)
        _require(known, "digests of tasks or merges that are not there")


def _check_merge(name: str, merge: Merge, manifest: Manifest) -> None:
    stored = isinstance(merge, StoredMerge)
    numbers = merge.task_gains if isinstance(merge, StoredMerge) else merge.weights
    _require(
        len(numbers) == len(manifest.tasks) or (stored and not numbers),
        f"merge {name!r} has {len(numbers)} weights for {len(manifest.tasks)} tasks",
    )
    _require(manifest.holds_tasks or stored, f"merge {name!r} weighs tasks that are not stored")


def _check_parts(tensor: TensorRecord, manifest: Manifest) -> None:
    for name, part in tensor.parts.items():
        _require(
            part.codec < len(manifest.codecs),
            f"tensor {tensor.name!r}, part {name!r}: codec {part.codec} is not listed",
        )
        _require(
            part.rows * part.columns <= len(manifest.tasks) * max(1, math.prod(tensor.shape)),
            f"tensor {tensor.name!r}, part {name!r}: larger than the tensor in every task",
        )
        _require(
            part.held(len(manifest.tasks)) <= (len(manifest.tasks) if part.stacked else 1)
            and (part.slices is None or (part.stacked and part.spans is None)),
            f"tensor {tensor.name!r}, part {name!r}: slices of tasks that are not there",
        )
        for span in part.spans or ():
            _require(
                _lies_in(span, manifest, shard_folder(name)),
                f"tensor {tensor.name!r}, part {name!r}: a slice lies in no shard of its folder",
            )


def _lies_in(span: Span, manifest: Manifest, folder: str) -> bool:
    """Whether a slice is in a shard of that folder, which is large enough for it."""
    if not span.length:
        return span.file == 0
    if span.file >= len(manifest.files):
        return False
    file = manifest.files[span.file]
    known = SHARD_PATTERN.fullmatch(file.path) is not None
    return known and file.path.startswith(f"{folder}/") and span.offset + span.length < file.bytes


def _check_expressions(tensor: TensorRecord, manifest: Manifest) -> None:
    for name, entry in tensor.merges.items():
        known = manifest.merges.get(name)
        _require(
            isinstance(known, StoredMerge) and known.tasks == ("task" in entry),
            f"tensor {tensor.name!r} has expressions of merge {name!r}, "
            "which the manifest describes otherwise",
        )
    rows, columns = tensor.matrix_shape
    for expression in tensor.expressions:
        try:
            _require(
                _operations(expression) <= MOST_EXPRESSION_NODES,
                f"an expression has more than {MOST_EXPRESSION_NODES} operations",
            )
            expr = expr_from_json(expression)
            unknown = set(parts_of(expr)) - set(tensor.parts)
            _require(not unknown, f"no part {shorten(sorted(unknown))}")
            _require(
                all(len(weights) == len(manifest.tasks) for weights in weights_of(expr)),
                "an expression weighs another number of tasks",
            )
            check_shapes(expr, tensor.parts, (rows, columns), rows)
        except ArtifactError as error:
            error.what = f"tensor {tensor.name!r}: {error.what}"
            raise


def _operations(expression: Any) -> int:
    """Operations of an expression that may be anything JSON holds."""
    if isinstance(expression, list):
        return sum(map(_operations, expression))
    if not isinstance(expression, dict):
        return 0
    return 1 + sum(map(_operations, expression.values()))


def _check_kind(
    tensor: TensorRecord, manifest: Manifest, by_name: Mapping[str, TensorRecord]
) -> None:
    stores = bool(tensor.parts) or bool(tensor.expressions)
    _require(
        manifest.holds_tasks or (tensor.task is None and tensor.blend is None),
        f"tensor {tensor.name!r} holds tasks, the manifest says that it does not",
    )
    _require(
        tensor.dtype in FLOATS or not (stores or tensor.alias),
        f"tensor {tensor.name!r} is {tensor.dtype}, so it has no delta",
    )
    if tensor.alias is None:
        return
    target = by_name.get(tensor.alias)
    _require(
        target is not None
        and target.alias is None
        and (target.dtype, target.shape, target.sha256)
        == (tensor.dtype, tensor.shape, tensor.sha256)
        and not stores,
        f"tensor {tensor.name!r} is no true alias of {tensor.alias!r}",
    )
