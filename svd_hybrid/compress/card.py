"""The README.md inside an artifact: what it is and how to use it."""

from __future__ import annotations

from collections.abc import Mapping

from svd_hybrid.compress.config import CompressConfig


def model_card(config: CompressConfig, weights: Mapping[str, float]) -> str:
    """Markdown; holds nothing that changes between equal runs."""
    rows = "\n".join(
        f"| {task.replace('|', '&#124;')} | {weight:.6g} |" for task, weight in weights.items()
    )
    model = f" of {config.model}" if config.model else ""
    return f"""# svdh artifact{model}

A family of fine-tuned models, stored beside its base by svdh (method `{config.method}`, profile
`{config.profile}`). It holds differences to the base, not the base itself; sizes and measured
errors are in diagnostics.json, the format in FORMAT.md of the svdh distribution.

    svdh verify --artifact-dir THIS [--base-model-path BASE]
    svdh reload --artifact-dir THIS --base-model-path BASE --output-path OUT [--task NAME]

| task | weight in the merge `{config.merge_name}` |
| --- | --- |
{rows}
"""
