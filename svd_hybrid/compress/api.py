"""The public function behind `svd_hybrid.compress(...)`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.run import CompressRequest, CompressResult, Progress, run_compress


def compress(
    base: str | PathLike[str],
    tasks: Mapping[str, str | PathLike[str]],
    artifact_dir: str | PathLike[str],
    *,
    mask_dir: str | PathLike[str] | None = None,
    performance_file: str | PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **parameters: Any,
) -> CompressResult:
    """Compress a base and its fine-tunes into an artifact directory.

    Args:
        base: base checkpoint: safetensors or torch file, or HF folder.
        tasks: checkpoint by task name; the order is kept.
        artifact_dir: the directory to make.
        mask_dir: per-task masks.
        performance_file: JSON object task → accuracy.
        overwrite: replace an existing directory.
        progress: called with (step, done, total).
        **parameters: any key of the configuration, e.g. `low_bits=3`, `weighting="cluster"`.

    Raises:
        SvdhError: with what, where and fix; its class says what kind of fault it is.
    """
    request = CompressRequest(
        Path(base),
        {task: Path(path) for task, path in tasks.items()},
        Path(artifact_dir),
        resolve_config(parameters, "compress()"),
        None if mask_dir is None else Path(mask_dir),
        None if performance_file is None else Path(performance_file),
        overwrite,
    )
    return run_compress(request, progress)
