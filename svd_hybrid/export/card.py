"""The README.md of an exported adapter: where it comes from, and what it leaves out."""

from __future__ import annotations

from svd_hybrid.export.result import ExportResult, TensorOutcome


def adapter_card(result: ExportResult, base_name: str) -> str:
    """Markdown with the front matter model hubs read; nothing in it changes between equal runs."""
    lost = result.named("lost")
    rows = "\n".join(_row(tensor) for tensor in result.tensors)
    left_out = f"; {len(lost)} changed tensors are left out" if lost else ""
    return f"""---
library_name: peft
---
# LoRA adapter from an svdh artifact

The {result.selection} of artifact `{result.artifact_id[:16]}`, as the best factors of rank
{result.rank} of its differences to the base `{base_name}`.

    model = PeftModel.from_pretrained(base_model, "THIS FOLDER")

What it leaves out: {result.relative_error:.2e} of the difference (relative Frobenius norm over all
changed tensors), {result.factors_error:.2e} in the tensors it has factors for{left_out}.

| tensor | stored as | rank | relative error |
| --- | --- | --: | --: |
{rows}
"""


def _row(tensor: TensorOutcome) -> str:
    rank = tensor.rank or "–"
    return f"| `{tensor.name}` | {tensor.stored} | {rank} | {tensor.relative_error:.2e} |"
