"""Where an artifact is built, and what a folder must hold to be replaced by one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from svd_hybrid.artifact import layout
from svd_hybrid.io.outputs import OutputKind
from svd_hybrid.io.staging import staged_directory

SHARDS = tuple(f"{folder}/{'[0-9a-f]' * 64}.safetensors" for folder in layout.SHARD_FOLDERS)

ARTIFACT = OutputKind(
    "artifact", (layout.MANIFEST, layout.INDEX, *layout.DOCUMENTS, *SHARDS), (layout.INDEX, *SHARDS)
)


def staged_artifact(target: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """A new directory that becomes the artifact; as `staged_directory`."""
    return staged_directory(target, overwrite, ARTIFACT)
