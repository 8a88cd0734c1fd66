"""Settings of every test run: property tests are repeatable and not timed by shared machines."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("svdh", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("svdh")
