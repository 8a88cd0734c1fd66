"""Samples in rows with named fields: .jsonl and .parquet files, and datasets with splits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svd_hybrid.data.examples import Chosen, Examples, Kind, no_classes
from svd_hybrid.data.extra import require
from svd_hybrid.data.images import decoded
from svd_hybrid.data.labels import numbered
from svd_hybrid.data.source import Source
from svd_hybrid.errors import DataError, shorten

TOKEN_FIELD = "input_ids"  # noqa: S105 # a column of token ids


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the columns.

    Args:
        text, image, label: of what they hold.
        task: where a row says which task it belongs to; rows of other tasks are left out.
    """

    text: str = "text"
    image: str = "image"
    label: str = "label"
    task: str = "task"


def jsonl_file(path: Path, task: str, fields: Fields) -> Examples:
    """One JSON object per line.

    Raises:
        DataError: a line is none, or the fields are not there.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"no JSON: {error}", where=f"{path}, line {number}") from error
            if not isinstance(row, dict):
                raise DataError("no JSON object", where=f"{path}, line {number}")
            rows.append(row)
    return from_rows(rows, task, fields, str(path))


def parquet_file(path: Path, task: str, fields: Fields) -> Examples:
    """A parquet file with an image column (encoded bytes) or a text column.

    Raises:
        DataError: it is none, or the fields are not there.
    """
    parquet = require("pyarrow.parquet", "reading parquet files")
    arrow = require("pyarrow", "reading parquet files")
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"no parquet file: {str(error)[:200]}", where=str(path)) from error
    return from_rows(table.to_pylist(), task, fields, str(path))


def dataset(source: Source, task: str, fields: Fields) -> Examples:
    """A split of a dataset: a folder written by `save_to_disk`, or a name `load_dataset` knows.

    `NAME:CONFIG` chooses a configuration. Samples are read when asked for.

    Raises:
        DataError: it cannot be loaded, has no such split, or lacks the fields.
    """
    datasets = require("datasets", "loading a dataset")
    where = str(source)
    try:
        on_disk = source.path.is_dir()
        name, _, config = source.name.partition(":")
        found = (
            datasets.load_from_disk(source.name)
            if on_disk
            else datasets.load_dataset(name, config or None)
        )
    except Exception as error:  # the library raises what its loaders, parsers and network raise
        raise DataError(
            f"dataset cannot be loaded: {type(error).__name__}: {str(error)[:200]}",
            where=where,
            fix="check the name, or download it and pass the folder or files",
        ) from error
    if isinstance(found, Mapping):
        splits = list(found)
        if source.split not in splits:
            asked = f"no split {source.split!r}" if source.split else "no split was named"
            raise DataError(
                f"{asked}; the dataset has {shorten(splits, 8)}",
                where=where,
                fix=f"write {source.name}@{splits[0]}",
            )
        found = found[source.split]
    elif source.split:
        raise DataError(f"no split {source.split!r}: the folder holds one table", where=where)
    if fields.image in found.column_names:
        found = found.cast_column(fields.image, datasets.Image(decode=False))
    return from_rows(found, task, fields, where)


def from_rows(rows: Sequence[Mapping[str, Any]], task: str, fields: Fields, where: str) -> Examples:
    """Samples of the task's rows.

    Raises:
        DataError: no rows, none of this task, or no column svdh can use.
    """
    if not rows:
        raise DataError("data has no samples", where=where)
    if fields.task in rows[0]:
        named = _column(rows, fields.task)
        tasks = sorted({str(name) for name in named})
        chosen = tuple(number for number, name in enumerate(named) if name == task)
        rows = Chosen(rows, chosen)
        if not chosen:
            raise DataError(
                f"no rows of task {task!r}; field {fields.task!r} has {shorten(tasks, 8)}",
                where=where,
                fix="name the task as the data does, or pass --task-field NAME",
            )
    kinds: tuple[tuple[Kind, str], ...] = (
        ("images", fields.image),
        ("text", fields.text),
        ("tokens", TOKEN_FIELD),
    )
    for kind, column in kinds:
        if column in rows[0]:
            inputs: Sequence[Any] = Cells(rows, kind, column, where)
            if isinstance(rows, list):
                inputs = list(inputs)
            labels, classes = None, no_classes()
            if fields.label in rows[0]:
                labels, classes = numbered(_column(rows, fields.label), where)
            return Examples(kind, inputs, where, labels, classes)
    raise DataError(
        f"no column {fields.text!r}, {fields.image!r} or {TOKEN_FIELD!r}; "
        f"there are {shorten(sorted(rows[0]), 8)}",
        where=where,
        fix="pass --text-field NAME or --image-field NAME",
    )


class Cells(Sequence[Any]):
    """The samples of a column, checked and decoded when asked for."""

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], kind: Kind, column: str, where: str
    ) -> None:
        self.rows = rows
        self.kind = kind
        self.column = column
        self.where = where

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return _cell(self.kind, self.rows[index], self.column, self.where)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """One column, without decoding the others."""
    if isinstance(rows, Chosen):
        whole = _column(rows.items, name)  # type: ignore[arg-type] # rows of rows
        return [whole[number] for number in rows.indices]
    if hasattr(rows, "column_names"):
        return list(rows.select_columns([name])[name])  # type: ignore[attr-defined]
    return [row.get(name) for row in rows]


def _cell(kind: Kind, row: Mapping[str, Any], column: str, where: str) -> Any:
    value = row.get(column)
    if kind == "text" and isinstance(value, str):
        return value
    if kind == "tokens" and isinstance(value, Sequence) and not isinstance(value, str):
        return np.asarray(value, dtype=np.int64)
    if kind == "images":
        if isinstance(value, Mapping):
            value = value.get("bytes")
        if isinstance(value, bytes):
            return decoded(value, where)
    raise DataError(
        f"field {column!r} of a row holds {type(value).__name__}, which is no {kind}", where=where
    )
