"""What the presets cost and lose on a really trained family; codec design §14, table D."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from svd_hybrid.compress.profiles.base import squared_error
from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.delta.evaluate import matrix_shape
from tests.families import FAMILIES, load_state

VIT = FAMILIES / "vit-tiny"
TASKS = ("handsigns", "kannada", "mnist", "notmnist", "telugu", "trafficsigns", "usps")

pytestmark = [
    pytest.mark.family,
    pytest.mark.skipif(not VIT.is_dir(), reason=f"no trained family in {VIT}; set SVDH_FAMILIES"),
]


@cache
def matrices() -> list[Tensor]:
    """(N, m, n) of every matrix with 4096 scalars or more."""
    base, *tuned = (load_state(VIT / name / "model.safetensors") for name in ("base", *TASKS))
    stacks = (torch.stack([state[name] - base[name] for state in tuned]) for name in sorted(base))
    views = (stack.reshape(len(TASKS), *matrix_shape(stack.shape[1:])) for stack in stacks)
    return [stack for stack in views if stack.shape[1] > 1 and stack[0].numel() >= 4096]


@cache
def measure(profile: str, **values: Any) -> tuple[float, float]:
    """Bits a scalar and relative error over all matrices."""
    params = PROFILE_PARAMS[profile](**values)
    stored_bytes = lost = total = scalars = 0.0
    for stack in matrices():
        stored = PROFILES[profile].encode(stack, None, params, "")
        assert stored is not None
        stored_bytes += sum(part.nbytes for part in stored.parts.values())
        lost += squared_error(stored, stack, None)
        total += float(stack.double().square().sum())
        scalars += stack.numel()
    return 8 * stored_bytes / scalars, (lost / total) ** 0.5


@pytest.mark.parametrize(
    ("profile", "values", "bpp", "rel"),
    [
        ("tvq", {"bits": 4}, 4.002, 0.192),
        ("tvq", {"bits": 2}, 2.002, 0.810),
        ("tvq", {"bits": 4, "group_size": 64}, 4.375, 0.093),
        ("tvq", {"bits": 2, "group_size": 64}, 2.375, 0.463),
        ("rtvq", {}, 2.431, 0.752),
        ("rtvq", {"group_size": 64}, 2.858, 0.425),
        ("bitdelta", {}, 1.001, 0.633),
        ("bitdelta", {"scale_per": "row"}, 1.095, 0.609),
        ("compeft", {}, 0.344, 0.829),
        ("compeft", {"sign_alpha": 1.0}, 0.344, 0.895),
        ("delta-come", {}, 1.056, 0.300),
        ("delta-come", {"code_bpp": 0.5}, 0.521, 0.452),
        ("fast", {}, 3.734, 0.111),
        ("fast", {"bits": 2}, 1.783, 0.452),
    ],
)
def test_cost_and_error_are_what_was_measured(profile, values, bpp, rel):
    assert measure(profile, **values) == (
        pytest.approx(bpp, rel=5e-3),
        pytest.approx(rel, rel=5e-3),
    )


def test_presets_keep_the_order_of_the_design():
    """RTN 4 bit < Delta-CoMe 1.0 < RTN 2 bit < BitDelta per row < ComPEFT 5 %, about as there."""
    found = [
        measure("tvq", bits=4, group_size=64)[1],
        measure("delta-come")[1],
        measure("tvq", bits=2, group_size=64)[1],
        measure("bitdelta", scale_per="row")[1],
        measure("compeft")[1],
    ]
    assert found == sorted(found)
    assert measure("bitdelta", scale_per="row")[1] == pytest.approx(0.609, abs=2e-3)
    assert measure("tvq", bits=3)[1] < measure("tvq", bits=2)[1]


def test_correcting_the_error_of_the_mean_helps():
    corrected = measure("rtvq", group_size=64)[1]
    assert corrected < measure("rtvq", group_size=64, error_correction=False)[1]
