"""The synthetic family B of the codec design."""

from __future__ import annotations

import torch
from make_family_b import SHAPES, SIZE, family_b_deltas, write_family_b

from svd_hybrid.io.family import FamilyPolicy, open_family


def test_equal_arguments_give_equal_deltas_and_others_do_not():
    assert torch.equal(family_b_deltas(24, 32, 2), family_b_deltas(24, 32, 2))
    assert not torch.equal(family_b_deltas(24, 32, 2), family_b_deltas(24, 32, 2, seed=1))


def test_every_delta_has_the_size_the_formula_gives():
    """Parts of 0.3, 0.7 and 0.3 that are almost orthogonal."""
    norms = family_b_deltas(192, 192, 3).flatten(1).norm(dim=1) / SIZE
    assert bool(((norms - 0.67**0.5).abs() < 0.02).all())


def test_tasks_share_little_and_spectra_fall_slowly():
    first, second = family_b_deltas(192, 192, 2).flatten(1).double()
    assert 0.1 < float(first @ second / first.norm() / second.norm()) < 0.4
    strengths = torch.linalg.svdvals(family_b_deltas(192, 192, 1)[0])
    energy = strengths.square().cumsum(0) / strengths.square().sum()
    assert 0.3 < float(energy[9]) < 0.6


def test_the_checkpoints_hold_these_deltas(tmp_path):
    tasks = write_family_b(tmp_path, tasks=2)
    family = open_family(tmp_path / "base", tasks, FamilyPolicy())
    assert len(family.base.infos) == len(SHAPES)
    for rows, columns in SHAPES:
        stored = family.stack(f"matrix_{rows}x{columns}.weight").deltas
        assert stored is not None
        made = family_b_deltas(rows, columns, 2)
        assert float((stored - made).norm() / made.norm()) < 2e-5
