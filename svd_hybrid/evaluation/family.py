"""A family folder: base, a folder per task, heads and test data side by side.

    base/               HF folder; may lie elsewhere
    <task>/             HF folder, or a single .safetensors file in it
    heads.safetensors   <task>.weight, <task>.bias
    test_data.npz       <task>_images and <task>_labels, or <task>: rows of token ids
    test_data.jsonl     rows with task, text, label

Heads and images are scored as `vision`, heads and text as `text`, token ids without heads as
`perplexity`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svd_hybrid.errors import StorageError, UsageError

HEADS = "heads.safetensors"
DATA = ("test_data.npz", "test_data.jsonl")
BASE = "base"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class FamilyFolder:
    """What a family folder holds.

    Args:
        base: its base; None when there is none.
        tasks: checkpoint by task, sorted by name.
        heads: file of heads; None when there is none.
        data: file of test data.
        evaluator: which one these make.
    """

    base: Path | None
    tasks: dict[str, Path]
    heads: Path | None
    data: Path
    evaluator: str


def open_family_folder(folder: Path) -> FamilyFolder:
    """See what is there.

    Raises:
        StorageError: there is no such folder.
        UsageError: it has no test data, or two files of them.
    """
    if not folder.is_dir():
        raise StorageError("family folder does not exist", where=str(folder))
    data = [folder / name for name in DATA if (folder / name).is_file()]
    if len(data) != 1:
        raise UsageError(
            "family folder has " + ("two files of test data" if data else "no test data"),
            where=str(folder),
            fix="keep one of " + " and ".join(DATA) + ", or pass --evaluator, --data and --heads",
        )
    heads = folder / HEADS
    has_heads = heads.is_file()
    tasks = {
        entry.name: entry
        for entry in sorted(folder.iterdir())
        if entry.name != BASE and entry.is_dir() and _is_fine_tune(entry)
    }
    kinds = {(True, ".npz"): "vision", (True, ".jsonl"): "text", (False, ".npz"): "perplexity"}
    evaluator = kinds.get((has_heads, data[0].suffix), "text")
    base = folder / BASE
    return FamilyFolder(
        base if base.is_dir() else None, tasks, heads if has_heads else None, data[0], evaluator
    )


def _is_fine_tune(entry: Path) -> bool:
    """Whether it holds a whole or partial checkpoint; adapters are named by --task instead."""
    if (entry / ADAPTER).is_file():
        return False
    return (entry / "model.safetensors.index.json").is_file() or (
        len(list(entry.glob("*.safetensors"))) == 1
    )
