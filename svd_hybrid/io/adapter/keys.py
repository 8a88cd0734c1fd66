"""What the tensor names of an adapter file say: module, role, and name of the adapter."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "base_model.model."
ROLES = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
ROLE = re.compile(r"(?:^|(?<=\.))(" + "|".join(ROLES) + r")(?:\.|$)")
WRAPPED = re.compile(r"(?:^|(?<=\.))base_layer\.")
SAVED = re.compile(r"(?:^|(?<=\.))modules_to_save\.")


@dataclass(frozen=True, slots=True)
class Key:
    """One tensor of an adapter file.

    Args:
        module: path of the module in the model the adapter was trained on; "" for the model.
        role: one of `ROLES`; "" for a tensor that replaces one of the base.
        leaf: `weight`, `bias` or whatever the tensor is called; "" where nothing follows the role.
        adapter: the adapter's name; "" where the file leaves it out, as PEFT does.
    """

    module: str
    role: str
    leaf: str
    adapter: str


def parse_key(name: str) -> Key | None:
    """Read a tensor name of an adapter file.

    Returns:
        None for the untouched copies that a raw state dict of a PEFT model holds.

    >>> parse_key("base_model.model.h.0.attn.lora_A.weight")
    Key(module='h.0.attn', role='lora_A', leaf='weight', adapter='')
    >>> parse_key("base_model.model.wte.lora_embedding_B.mine").adapter
    'mine'
    >>> parse_key("base_model.model.h.0.attn.base_layer.bias")
    Key(module='h.0.attn', role='', leaf='bias', adapter='')
    >>> parse_key("base_model.model.head.modules_to_save.default.weight")
    Key(module='head', role='', leaf='weight', adapter='default')
    """
    name = name.removeprefix(PREFIX)
    if re.search(r"(^|\.)original_module\.", name):
        return None
    name = WRAPPED.sub("", name)
    role = ROLE.search(name)
    if role:
        tail = name[role.end() :].split(".") if name[role.end() :] else []
        leaf = tail.pop() if tail and tail[-1] in ("weight", "bias") else ""
        return Key(name[: role.start()].rstrip("."), role[1], leaf, ".".join(tail))
    saved = SAVED.search(name)
    adapter = ""
    if saved:
        adapter, _, rest = name[saved.end() :].partition(".")
        if not rest:  # the adapter's name is left out
            adapter, rest = "", adapter
        name = name[: saved.start()] + rest
    module, _, leaf = name.rpartition(".")
    return Key(module, "", leaf, adapter)
