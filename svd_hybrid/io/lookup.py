"""From a folder and a task name to a file, and from a spelling to a known name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from svd_hybrid.errors import FamilyError, StorageError, UsageError
from svd_hybrid.io.reader import ADAPTER_ENTRY, FOLDER_ENTRIES
from svd_hybrid.registry import did_you_mean

FILE_SUFFIXES = (".safetensors", ".pt", ".pth")
FOLDER_FILES = ("checkpoint.pt", "model.pt", "finetuned.pt")


def fold_name(name: str) -> str:
    """The spelling-insensitive form: case, `_` and `-` do not count.

    >>> fold_name("Euro_SAT")
    'eurosat'
    """
    return name.casefold().replace("_", "").replace("-", "")


def match_name(name: str, known: Iterable[str], kind: str, where: str) -> str:
    """The known name that `name` means: exactly, else folded if that is unambiguous.

    Raises:
        UsageError: none matches, or several do.
    """
    names = list(known)
    if name in names:
        return name
    close = [candidate for candidate in names if fold_name(candidate) == fold_name(name)]
    if len(close) == 1:
        return close[0]
    if close:
        raise UsageError(
            f"{kind} {name!r} is ambiguous: " + ", ".join(map(repr, sorted(close))),
            where=where,
            fix="spell it exactly as one of them",
        )
    raise UsageError(f"no {kind} {name!r}", where=where, fix=did_you_mean(name, names))


def find_task_checkpoint(folder: Path, task: str) -> Path:
    """The checkpoint of a task inside a folder, looked up as the original commands did.

    `<task>.safetensors|.pt|.pth`, then `<task>/` as HF folder or LoRA adapter, then
    `<task>/checkpoint.pt|model.pt|finetuned.pt`; the task's spelling may differ from the file's in
    case, `_` and `-` when only one entry matches.

    Raises:
        StorageError: the folder does not exist.
        FamilyError: the task has no checkpoint there, or two equally good ones.
    """
    if not folder.is_dir():
        raise StorageError("checkpoint folder does not exist", where=str(folder))
    candidates: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() or entry.suffix in FILE_SUFFIXES:
            candidates.setdefault(entry.name if entry.is_dir() else entry.stem, []).append(entry)
    try:
        stem = match_name(task, candidates, "checkpoint for task", str(folder))
    except UsageError as error:
        raise FamilyError(
            error.what,
            where=error.where,
            fix=error.fix if candidates else f"put {task}.safetensors, {task}.pt or {task}/ there",
        ) from error
    files = {entry.suffix: entry for entry in candidates[stem] if entry.is_file()}
    for suffix in FILE_SUFFIXES:
        if suffix in files:
            return files[suffix]
    task_folder = folder / stem
    if any((task_folder / name).is_file() for name in (*FOLDER_ENTRIES, ADAPTER_ENTRY)):
        return task_folder
    for name in FOLDER_FILES:
        if (task_folder / name).is_file():
            return task_folder / name
    if len(list(task_folder.glob("*.safetensors"))) == 1:
        return task_folder
    raise FamilyError(
        f"task {task!r} has a folder without a checkpoint",
        where=str(task_folder),
        fix="it needs " + ", ".join((*FOLDER_ENTRIES[1::2], *FOLDER_FILES, ADAPTER_ENTRY)),
    )
