"""Images in a folder, one subfolder per class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svd_hybrid.data.examples import Examples
from svd_hybrid.data.extra import require
from svd_hybrid.data.labels import numbered
from svd_hybrid.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


class ImageFiles(Sequence[Any]):
    """Images that are read when asked for, as uint8 arrays (H, W) or (H, W, 3)."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [decoded(file.read_bytes(), str(file)) for file in self.files[index]]
        return decoded(self.files[index].read_bytes(), str(self.files[index]))


def decoded(data: bytes, where: str) -> np.ndarray[Any, Any]:
    """An image file's content as uint8, (H, W) for grey ones and (H, W, 3) for others.

    Raises:
        DataError: it is no image.
    """
    pillow = require("PIL.Image", "reading images")
    try:
        with pillow.open(io.BytesIO(data)) as image:
            grey = image.mode in ("1", "L", "I;16", "LA")
            return np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, ValueError) as error:
        raise DataError(f"no image: {error}", where=where, fix="remove or repair it") from error


def image_folder(folder: Path) -> Examples:
    """Every image below `folder`: classes are its subfolders, in sorted order.

    Raises:
        DataError: it holds no images.
    """
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    found = [(file, entry.name) for entry in subfolders for file in _images(entry)]
    if not found:
        loose = _images(folder)
        if not loose:
            raise DataError(
                "folder holds no images",
                where=str(folder),
                fix="put them into one subfolder per class: " + ", ".join(SUFFIXES),
            )
        return Examples("images", ImageFiles(loose), str(folder))
    labels, classes = numbered([name for _, name in found], str(folder))
    return Examples("images", ImageFiles([file for file, _ in found]), str(folder), labels, classes)


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
