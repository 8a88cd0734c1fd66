"""What a run of compress is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd_hybrid.artifact.manifest import Manifest
from svd_hybrid.compress.config import CompressConfig


@dataclass(frozen=True, slots=True)
class CompressRequest:
    """One run: what to read, where to write, and the configuration.

    Args:
        base: base checkpoint.
        tasks: checkpoint by task name; the order is kept everywhere. Empty to read the deltas
            from `from_artifact`.
        artifact_dir: the directory to make.
        config: everything else that decides its content.
        mask_dir: per-task masks; None for whole tensors.
        performance_file: task → accuracy; needed for performance weighting.
        statistics_dir: per-task layer statistics, for methods that read them.
        from_artifact: an artifact of this base whose content is kept beside the new merge.
        overwrite: replace an existing directory, whole.
        workers: processes that encode; they change no bit of the artifact.
    """

    base: Path
    tasks: Mapping[str, Path]
    artifact_dir: Path
    config: CompressConfig
    mask_dir: Path | None = None
    performance_file: Path | None = None
    statistics_dir: Path | None = None
    from_artifact: Path | None = None
    overwrite: bool = False
    workers: int = 1


@dataclass(frozen=True, slots=True)
class CompressResult:
    """What a run made.

    Args:
        artifact_dir: the published directory.
        manifest: its manifest.
        bytes: sizes and ratios, as in diagnostics.json.
        relative_error: over all tasks and tensors; None when not measured.
        task_errors: the same per task.
        merge_error: of the stored merge against what the method computed; None for a weighting.
        weights: effective weight per task.
        notes: what the user should know.
        wall_s, cpu_s: time of the run.
    """

    artifact_dir: Path
    manifest: Manifest
    bytes: Mapping[str, Any]
    relative_error: float | None
    task_errors: Mapping[str, float | None]
    merge_error: float | None
    weights: Mapping[str, float]
    notes: tuple[str, ...]
    wall_s: float
    cpu_s: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "artifact_dir": str(self.artifact_dir),
            "artifact_id": self.manifest.artifact_id,
            "bytes": dict(self.bytes),
            "relative_error": self.relative_error,
            "task_errors": dict(self.task_errors),
            "merge_error": self.merge_error,
            "weights": dict(self.weights),
            "notes": list(self.notes),
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }
