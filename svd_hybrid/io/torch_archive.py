"""The zip archive that torch.save writes: checked to be one, with nothing compressed in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from svd_hybrid.errors import FamilyError, UnsafeError
from svd_hybrid.limits import MOST_MEMBERS

PICKLE = "data.pkl"
TORCHSCRIPT = "constants.pkl"


def check_archive(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of the archive by name without the folder they are all in.

    Raises:
        FamilyError: it is damaged, no archive of torch's, or holds more than it has bytes.
        UnsafeError: it is a TorchScript program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise _damaged(path, str(error)[:160]) from error
    if len(entries) > MOST_MEMBERS:
        raise _damaged(path, f"{len(entries)} members, at most {MOST_MEMBERS} are read")
    members = {entry.filename.partition("/")[2]: entry for entry in entries}
    if TORCHSCRIPT in members:
        raise UnsafeError(
            "checkpoint needs code to load: it is a TorchScript program",
            where=str(path),
            fix="save its state_dict() with torch.save or as safetensors",
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _damaged(path, "a member is compressed, which torch never does")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _damaged(path, "its members overlap")
    if PICKLE not in members:
        raise _damaged(path, f"it has no {PICKLE}, so torch did not write it")
    return members


def _damaged(path: Path, why: str) -> FamilyError:
    return FamilyError(
        f"torch checkpoint cannot be read: {why}",
        where=str(path),
        fix="the file is damaged or incomplete; copy or download it again",
    )
