"""FORMAT.md is enough for the artifacts of every preset too, with and without masks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.format.test_independent_reader import run

PRESETS: list[dict[str, Any]] = [
    {"profile": "tvq", "bits": 3, "dense_below": 0},
    {"profile": "rtvq", "group_size": 4, "dense_below": 0},
    {"profile": "bitdelta", "dense_below": 0},
    {"profile": "bitdelta", "scale_per": "row", "dense_below": 0},
    {"profile": "compeft", "kept_share": 0.3},
    {"profile": "delta-come", "rank_share": 0.5, "dense_below": 0},
    {"profile": "fast", "dense_below": 0},
    {"profile": "fast", "bits": 2, "group_size": 5, "dense_below": 0},
]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: "-".join(map(str, preset.values())))
def test_the_reader_written_from_the_document_rebuilds_every_bit(tmp_path, preset, masked):
    run(tmp_path, 3, 5, masked=masked, **preset)
