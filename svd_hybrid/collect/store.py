"""Files of a collection: finished ones per task, and pieces of one that is under way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from svd_hybrid.collect.record import StatisticsRecord
from svd_hybrid.errors import StorageError, UsageError
from svd_hybrid.io.locks import locked
from svd_hybrid.io.new_file import make_folders, remove_tree, write_file
from svd_hybrid.io.safetensors_reader import SafetensorsReader
from svd_hybrid.io.safetensors_writer import SafetensorsWriter
from svd_hybrid.io.staging import staged_file
from svd_hybrid.io.tensors import info_of

PIECES = ".partial"
ROWS = "rows"


class StatisticsStore:
    """A folder with `<task>.safetensors` files.

    Args:
        folder: made with the first file in it.

    Raises:
        StorageError: it is a file, or lies in no folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise StorageError(
                "output is a file", where=str(folder), fix="choose another --output-dir"
            )
        if not folder.absolute().parent.is_dir():
            raise StorageError(
                "folder of the output does not exist",
                where=str(folder.absolute().parent),
                fix="create it first",
            )

    def path(self, task: str) -> Path:
        """Where a task's file goes.

        Raises:
            UsageError: the task's name is no file name.
        """
        if Path(task).name != task or task.startswith("."):
            raise UsageError(
                f"task name {task!r} is no file name", fix="name it with --task NAME=PATH"
            )
        return self.folder / f"{task}.safetensors"

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep other runs from collecting into the folder; one made for nothing goes again.

        Raises:
            LockedError: another run collects there.
            StorageError, OSError: the folder cannot be made or written.
        """
        is_new = not self.folder.exists()
        _make(self.folder)
        try:
            with locked(self.folder.absolute() / "collect"):
                yield
        finally:
            if is_new and not any(self.folder.iterdir()):
                remove_tree(self.folder)

    def finished(self, record: StatisticsRecord, overwrite: bool) -> StatisticsRecord | None:
        """The record of the task's file if it is there already; else None.

        Raises:
            StorageError: one of other weights, data or settings is, and may not be replaced.
        """
        path = self.path(record.task)
        if not path.exists():
            return None
        stored = read_record(path)
        if stored is None:
            raise StorageError(
                "file in the output's place holds no statistics of svdh stats collect",
                where=str(path),
                fix="choose another --output-dir; nothing there is touched",
            )
        if overwrite:
            return None
        if stored.key == record.key:
            self._drop_pieces(record.task)
            return stored
        raise StorageError(
            f"statistics of task {record.task!r} are there, of other weights, data or settings",
            where=str(path),
            fix="choose another --output-dir, or pass --overwrite",
        )

    def piece(self, record: StatisticsRecord, group: str) -> Path:
        """Where one group of layers waits for the others."""
        return self.folder / PIECES / f"{record.task}-{record.key[:16]}" / f"{group}.safetensors"

    def has_piece(self, record: StatisticsRecord, group: str) -> bool:
        """Whether a group was finished by an earlier run."""
        return self.piece(record, group).is_file()

    def keep_piece(
        self, record: StatisticsRecord, group: str, means: Mapping[str, tuple[Tensor, int]]
    ) -> None:
        """Store one group of layers, mean and number of inputs each, whole or not at all."""
        path = self.piece(record, group)
        _make(path.parent)
        rows = {name: count for name, (_, count) in means.items()}
        with staged_file(path, overwrite=True) as target:
            infos = {name: info_of(mean) for name, (mean, _) in means.items()}
            with SafetensorsWriter(target, infos, {ROWS: json.dumps(rows)}) as writer:
                for name in writer.order:
                    writer.write(name, means[name][0])

    def stored_names(self, record: StatisticsRecord, groups: list[str]) -> set[str]:
        """Weights of which these groups hold statistics."""
        readers = (SafetensorsReader(self.piece(record, group)) for group in groups)
        return {name for reader in readers for name in reader.infos}

    def finish(self, record: StatisticsRecord, groups: list[str]) -> StatisticsRecord:
        """Join the groups into the task's file and drop them; the record as it was stored."""
        readers = [SafetensorsReader(self.piece(record, group)) for group in groups]
        owner = {name: reader for reader in readers for name in reader.infos}
        rows = {
            name: count
            for reader in readers
            for name, count in json.loads(metadata_of(reader.path)[ROWS]).items()
        }
        whole = replace(record, rows=dict(sorted(rows.items())))
        infos = {name: owner[name].infos[name] for name in sorted(owner)}
        with (
            staged_file(self.path(record.task), overwrite=True) as target,
            SafetensorsWriter(target, infos, whole.metadata()) as writer,
        ):
            for name in writer.order:
                writer.write(name, owner[name].read(name))
        self._drop_pieces(record.task)
        return whole

    def _drop_pieces(self, task: str) -> None:
        """Remove what finished and abandoned runs of a task left."""
        pieces = self.folder / PIECES
        if not pieces.is_dir():
            return
        for folder in pieces.iterdir():
            if folder.name.rpartition("-")[0] == task:
                remove_tree(folder)
        if not any(pieces.iterdir()):
            remove_tree(pieces)

    def write_summary(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """`statistics.json`, for people; nothing reads it."""
        with staged_file(self.folder / "statistics.json", overwrite=True) as target:
            text = json.dumps({"tasks": records}, indent=1, ensure_ascii=False, sort_keys=True)
            write_file(target, f"{text}\n".encode())


def _make(folder: Path) -> None:
    try:
        make_folders(folder.absolute())
    except OSError as error:
        raise StorageError(
            f"cannot make the folder: {error.strerror}",
            where=str(folder),
            fix="choose another --output-dir",
        ) from error


def metadata_of(path: Path) -> dict[str, str]:
    """String pairs of a safetensors header; empty for other files."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def read_record(path: Path) -> StatisticsRecord | None:
    """The record of a statistics file; None where it has none.

    Raises:
        FamilyError: of a version or shape this program does not know.
    """
    return StatisticsRecord.read(metadata_of(path), str(path))
