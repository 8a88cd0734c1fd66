"""TIES after the trim: elect one sign per scalar, merge the entries that agree with it.

Works on column blocks of a stack (N, C) that stay in the cache and may be overwritten. Sums run in
task order with one rounding per operation, so results do not depend on block size or machine.
Source: prateeky2806/ties-merging, src/utils/merge_utils.py; methods.md §4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_DIVISOR = 1e-8


@dataclass(frozen=True, slots=True)
class Rule:
    """How signs are elected and agreeing entries are merged.

    Args:
        election: `mass`: sign of the sum. `count`: of the sum of signs. `norm-mass`: of the sum of
            signed shares of each task's squared norm. `norm-fraction`: of the entry that is the
            largest share. `none`: every non-zero entry agrees.
        merge_func: `mean`, `sum`, `max` over the agreeing entries; `plain-mean`, `plain-sum`,
            `median` (the lower one), `largest` over all entries, with the elected sign.
        weight_rule: whether signs are elected on weighted entries (`mergekit`) or not, and what
            `mean` divides by: the number (`peft`) or the weights of the agreeing entries, where a
            sum of 0 counts as 1 (`mergekit`) or gives 0 (`seed004`).
        weights: one per task.
        tie_sign: sign of an elected zero: 1, -1 or 0.
        zero_selects_negative: an elected sign that stays 0 selects negative entries, not none.
        squared_norms: of each task's trimmed model, for the norm elections.
    """

    election: str
    merge_func: str
    weight_rule: str
    weights: tuple[float, ...]
    tie_sign: float = 1.0
    zero_selects_negative: bool = True
    squared_norms: tuple[float, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether all tasks count 1."""
        return all(weight == 1 for weight in self.weights)

    @property
    def elects_on_weighted(self) -> bool:
        """Whether entries are weighted before the election."""
        return self.weight_rule == "mergekit" and not self.plain


def candidates(block: Tensor, rule: Rule) -> Tensor:
    """The entries signs are elected on: `block` (N, C), weighted in place where the rule says."""
    return _weigh(block, rule.weights) if rule.elects_on_weighted else block


def elected_signs(block: Tensor, rule: Rule) -> Tensor:
    """Signs before zeros are filled.

    Args:
        block: (N, C), the candidates.
        rule: gives the election and the norms.

    Returns:
        (C,) of -1, 0, 1 in the dtype of `block`.
    """
    if rule.election == "mass":
        return total(block).sign_()
    if rule.election == "count":
        return total(block.sign()).sign_()
    inverse = [1 / norm if norm else 0.0 for norm in rule.squared_norms]
    shares = block.double().square_() * torch.tensor(inverse, dtype=torch.float64)[:, None]
    if rule.election == "norm-mass":
        return total(shares.mul_(block.sign())).sign_().to(block.dtype)
    return largest(shares.mul_(block.sign())).sign_().to(block.dtype)


def merge_block(block: Tensor, rule: Rule) -> Tensor:
    """The merged entries (C,) of a trimmed block (N, C), which is overwritten."""
    block = candidates(block, rule)
    signs = None
    if rule.election != "none":
        signs = elected_signs(block, rule)
        if rule.tie_sign:
            signs.add_((1 - signs.abs()).mul_(rule.tie_sign))
    if rule.merge_func in ("mean", "sum", "max"):
        return _agreeing(block, signs, rule)
    if not rule.plain and not rule.elects_on_weighted:
        _weigh(block, rule.weights)
    match rule.merge_func:
        case "plain-mean":
            merged = total(block).div_(len(block))
        case "plain-sum":
            merged = total(block)
        case "median":
            merged = block.sort(dim=0).values[(len(block) - 1) // 2]
        case _:
            merged = largest(block)
    return merged if signs is None else merged.abs().mul_(signs)


def _agreeing(block: Tensor, signs: Tensor | None, rule: Rule) -> Tensor:
    """Mean, sum or max over the entries that are non-zero and have the elected sign."""
    if signs is not None:
        selects = signs
        if not rule.tie_sign and rule.zero_selects_negative:
            selects = signs.masked_fill(signs == 0, -1.0)
        most = torch.finfo(block.dtype).max
        torch.clamp(block, selects.clamp_max(0.0) * most, selects.clamp_min(0.0) * most, out=block)
    values = block
    if not rule.plain and not rule.elects_on_weighted:
        values = block * torch.tensor(rule.weights, dtype=block.dtype)[:, None]
    if rule.merge_func == "max":
        merged = largest(values)
        return merged if signs is None else merged.mul_(signs.abs())
    merged = total(values)
    return _divided(merged, block.sign_(), rule, signs) if rule.merge_func == "mean" else merged


def _divided(merged: Tensor, agree: Tensor, rule: Rule, signs: Tensor | None) -> Tensor:
    """The sum of agreeing entries over their number or their weights.

    Args:
        merged: (C,), overwritten.
        agree: (N, C) signs of the agreeing entries, 0 elsewhere; overwritten.
        rule: gives the weights.
        signs: (C,) elected signs, which all that agree have; None where both signs agree.
    """
    by_number = rule.weight_rule == "peft" or rule.plain
    if signs is None or not by_number:
        agree.abs_()
    if by_number:
        return merged.div_(total(agree).abs_().clamp_min_(1.0))
    divisor = total(_weigh(agree, rule.weights))
    if rule.weight_rule == "mergekit":
        return merged.div_(divisor.masked_fill_(divisor.abs() < SMALLEST_DIVISOR, 1.0))
    return merged.div_(divisor).masked_fill_(divisor <= SMALLEST_DIVISOR, 0.0)


def _weigh(block: Tensor, weights: Sequence[float]) -> Tensor:
    return block.mul_(torch.tensor(weights, dtype=block.dtype)[:, None])


def total(block: Tensor) -> Tensor:
    """Sum over the first axis, in order; a new tensor."""
    rows = block.unbind()
    merged = rows[0] + rows[1] if len(rows) > 1 else rows[0].clone()
    for row in rows[2:]:
        merged.add_(row)
    return merged


def largest(block: Tensor) -> Tensor:
    """The entry of largest magnitude over the first axis; of equals the first; a new tensor."""
    merged = block[0].clone()
    for row in block[1:]:
        merged = torch.where(row.abs() > merged.abs(), row, merged)
    return merged
