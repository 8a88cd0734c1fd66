"""The pages name what there is: every method has its row."""

from __future__ import annotations

from pathlib import Path

import pytest

from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_row_in_the_readme_and_a_word_in_its_page(method):
    assert f"| `{method}` |" in (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert f"`{method}`" in page
    assert f"| {method} |" in page  # measured


@pytest.mark.parametrize("profile", PROFILE_PARAMS)
def test_every_profile_has_a_row_in_its_page(profile):
    assert f"| `{profile}` |" in (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
