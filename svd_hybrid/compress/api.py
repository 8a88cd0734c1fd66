"""The public function behind `svd_hybrid.compress(...)`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from svd_hybrid.artifact.files import read_manifest
from svd_hybrid.artifact.stable import read_stable
from svd_hybrid.compress.append.config import append_config
from svd_hybrid.compress.append.run import AppendRequest, run_append
from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.request import CompressRequest, CompressResult
from svd_hybrid.compress.run import run_compress
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.task_weights import weights_by_task
from svd_hybrid.errors import UsageError
from svd_hybrid.methods import METHODS


def compress(
    base: str | PathLike[str],
    tasks: Mapping[str, str | PathLike[str]],
    artifact_dir: str | PathLike[str],
    *,
    mask_dir: str | PathLike[str] | None = None,
    performance_file: str | PathLike[str] | None = None,
    statistics_dir: str | PathLike[str] | None = None,
    from_artifact: str | PathLike[str] | None = None,
    append: bool = False,
    replace: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    **parameters: Any,
) -> CompressResult:
    """Compress a base and its fine-tunes into an artifact directory.

    Args:
        base: base checkpoint: safetensors or torch file, or HF folder.
        tasks: checkpoint by task name; the order is kept. Empty with `from_artifact` to merge what
            that artifact holds.
        artifact_dir: the directory to make.
        mask_dir: per-task masks.
        performance_file: JSON object task → accuracy.
        statistics_dir: per-task layer statistics.
        from_artifact: an artifact of this base whose content is kept beside the new merge.
        append: add the tasks to those of `from_artifact`, which stay as they are; no merge is made.
        replace: with `append`, let them take the place of stored tasks of the same names.
        overwrite: replace an existing directory.
        workers: processes that encode tensors side by side, each with the memory of one; they
            change no bit of the artifact. With `append` there is one.
        progress: called with (step, done, total).
        **parameters: any key of the configuration, e.g. `low_bits=3`, `weighting="cluster"`.

    Raises:
        SvdhError: with what, where and fix; its class says what kind of fault it is.
    """
    where = "compress()"
    if append or replace:
        extras = (mask_dir, performance_file, statistics_dir)
        extra = workers != 1 or any(path is not None for path in extras)
        if not append or from_artifact is None or extra:
            raise UsageError(
                "append needs from_artifact, and replace append; masks, files for merging and "
                "workers have no meaning with them",
                where=where,
            )
        artifact = Path(from_artifact)
        manifest = read_stable(artifact, lambda: read_manifest(artifact))
        appended = AppendRequest(
            Path(base),
            {task: Path(path) for task, path in tasks.items()},
            artifact,
            Path(artifact_dir),
            append_config(parameters, where, artifact, manifest),
            replace,
            overwrite,
        )
        return run_append(appended, progress)
    if isinstance(parameters.get("weights"), Mapping):
        parameters["weights"] = weights_by_task(
            parameters["weights"], list(tasks), _path(from_artifact), where
        )
    if from_artifact is not None and "method" in parameters:
        parameters.setdefault("merge_name", METHODS[parameters["method"]].name)
    request = CompressRequest(
        Path(base),
        {task: Path(path) for task, path in tasks.items()},
        Path(artifact_dir),
        resolve_config(parameters, where),
        mask_dir=_path(mask_dir),
        performance_file=_path(performance_file),
        statistics_dir=_path(statistics_dir),
        from_artifact=_path(from_artifact),
        overwrite=overwrite,
        workers=workers,
    )
    return run_compress(request, progress)


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
