"""Results of tests never meet those of the user."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("SVDH_CACHE_DIR", str(tmp_path / "cache"))
