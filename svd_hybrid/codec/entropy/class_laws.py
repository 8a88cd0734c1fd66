"""How numbers of each scale class are distributed: a quantised Gaussian whose scale varies by 0.3.

(Natural logarithm.) Computed once, and data: nothing in floating point takes part in decoding.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassLaw:
    """The law of one class.

    Args:
        magnitudes: of 4096, for 1, 2, … M of each sign; the last one counts all from M upwards.
        above: of 4096, share of the last one that is above M.
        decay: of 8, share of the numbers above M + e that are above M + e + 1.
    """

    magnitudes: tuple[int, ...]
    above: int
    decay: int

    @property
    def reach(self) -> int:
        """M."""
        return len(self.magnitudes)


CLASS_LAWS: tuple[ClassLaw, ...] = (
    ClassLaw((1,), 4, 1),
    ClassLaw((1,), 4, 1),
    ClassLaw((1,), 4, 1),
    ClassLaw((1,), 4, 1),
    ClassLaw((2,), 4, 1),
    ClassLaw((4,), 4, 1),
    ClassLaw((8,), 4, 1),
    ClassLaw((16,), 4, 1),
    ClassLaw((32,), 4, 1),
    ClassLaw((64,), 4, 1),
    ClassLaw((128,), 4, 1),
    ClassLaw((256,), 8, 1),
    ClassLaw((488,), 24, 1),
    ClassLaw((827,), 250, 1),
    ClassLaw((896, 226), 420, 1),
    ClassLaw((896, 352, 150), 900, 2),
    ClassLaw((768, 448, 224, 161), 1550, 3),
    ClassLaw((576, 448, 288, 176, 218), 2100, 4),
    ClassLaw((448, 384, 288, 224, 160, 112, 204), 2600, 5),
    ClassLaw((320, 288, 256, 224, 192, 144, 112, 336), 3000, 6),
)
"""Of the classes 1, 2, …; those after the last have shifts and repeat the last two in turn."""


def class_law(c: int) -> ClassLaw:
    """The law of class c, 1 … CLASSES - 1."""
    last = len(CLASS_LAWS)
    return CLASS_LAWS[c - 1 if c <= last else last - 2 + (c - last - 1) % 2]
