"""What a merge method is: a row of facts plus pure functions over one tensor's deltas.

A method sees the deltas of one tensor and returns named parts and expressions over them; which
codec stores the parts, and in what file, is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from svd_hybrid.delta.expr import Expr


@dataclass(frozen=True, slots=True)
class Region:
    """A part of one tensor that is stored on its own basis.

    Args:
        inside: True for the scalars the mask selects, False for the others.
        gain: factor of this region in a linear merge; a single task is rebuilt with 1.
    """

    inside: bool
    gain: float


@dataclass(frozen=True, slots=True)
class TensorContext:
    """What a rule may know about one tensor besides its deltas.

    Args:
        name: of the tensor.
        tasks: task names in order.
        base: the base tensor, in its own dtype.
        weights: one finite factor per task, in task order; 1 each unless the user set them.
            Already applied to the deltas unless the method handles weights itself.
        densities: one density per task where the user set them apart; else empty.
        scan: what the method's `scan` returned; None without one.
        statistics: per task the second moment (n,) of the tensor's inputs or their Gram (n, n),
            float32; None where there is none for this tensor.
        masks: (N, *shape) bool, True = keep, given by the user; None without.
        inputs_first: the statistics say that this matrix is stored inputs x outputs.
    """

    name: str
    tasks: tuple[str, ...]
    base: Tensor
    weights: tuple[float, ...]
    densities: tuple[float, ...] = ()
    scan: Any = None
    statistics: Sequence[Tensor] | None = None
    masks: Tensor | None = None
    inputs_first: bool = False


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a rule made of one tensor.

    Args:
        parts: by name; (rows, columns) shared or (N, rows, columns) with a slice per task; float32
            (float64 for a float64 base), bool for masks. A name says its role: `merged` for a
            delta (rows, columns) number by number, `coeff_…`, `basis_…`, `mask_…`.
        merged: the merged delta before `scaling`, over the names of `parts`; None for zero.
        task: the delta of one task; None when the method cannot give it back.
    """

    parts: Mapping[str, Tensor]
    merged: Expr | None
    task: Expr | None = None


class TensorStream(Protocol):
    """The tensors a scan may read, one at a time and as often as it likes."""

    def __iter__(self) -> Iterator[tuple[Tensor, TensorContext]]:
        """Deltas (N, *shape) and context of each tensor, by ascending name."""

    @property
    def scalars(self) -> int:
        """Scalars of one task's deltas over all these tensors."""


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A merge rule.

    Args:
        name: id in manifests, kebab-case.
        version: +1 when equal inputs give other numbers.
        summary: what it does, one sentence.
        source: paper and equation this file implements.
        params: frozen dataclass: names, types, defaults, checks in __post_init__; has `scaling`.
        merge: (deltas (N, *shape), params, context) → parts and expressions. None for a linear
            method, whose merge is a weighted sum of the stored task deltas.
        scan: first pass over all tensors that share one set of parameters, for rules that need
            model-wide numbers; its result arrives as `context.scan`.
        regions: for linear methods, how a masked tensor is cut: (combined mask, params) → regions
            to store. An empty list stores nothing.
        weights: what a task counts without the user's word: `average` 1 / N each, `sum` 1 each.
        own_weights: the method reads `context.weights` itself instead of getting scaled deltas.
        per_task_reload: whether single fine-tunes can be rebuilt from its artifact.
        statistics: which layer statistics it reads.
        without_statistics: parameter and value with which it reads none.
        takes_masks: what a mask folder is used for: one `combined` mask per tensor, one mask per
            task and tensor, or nothing.
        aliases: other names users know it by.
        advice: said when the user leaves `scaling` at its default; empty where that serves.
    """

    name: str
    version: int
    summary: str
    source: str
    params: type[Any]
    merge: Callable[[Tensor, Any, TensorContext], MergeResult] | None = None
    scan: Callable[[TensorStream, Any], Any] | None = None
    regions: Callable[[Tensor, Any], list[Region]] | None = None
    weights: Literal["average", "sum"] = "sum"
    own_weights: bool = False
    per_task_reload: bool = False
    statistics: Literal["", "moment", "gram"] = ""
    without_statistics: tuple[str, Any] = ("", None)
    takes_masks: Literal["", "combined", "per-task"] = ""
    aliases: tuple[str, ...] = ()
    advice: str = ""

    @property
    def linear(self) -> bool:
        """Whether its merge is weights over the stored task deltas."""
        return self.merge is None

    def reads_statistics(self, params: Any) -> bool:
        """Whether it needs layer statistics under these parameters."""
        name, value = self.without_statistics
        return bool(self.statistics) and getattr(params, name) != value

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """Name, type, default and help of every parameter, for people and `--json`."""
        return [
            {
                "name": entry.name,
                "type": _type_text(str(entry.type)),
                "default": entry.default,
                "help": entry.metadata.get("help", ""),
            }
            for entry in fields(self.params)
        ]


def _type_text(annotation: str) -> str:
    """A parameter's type for people.

    >>> _type_text("Literal['row', 'global']"), _type_text("tuple[float, ...]")
    ('row | global', 'list of float')
    """
    if annotation.startswith("Literal["):
        choices = annotation.removeprefix("Literal[").removesuffix("]")
        return " | ".join(choice.strip().strip("'") for choice in choices.split(","))
    if annotation.startswith("tuple["):
        return "list of " + annotation.removeprefix("tuple[").removesuffix(", ...]")
    return annotation.replace("None", "none")


def parameter(default: Any, help_text: str) -> Any:
    """A dataclass field with the help that `svdh methods` prints."""
    return field(default=default, metadata={"help": help_text})


def kind_of(shape: Sequence[int]) -> Literal["matrix", "vector", "conv"]:
    """Parameter class by number of axes (methods.md §0.3).

    >>> kind_of((4, 3)), kind_of((4,)), kind_of((4, 3, 2, 2))
    ('matrix', 'vector', 'conv')
    """
    return "matrix" if len(shape) == 2 else "vector" if len(shape) < 2 else "conv"
