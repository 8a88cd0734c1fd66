"""`svdh verify`: every file is there, of its size and content, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svd_hybrid.artifact.files import check_file, foreign_files, read_manifest
from svd_hybrid.artifact.manifest import Manifest
from svd_hybrid.errors import ArtifactError, BaseMismatchError, SvdhError


@dataclass(slots=True)
class VerifyReport:
    """What was checked and what was wrong.

    Args:
        artifact_id: SHA-256 of the manifest.
        files: files whose size and digest were compared.
        tensors: base tensors compared; 0 when no base was given.
        problems: one error per fault; empty when the artifact is whole.
    """

    artifact_id: str
    files: int
    tensors: int = 0
    problems: list[SvdhError] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": not self.problems,
            "artifact_id": self.artifact_id,
            "files_checked": self.files,
            "base_tensors_checked": self.tensors,
            "problems": [problem.facts() for problem in self.problems],
        }


def verify(folder: Path, base: Path | None = None) -> VerifyReport:
    """Compare an artifact with its manifest and, when given, the base with its fingerprint.

    Raises:
        StorageError, ArtifactError, VersionError: there is no manifest to verify against.
    """
    manifest = read_manifest(folder)
    report = VerifyReport(manifest.artifact_id, len(manifest.files))
    for record in manifest.files:
        try:
            check_file(folder, record)
        except SvdhError as problem:
            report.problems.append(problem)
    for path in foreign_files(folder, manifest):
        report.problems.append(
            ArtifactError(
                "file is not part of the artifact",
                where=str(folder / path),
                fix="move it elsewhere; an artifact is never edited",
            )
        )
    if base is not None:
        _verify_base(manifest, base, report)
    return report


def _verify_base(manifest: Manifest, base: Path, report: VerifyReport) -> None:
    from svd_hybrid.artifact.fingerprint import check_names, check_tensor
    from svd_hybrid.io.reader import open_checkpoint

    reader = open_checkpoint(base)
    try:
        check_names(manifest, reader)
    except BaseMismatchError as problem:
        report.problems.append(problem)
        return
    for tensor in manifest.tensors:
        try:
            check_tensor(tensor, reader.read(tensor.name), reader.path)
        except BaseMismatchError as problem:
            report.problems.append(problem)
        report.tensors += 1
