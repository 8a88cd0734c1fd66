"""reload: base + artifact → weights, one tensor at a time. Knows expressions, never methods.

selection (task | weights | merge) ─► per tensor: base read and checked ─► expression evaluated in
row blocks ─► base + delta, rounded once ─► written
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from svd_hybrid.artifact.files import directory_bytes
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.stable import restarted
from svd_hybrid.errors import UsageError
from svd_hybrid.io.model_writer import DEFAULT_SHARD_BYTES, model_kind, write_model
from svd_hybrid.io.outputs import check_free, protect_inputs
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.reload.rebuild import Rebuilder
from svd_hybrid.reload.selection import select

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload wrote.

    Args:
        output_path: file or folder.
        selection: for people.
        artifact_id: of the artifact it came from.
        tensors: tensors written.
        bytes_written: size of the output.
        wall_s, cpu_s: time of the run.
    """

    output_path: Path
    selection: str
    artifact_id: str
    tensors: int
    bytes_written: int
    wall_s: float
    cpu_s: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "output_path": str(self.output_path),
            "selection": self.selection,
            "artifact_id": self.artifact_id,
            "tensors": self.tensors,
            "bytes_written": self.bytes_written,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }


@restarted
def run_reload(
    artifact_dir: Path,
    base: Path,
    output_path: Path,
    *,
    task: str | None = None,
    weights: Mapping[str, float] | None = None,
    merge: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    expect: str | None = None,
    progress: Progress | None = None,
) -> ReloadResult:
    """Rebuild a model and write it.

    Args:
        artifact_dir: what compress wrote.
        base: the base checkpoint it was made from.
        output_path: `*.safetensors`, `*.pt|.pth|.bin`, or a folder in HF layout.
        task: one fine-tune; see `select` for how task, weights and merge go together.
        weights: task → weight.
        merge: a stored merge.
        dtype: F64, F32, F16 or BF16 for float tensors; None for the merge's, else the base's.
        max_shard_bytes: largest weight file of an HF folder.
        overwrite: replace an existing output.
        expect: the artifact's id, when only that artifact will do.
        progress: called with ("reload", done, total).

    Raises:
        SvdhError: each with its class: usage, artifact, base mismatch, storage.
    """
    wall, cpu = time.monotonic(), time.process_time()
    if max_shard_bytes < 1:
        raise UsageError(f"max_shard_bytes is {max_shard_bytes}, must be 1 or more")
    artifact = ArtifactReader.open(artifact_dir, expect)
    selection = select(artifact.manifest, task=task, weights=weights, merge=merge)
    if artifact_dir.resolve() in output_path.resolve().parents:
        raise UsageError(
            "output lies inside the artifact, which is never edited",
            where=str(output_path),
            fix="choose another output path",
        )
    protect_inputs(output_path, (base, artifact_dir))
    check_free(output_path, overwrite, model_kind(output_path))
    rebuilder = Rebuilder(artifact, open_checkpoint(base), selection, dtype)
    infos = rebuilder.infos
    done = 0

    def stream(names: list[str]) -> Iterator[tuple[str, Tensor]]:
        nonlocal done
        for name in names:
            yield name, rebuilder.tensor(name)
            done += 1
            if progress:
                progress("reload", done, len(infos))

    write_model(
        output_path,
        infos,
        stream,
        base=base,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
    )
    return ReloadResult(
        output_path,
        selection.label,
        artifact.manifest.artifact_id,
        len(infos),
        directory_bytes(output_path) if output_path.is_dir() else output_path.stat().st_size,
        time.monotonic() - wall,
        time.process_time() - cpu,
    )
