"""What an adapter holds of the changes, and what it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svd_hybrid.export.changes import Change
from svd_hybrid.export.config import target_names
from svd_hybrid.export.factors import Factors
from svd_hybrid.export.result import TensorOutcome
from svd_hybrid.export.roles import BaseFacts, is_kept, saved_modules
from svd_hybrid.io.adapter.modules import module_of
from svd_hybrid.io.tensors import TensorInfo

HEAD = "lm_head"
UNHELD = "no module that could be saved holds it alone"


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """The content of an adapter.

    Args:
        factors: by target module.
        rank: of all of them in the file.
        biases: names of biases that stand behind the factors of their module.
        saved: names of the tensors of modules that are saved whole, by module.
        copies: tensors a tied model makes of others: new name → source.
        targets: names of the target modules, as PEFT matches them.
        in_out: whether a target is stored (inputs, outputs).
        outcomes: what became of every changed tensor.
    """

    factors: Mapping[str, Factors]
    rank: int
    biases: Sequence[str]
    saved: Mapping[str, Sequence[str]]
    copies: Mapping[str, str]
    targets: frozenset[str]
    in_out: bool
    outcomes: tuple[TensorOutcome, ...]

    @property
    def saved_modules(self) -> list[str]:
        """Paths of the modules that are saved whole."""
        return [*self.saved, *map(module_of, self.copies)]


def plan_adapter(
    changes: Sequence[Change],
    keep: Sequence[str],
    infos: Mapping[str, TensorInfo],
    facts: BaseFacts,
) -> AdapterPlan:
    """Decide what becomes of every change.

    Args:
        changes: of which at least one has factors.
        keep: patterns of what is to be saved whole.
        infos: tensors of the base.
        facts: of the base.
    """
    factors = {module_of(c.name): c.factors for c in changes if c.factors is not None}
    kept = [c.name for c in changes if c.factors is None and is_kept(c.name, keep)]
    biases = [name for name in kept if name.endswith(".bias") and module_of(name) in factors]
    saved = saved_modules(set(kept) - set(biases), factors, infos)
    whole = {name for names in saved.values() for name in names}
    return AdapterPlan(
        factors,
        max(found.rank for found in factors.values()),
        biases,
        saved,
        _tied_copies(whole, infos, facts),
        frozenset(target_names(factors, {module_of(name) for name in infos})),
        any(change.in_out for change in changes),
        tuple(_outcome(change, whole | set(biases), kept) for change in changes),
    )


def _outcome(change: Change, whole: set[str], kept: Sequence[str]) -> TensorOutcome:
    name, energy, factors = change.name, change.energy, change.factors
    if factors is not None:
        return TensorOutcome(name, "factors", factors.rank, energy, factors.lost)
    if name in whole:
        return TensorOutcome(name, "whole", 0, energy, 0.0)
    why = f"{change.why}; {UNHELD}" if name in kept else change.why
    return TensorOutcome(name, "lost", 0, energy, energy, why)


def _tied_copies(
    whole: set[str], infos: Mapping[str, TensorInfo], facts: BaseFacts
) -> dict[str, str]:
    """The output layer that a causal language model ties to a saved token embedding.

    PEFT saves a copy of the embedding alone, so the output would keep the base's weight.
    """
    output = f"{HEAD}.weight"
    shapes = {name: infos[name].shape for name in sorted(whole)}
    tables = [n for n, s in shapes.items() if len(s) == 2 and s[0] == facts.vocabulary]
    tied = facts.generates and not facts.untied and output not in infos
    return {output: tables[0]} if tables and tied else {}
