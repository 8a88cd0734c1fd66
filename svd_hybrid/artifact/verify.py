"""`svdh verify`: every file is there, of its size and content, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svd_hybrid.artifact.files import check_file, foreign_files, read_manifest
from svd_hybrid.artifact.layout import SHARD_PATTERN
from svd_hybrid.artifact.manifest import Manifest
from svd_hybrid.artifact.shards import check_streams, string_bytes
from svd_hybrid.errors import ArtifactError, BaseMismatchError, SvdhError


@dataclass(slots=True)
class VerifyReport:
    """What was checked and what was wrong.

    Args:
        artifact_id: SHA-256 of the manifest.
        files: files whose size and digest were compared.
        tensors: base tensors compared; 0 when no base was given.
        problems: one error per fault; empty when the artifact is whole.
        slices: parts decoded, slice by slice; 0 unless the check was a deep one.
        rebuilt: tasks and stored merges rebuilt and compared; 0 unless deep, with a base.
    """

    artifact_id: str
    files: int
    tensors: int = 0
    problems: list[SvdhError] = field(default_factory=list)
    slices: int = 0
    rebuilt: int = 0

    def fault(self) -> SvdhError | None:
        """All problems as one error, of their class if they have one in common; None without any.

        What is wrong with the artifact itself counts before a base that is not its own.
        """
        if len(self.problems) < 2:
            return self.problems[0] if self.problems else None
        own = [p for p in self.problems if not isinstance(p, BaseMismatchError)] or self.problems
        kinds = {type(problem) for problem in own}
        kind = kinds.pop() if len(kinds) == 1 else ArtifactError
        first = own[0]
        return kind(
            f"{len(self.problems)} problems, the first: {first.what}",
            where=first.where,
            fix=first.fix or kind.usual_fix,
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": not self.problems,
            "artifact_id": self.artifact_id,
            "files_checked": self.files,
            "base_tensors_checked": self.tensors,
            "slices_decoded": self.slices,
            "selections_rebuilt": self.rebuilt,
            "problems": [problem.facts() for problem in self.problems],
        }


def verify(folder: Path, base: Path | None = None, expect: str | None = None) -> VerifyReport:
    """Compare an artifact with its manifest and, when given, the base with its fingerprint.

    Args:
        folder: the artifact.
        base: its base.
        expect: the artifact's id, when only that artifact will do.

    Raises:
        StorageError, ArtifactError, VersionError: there is no manifest to verify against.
    """
    manifest = read_manifest(folder, expect)
    report = VerifyReport(manifest.artifact_id, len(manifest.files))
    strings = string_bytes(manifest)
    for record in manifest.files:
        try:
            path = check_file(folder, record)
            if SHARD_PATTERN.fullmatch(record.path):
                check_streams(path, strings.get(record.path, {}))
        except SvdhError as problem:
            report.problems.append(problem)
    for foreign in foreign_files(folder, manifest):
        report.problems.append(
            ArtifactError(
                "file is not part of the artifact",
                where=str(folder / foreign),
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
