"""Where the golden vectors are: $SVDH_GOLDEN, else the folder shared beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("SVDH_GOLDEN", REPOSITORY.parent / "shared" / "golden"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden vectors; tests that ask for it are skipped where it is absent."""
    if not (GOLDEN / "manifest.json").is_file():
        pytest.skip(f"no golden vectors in {GOLDEN}; set SVDH_GOLDEN to the folder that holds them")
    return GOLDEN
