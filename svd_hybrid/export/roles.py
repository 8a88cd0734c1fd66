"""What an adapter can do with a changed tensor: factors, a saved module, or nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd_hybrid.errors import UsageError
from svd_hybrid.io.adapter.modules import module_of
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.patterns import matches

ALL = "all"
EMBEDDING = re.compile(
    r"(^|[._])(embed|embeds|embedding|embeddings|embed_tokens|embed_positions|embed_in|wte|wpe"
    r"|shared|relative_attention_bias)[._]"
)
OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output|output_projection|decoder|proj_out|logits)\.")
TABLE_SIZES = ("vocab_size", "max_position_embeddings", "n_positions", "type_vocab_size")


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What the base's config.json says, as far as an adapter needs it.

    Args:
        architecture: class name; "" when unknown.
        table_sizes: rows that tell an embedding from a linear layer.
        vocabulary: rows of the token embedding; 0 when unknown.
        untied: whether it says that output and embedding are not tied.
    """

    architecture: str = ""
    table_sizes: frozenset[int] = frozenset()
    vocabulary: int = 0
    untied: bool = False

    @classmethod
    def read(cls, base: Path) -> BaseFacts:
        """Of a base folder; nothing is known of a base without a readable config.json."""
        try:
            record: Any = json.loads((base / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return cls()
        if not isinstance(record, dict):
            return cls()
        sizes = {key: record.get(key) for key in TABLE_SIZES}
        known = {key: size for key, size in sizes.items() if isinstance(size, int) and size > 2}
        classes = record.get("architectures")
        first = classes[0] if isinstance(classes, list) and classes else None
        return cls(
            first if isinstance(first, str) else "",
            frozenset(known.values()),
            known.get("vocab_size", 0),
            record.get("tie_word_embeddings") is False,
        )

    @property
    def task_type(self) -> str | None:
        """PEFT's name for the kind of model, where it adds nothing of its own to the adapter."""
        if self.generates:
            return "CAUSAL_LM"
        return "SEQ_2_SEQ_LM" if "ForConditionalGeneration" in self.architecture else None

    @property
    def generates(self) -> bool:
        """Whether it is a causal language model with an output layer."""
        return self.architecture.endswith(("ForCausalLM", "LMHeadModel"))


def why_no_factors(name: str, info: TensorInfo, facts: BaseFacts) -> str:
    """Why LoRA factors cannot hold a tensor's change; "" where they can.

    >>> why_no_factors("h.0.mlp.c_fc.weight", TensorInfo("F32", (64, 256)), BaseFacts())
    ''
    >>> why_no_factors("wte.weight", TensorInfo("F32", (99, 64)), BaseFacts())
    'an embedding'
    """
    if not name.endswith(".weight"):
        return "a bias" if name.endswith("bias") else "no module's weight"
    if len(info.shape) != 2:
        return "a vector" if len(info.shape) < 2 else f"an array of {len(info.shape)} axes"
    if OUTPUT.search(name):
        return ""
    if EMBEDDING.search(name) or info.shape[0] in facts.table_sizes - {info.shape[1]}:
        return "an embedding"
    return ""


def check_patterns(patterns: Sequence[str], names: Collection[str]) -> None:
    """Refuse what fits no tensor of the base.

    Raises:
        UsageError: a pattern fits nothing.
    """
    for pattern in patterns:
        if pattern != ALL and not any(is_kept(name, (pattern,)) for name in names):
            raise UsageError(
                f"--modules-to-save {pattern!r} fits no tensor of the base",
                fix="name a module (model.norm, norm), a glob (*.bias), re:EXPRESSION, or all",
            )


def is_kept(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor is to be kept whole: its name fits, or its module's path ends so.

    >>> is_kept("model.norm.weight", ["norm"]), is_kept("model.norm.weight", ["*.bias"])
    (True, False)
    """
    module = "." + module_of(name)
    return any(
        pattern == ALL or module.endswith("." + pattern) or matches(pattern, name)
        for pattern in patterns
    )


def saved_modules(
    kept: Iterable[str], targets: Collection[str], base: Mapping[str, TensorInfo]
) -> dict[str, list[str]]:
    """The modules an adapter has to save whole, outermost only, and all their tensors.

    Args:
        kept: names of tensors to keep.
        targets: modules that have factors; none may lie inside a saved one.
        base: tensors of the base.

    Returns:
        Tensor names by module; tensors that no module can hold are in none.
    """
    owners = {module_of(name) for name in kept}
    possible = [
        owner
        for owner in sorted(owners)
        if owner and not any(f"{target}.".startswith(f"{owner}.") for target in targets)
    ]
    outermost = [
        module
        for module in possible
        if not any(module.startswith(f"{other}.") for other in possible)
    ]
    return {
        module: [name for name in base if name.startswith(f"{module}.")] for module in outermost
    }
