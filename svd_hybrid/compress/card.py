"""The README.md inside an artifact: what it is and how to use it; short, for it is in every one."""

from __future__ import annotations

from collections.abc import Sequence

from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.errors import shorten

MOST_NAMED = 20
"""Tasks the card lists; the manifest has all of them."""


def model_card(config: CompressConfig, tasks: Sequence[str]) -> str:
    """Markdown; holds nothing that changes between equal runs."""
    model = f" of {config.model}" if config.model else ""
    return f"""# svdh artifact{model}

Fine-tunes of one base, stored by svdh (method `{config.method}`, profile `{config.profile}`) as
differences to it; the base is not included.

    svdh verify --artifact-dir THIS [--base-model-path BASE]
    svdh reload --artifact-dir THIS --base-model-path BASE --output-path OUT [--task NAME]

Tasks: {shorten(list(tasks), MOST_NAMED)}. Weights: weights.json; errors: diagnostics.json.
"""
