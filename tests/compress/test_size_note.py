"""A run that saves nothing says so."""

from __future__ import annotations

import pytest
import torch

from svd_hybrid import compress
from tests.families import write_family


def test_the_note_of_auto_names_its_own_flag(tmp_path):
    family = write_family(tmp_path / "family", {"w": (480, 480)}, dtype=torch.float16)
    result = compress(family.base, family.tasks, tmp_path / "artifact", step=1e-6)
    (line,) = [line for line in result.notes if "larger than the checkpoints" in line]
    assert "--target-error" in line
    assert "--rtvq-stages" not in line


@pytest.mark.parametrize(
    ("side", "dtype", "noted"),
    [(480, torch.float16, True), (480, torch.float32, False), (16, torch.float16, False)],
    ids=["half precision", "single precision", "a toy"],
)
def test_an_artifact_larger_than_its_sources_is_noted(tmp_path, side, dtype, noted):
    family = write_family(tmp_path / "family", {"w": (side, side)}, dtype=dtype)
    result = compress(family.base, family.tasks, tmp_path / "artifact", max_rank=8)
    larger = [line for line in result.notes if "larger than the checkpoints" in line]
    assert bool(larger) == noted
    if noted:
        assert result.bytes["ratio_src"] < 1
