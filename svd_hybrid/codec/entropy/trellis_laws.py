"""How the indices of each class are distributed: Gaussian numbers searched through the trellis.

Their scale varies by 0.3 (natural logarithm); a bit was worth 0.35 squared half steps. Computed
once, and data: nothing in floating point takes part in decoding.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrellisLaw:
    """The law of one class.

    Args:
        even: of 4096, for the magnitudes 1, 2, … M of each sign under quantiser 0; the last one
            counts all from M upwards.
        odd: the same under quantiser 1.
        above: of 4096, share of the last one that is above M.
        decay: of 8, share of the indices above M + e that are above M + e + 1.
    """

    even: tuple[int, ...]
    odd: tuple[int, ...]
    above: int
    decay: int

    @property
    def reach(self) -> int:
        """M."""
        return len(self.even)


TRELLIS_LAWS: tuple[TrellisLaw, ...] = (
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (256, 16), 41, 1),
    TrellisLaw((1, 1), (1479, 1), 41, 1),
    TrellisLaw((2, 1), (1530, 16), 4, 1),
    TrellisLaw((23, 1), (1672, 48), 89, 1),
    TrellisLaw((223, 6, 1), (1777, 101, 3), 247, 1),
    TrellisLaw((674, 70, 9), (1712, 224, 30), 634, 1),
    TrellisLaw((895, 202, 37, 8), (1431, 458, 95, 21), 717, 1),
    TrellisLaw((866, 376, 130, 43, 12, 6), (1061, 602, 243, 77, 26, 11), 1268, 3),
    TrellisLaw((746, 440, 232, 109, 47, 23, 10, 8), (780, 590, 351, 167, 75, 35, 15, 11), 1856, 4),
    TrellisLaw(
        (574, 429, 293, 187, 113, 66, 38, 21, 12, 6, 7),
        (560, 500, 373, 245, 151, 87, 52, 29, 15, 8, 13),
        2310,
        4,
    ),
    TrellisLaw(
        (426, 355, 287, 218, 162, 119, 83, 56, 39, 26, 17, 35),
        (393, 385, 330, 269, 194, 145, 100, 70, 52, 32, 23, 45),
        2736,
        5,
    ),
    TrellisLaw(
        (312, 277, 253, 211, 181, 146, 120, 93, 69, 54, 44, 35, 24, 20, 53),
        (283, 285, 263, 235, 204, 170, 134, 105, 88, 66, 51, 38, 30, 23, 66),
        3098,
        6,
    ),
)
"""Of the classes 1, 2, …; those after the last have its law."""
