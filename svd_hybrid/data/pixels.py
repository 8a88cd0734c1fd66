"""Images as float32 tensors (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from svd_hybrid.errors import DataError, UsageError

DEVIATION_FLOOR = 0.02
"""Added to an image's deviation, in units of its brightness range; blank images stay finite."""


@dataclass(frozen=True, slots=True)
class Normalise:
    """How brightness in [0, 1] becomes the model's input.

    Args:
        means, deviations: per channel, subtracted and divided by; empty for `standardise`: each
            image by its own mean and deviation, plus 0.02.
    """

    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Normalise:
        """`standardise`, `none`, or `mean,…/deviation,…` with one number or one per channel.

        Raises:
            UsageError: something else.

        >>> Normalise.parse("0.5/0.25")
        Normalise(means=(0.5,), deviations=(0.25,))
        """
        if text == "standardise":
            return cls()
        if text == "none":
            return cls((0.0,), (1.0,))
        try:
            means, deviations = (
                tuple(float(number) for number in part.split(",")) for part in text.split("/")
            )
        except ValueError:
            means, deviations = (), ()
        if not means or len(means) != len(deviations) or min(deviations) <= 0:
            raise UsageError(
                f"--normalise {text!r} is not known",
                fix="write standardise, none, or MEAN/DEVIATION such as 0.5,0.5,0.5/0.5,0.5,0.5",
            )
        return cls(means, deviations)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.means:
            centred = pixels - pixels.mean((1, 2, 3), keepdim=True)
            return centred / (pixels.std((1, 2, 3), keepdim=True) + DEVIATION_FLOOR)
        means, deviations = (
            torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (self.means, self.deviations)
        )
        return (pixels - means) / deviations


@dataclass(frozen=True, slots=True)
class Pixels:
    """Makes `pixel_values` of uint8 images.

    Args:
        normalise: applied last.
        channels: 1 or 3; None for what the images have.
        size: height and width; images of another size are scaled on their shorter side and cropped
            in the middle. None leaves them as they are.
    """

    normalise: Normalise
    channels: int | None = None
    size: int | None = None

    def __call__(self, samples: Sequence[Any]) -> tuple[dict[str, Tensor], None]:
        """Images (H, W) or (H, W, C) → pixel_values.

        Raises:
            DataError: they differ in size and no size is set.
        """
        found = [self._one(np.asarray(sample)) for sample in samples]
        if len({image.shape for image in found}) > 1:
            raise DataError(
                "images differ in size or channels", fix="pass --image-size and --image-channels"
            )
        return {"pixel_values": self.normalise(torch.stack(found))}, None

    def _one(self, image: np.ndarray[Any, Any]) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).float() / 255
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        if self.channels == 1 and len(pixels) != 1:
            pixels = pixels.mean(0, keepdim=True)
        elif self.channels == 3 and len(pixels) == 1:
            pixels = pixels.expand(3, -1, -1)
        if self.size is None or tuple(pixels.shape[1:]) == (self.size, self.size):
            return pixels
        height, width = pixels.shape[1:]
        scale = self.size / min(height, width)
        shape = [max(self.size, round(side * scale)) for side in (height, width)]
        pixels = functional.interpolate(
            pixels[None], shape, mode="bilinear", antialias=True, align_corners=False
        )[0]
        top, left = ((side - self.size) // 2 for side in shape)
        return pixels[:, top : top + self.size, left : left + self.size]


@dataclass(frozen=True, slots=True)
class Processed:
    """Makes `pixel_values` with the image processor that came with the model."""

    processor: Any

    def __call__(self, samples: Sequence[Any]) -> tuple[dict[str, Tensor], None]:
        """Images → pixel_values."""
        images = [np.asarray(sample) for sample in samples]
        images = [np.stack([x] * 3, -1) if x.ndim == 2 else x for x in images]
        made = self.processor(images=images, return_tensors="pt")
        return {"pixel_values": made["pixel_values"].float()}, None
