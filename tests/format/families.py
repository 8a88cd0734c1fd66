"""Tiny families for the format tests, and ways to damage what was written of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import zstandard
from safetensors.torch import load_file, save_file
from torch import Tensor

import svd_hybrid
from svd_hybrid.artifact.jsonfile import canonical_json
from svd_hybrid.artifact.manifest import sealed

Tensors = dict[str, Tensor]


def write_family(
    folder: Path,
    base: Tensors,
    tasks: Mapping[str, Tensors],
    masks: Mapping[str, Tensors] | None = None,
) -> None:
    """`base.safetensors`, `<task>.safetensors` and `masks/<task>_mask.safetensors` in a folder."""
    save_file(base, folder / "base.safetensors")
    for task, tensors in tasks.items():
        save_file(tensors, folder / f"{task}.safetensors")
    if masks:
        (folder / "masks").mkdir(exist_ok=True)
        for task, tensors in masks.items():
            save_file(tensors, folder / "masks" / f"{task}_mask.safetensors")


def compress_family(folder: Path, tasks: list[str], **parameters: Any) -> Path:
    """The artifact of what `write_family` wrote, at `<folder>/artifact`."""
    masks = folder / "masks"
    svd_hybrid.compress(
        folder / "base.safetensors",
        {task: folder / f"{task}.safetensors" for task in tasks},
        folder / "artifact",
        mask_dir=masks if masks.is_dir() else None,
        **parameters,
    )
    return folder / "artifact"


def read_record(artifact: Path) -> dict[str, Any]:
    """The parsed manifest with its tensors, wherever those are."""
    record: dict[str, Any] = json.loads((artifact / "manifest.json").read_bytes())
    index = artifact / "index.json.zst"
    if index.exists():
        record |= json.loads(zstandard.decompress(index.read_bytes()))
    return record


def edit_manifest(artifact: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed manifest and its tensors, and write both back in canonical form, sealed."""
    record = read_record(artifact)
    index = artifact / "index.json.zst"
    change(record)
    if index.exists():
        content = {key: record.pop(key) for key in ("tensors", "rebuilt") if key in record}
        data = zstandard.compress(canonical_json(content))
        index.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        for file in record["files"]:
            if file["path"] == "index.json.zst":
                file |= {"bytes": len(data), "sha256": digest}
    (artifact / "manifest.json").write_bytes(canonical_json(sealed(record)))


def edit_arrays(artifact: Path, folder: str, change: Callable[[Tensors], object]) -> None:
    """Change the arrays of the one shard in a folder; name, size and digest follow."""
    (shard,) = (artifact / folder).iterdir()
    arrays = load_file(shard)
    change(arrays)
    shard.unlink()
    draft = artifact / folder / "draft"
    save_file(arrays, draft)
    data = draft.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    path = f"{folder}/{digest}.safetensors"
    draft.rename(artifact / path)

    def relist(record: dict[str, Any]) -> None:
        kept = [file for file in record["files"] if not file["path"].startswith(f"{folder}/")]
        kept.append({"path": path, "bytes": len(data), "sha256": digest})
        record["files"] = sorted(kept, key=lambda file: file["path"])

    edit_manifest(artifact, relist)


def random_delta(shape: tuple[int, ...], seed: int, size: float = 0.1) -> Tensor:
    """Float64 numbers with a decaying spectrum along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * size
    if x.ndim < 2:
        return x
    decay = 0.6 ** torch.arange(shape[0], dtype=torch.float64)
    return x * decay.reshape(-1, *[1] * (x.ndim - 1))
