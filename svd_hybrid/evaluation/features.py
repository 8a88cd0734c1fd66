"""One feature vector per sample, from whatever a model returns."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from svd_hybrid.evaluation.base import EvaluationError

Pooling = Literal["auto", "cls", "mean", "pooler", "embeds", "logits"]
FIELDS = {
    "cls": "last_hidden_state",
    "mean": "last_hidden_state",
    "pooler": "pooler_output",
    "embeds": "image_embeds",
    "logits": "logits",
}


def features(output: Any, mask: Tensor | None, pooling: Pooling, default: Pooling) -> Tensor:
    """(B, F) float32.

    Args:
        output: of the model: a tensor (B, F), or an output of transformers.
        mask: (B, L) bool, True where a position is no padding; None for all.
        pooling: which; `auto` takes a tensor as it is, `image_embeds` (CLIP with its projection)
            where there are some, else `default`. `mean` leaves out padding.
        default: what `auto` means otherwise.

    Raises:
        EvaluationError: the model returns nothing of the kind.
    """
    if isinstance(output, Tensor):
        if pooling != "auto" or output.ndim != 2:
            raise EvaluationError(
                f"the model returns a tensor {list(output.shape)}",
                fix="return (samples, features) and pass --pooling auto",
            )
        return output.float()
    if pooling == "auto":
        pooling = "embeds" if getattr(output, "image_embeds", None) is not None else default
    found = getattr(output, FIELDS[pooling], None)
    if found is None:
        raise EvaluationError(
            f"the model returns no {FIELDS[pooling]}, it returns {', '.join(output.keys())}",
            fix="pass another --pooling",
        )
    if pooling == "cls":
        found = found[:, 0]
    elif pooling == "mean":
        found = _mean(found, mask)
    pooled: Tensor = found.float()
    return pooled


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.mean(1)
    counted = mask[..., None].to(hidden.dtype)
    return (hidden * counted).sum(1) / counted.sum(1)
