"""The public function behind `svd_hybrid.reload(...)`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from svd_hybrid.io.model_writer import DEFAULT_SHARD_BYTES
from svd_hybrid.reload.run import Progress, ReloadResult, run_reload


def reload(
    artifact_dir: str | PathLike[str],
    base: str | PathLike[str],
    output_path: str | PathLike[str],
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
    """Rebuild the merged model, one fine-tune or a new weighting, and write it.

    Args:
        artifact_dir: the directory compress wrote.
        base: base checkpoint: safetensors or torch file, or HF folder.
        output_path: `*.safetensors`, `*.pt|.pth|.bin`, or a folder (HF layout).
        task: one fine-tune.
        weights: task → weight for a new weighting; every task named.
        merge: a stored merge; the default one when nothing is given.
        dtype: F64, F32, F16 or BF16; None keeps the base's dtypes.
        max_shard_bytes: largest weight file of an HF folder.
        overwrite: replace an existing output.
        expect: `sha256:` and the artifact's id, when only that artifact will do.
        progress: called with (step, done, total).

    Raises:
        SvdhError: with what, where and fix; its class says what kind of fault it is.
    """
    return run_reload(
        Path(artifact_dir),
        Path(base),
        Path(output_path),
        task=task,
        weights=weights,
        merge=merge,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
        expect=expect,
        progress=progress,
    )
