"""Modules of an adapter and tensors of a base: whose name is whose, and how weights are stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from svd_hybrid.io.tensors import TensorInfo

SAMPLE = 16
"""Modules whose names suggest prefixes; every module has a say on them."""


def module_of(name: str) -> str:
    """The module a tensor belongs to.

    >>> module_of("h.0.mlp.weight"), module_of("logit_scale")
    ('h.0.mlp', '')
    """
    return name.rpartition(".")[0]


def joined(module: str, leaf: str) -> str:
    """The name of a module's tensor.

    >>> joined("h.0", "bias"), joined("", "logit_scale")
    ('h.0.bias', 'logit_scale')
    """
    return f"{module}.{leaf}" if module else leaf


def base_prefix(modules: Collection[str], base: Collection[str]) -> tuple[str, str] | None:
    """What to take from, and put before, the modules' names to find most of them in the base.

    A base saved from another class of the same model has one prefix more or less than the model
    the adapter was trained on (`transformer.`, `bert.`).

    Args:
        modules: of the adapter.
        base: module names of the base.

    Returns:
        (taken, put); None when two choices find equally many.

    >>> base_prefix({"transformer.h.0"}, {"h.0", "h.1"})
    ('transformer.', '')
    >>> base_prefix({"h.0"}, {"model.h.0", "h.0.x"})
    ('', 'model.')
    """
    if all(module in base for module in modules):
        return "", ""
    sample = sorted(modules, key=lambda module: (-module.count("."), module))[:SAMPLE]
    taken = {module.split(".", 1)[0] + "." for module in sample if "." in module}
    put = {
        candidate.removesuffix(module)
        for module in sample
        for candidate in base
        if candidate.endswith("." + module)
    }
    choices = [("", ""), *((p, "") for p in sorted(taken)), *(("", p) for p in sorted(put))]
    found = {
        choice: sum(renamed(module, choice) in base for module in modules) for choice in choices
    }
    most = max(found.values())
    best = [choice for choice in choices if found[choice] == most]
    return best[0] if len(best) == 1 or best[0] == ("", "") else None


def renamed(name: str, prefix: tuple[str, str]) -> str:
    """A name of the adapter as the base has it."""
    taken, put = prefix
    return put + name.removeprefix(taken)


def stored_in_out(infos: Mapping[str, TensorInfo]) -> dict[str, bool]:
    """Which matrices are stored (in, out), as the Conv1D of GPT-2 does, judged by their biases.

    A bias is as long as the outputs. Square matrices say nothing themselves; they follow what the
    other matrices of the model that have a bias are.

    Args:
        infos: of the base.

    Returns:
        Weight name → whether (in, out); without those nothing is known of.
    """
    judged: dict[str, bool] = {}
    square: list[str] = []
    for name, info in infos.items():
        module, _, leaf = name.rpartition(".")
        bias = infos.get(f"{module}.bias")
        if leaf != "weight" or len(info.shape) != 2 or bias is None:
            continue
        rows, columns = info.shape
        if rows == columns:
            square.append(name)
        elif bias.shape in ((rows,), (columns,)):
            judged[name] = bias.shape == (columns,)
    votes = list(judged.values())
    if votes:
        judged |= dict.fromkeys(square, 2 * sum(votes) > len(votes))
    return judged
