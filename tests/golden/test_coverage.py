"""Every golden case of this package's scope is handled by some test."""

from __future__ import annotations

import pytest

from tests.golden import test_quantisers, test_svd_hybrid

pytestmark = pytest.mark.golden

HANDLED = test_quantisers.HANDLED | test_svd_hybrid.HANDLED
IN_SCOPE = ("svdhybrid_", "rtvq_", "tvq_")


def test_every_case_in_scope_is_compared_with(golden):
    stored = {path.parent.name for path in (golden / "cases").glob("*/case.json")}
    in_scope = {name for name in stored if name.startswith(IN_SCOPE)}
    assert in_scope, "the golden folder holds no case of ours"
    assert in_scope == HANDLED
