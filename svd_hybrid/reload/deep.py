"""`svdh verify --deep`: every part decodes, and what is rebuilt is what the writer rebuilt."""

from __future__ import annotations

from pathlib import Path

import torch

from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.verify import VerifyReport, verify
from svd_hybrid.errors import ArtifactError, SvdhError
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.reload.digests import Progress, rebuild_digests, recorded_selections


def verify_deep(
    folder: Path,
    base: Path | None = None,
    progress: Progress | None = None,
    expect: str | None = None,
) -> VerifyReport:
    """As `verify`; then decode every part and, with a base, rebuild every task and stored merge.

    Args:
        folder: the artifact.
        base: its base; without it nothing is rebuilt.
        progress: called with (step, done, total).
        expect: the artifact's id, when only that one will do.

    Raises:
        StorageError, ArtifactError, VersionError: there is no manifest to verify against.
    """
    report = verify(folder, base, expect)
    if report.problems:
        return report  # what is damaged or no base of it gives no news when decoded
    artifact = ArtifactReader.open(folder, expect)
    artifact.vouched = base is not None
    _decode_all(artifact, report, progress)
    if base is not None and not report.problems:
        _rebuild_all(artifact, base, report, progress)
    return report


def _decode_all(artifact: ArtifactReader, report: VerifyReport, progress: Progress | None) -> None:
    manifest = artifact.manifest
    for done, record in enumerate(manifest.tensors, start=1):
        parts = artifact.parts(record)
        for name, part in record.parts.items():
            held = part.held(len(manifest.tasks))
            for task in range(held) if part.stacked else (None,):
                try:
                    values = parts.decode(name, task)
                    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                        raise ArtifactError(
                            "part holds NaN or infinity",
                            where=f"tensor {record.name!r}, part {name!r} in {artifact.folder}",
                        )
                except SvdhError as problem:
                    report.problems.append(problem)
                report.slices += 1
        if progress:
            progress("decode", done, len(manifest.tensors))


def _rebuild_all(
    artifact: ArtifactReader, base: Path, report: VerifyReport, progress: Progress | None
) -> None:
    rebuilt = artifact.manifest.rebuilt
    selections = recorded_selections(artifact.manifest)
    found = rebuild_digests(artifact, open_checkpoint(base), selections, progress)
    for (kind, name), digest in found.items():
        known = {} if rebuilt is None else rebuilt.tasks if kind == "task" else rebuilt.merges
        if name not in known:
            continue  # an overflow that the writer met too, or an artifact without digests
        report.rebuilt += 1
        if isinstance(digest, ArtifactError):
            report.problems.append(digest)
        elif digest != known[name]:
            report.problems.append(
                ArtifactError(
                    f"{kind} {name!r} is rebuilt to other bits than the writer rebuilt "
                    f"(sha256 {digest[:12]}…, the manifest has {known[name][:12]}…)",
                    where=str(artifact.folder),
                    fix="report it: this svdh reads the artifact otherwise than the one that "
                    "wrote it",
                )
            )
