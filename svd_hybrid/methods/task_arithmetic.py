"""Task arithmetic: the sum of the deltas, scaled.

Source: Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089; methods.md §2.
"""

from __future__ import annotations

from dataclasses import dataclass

from svd_hybrid.methods.base import MergeMethod, parameter
from svd_hybrid.methods.steps.checks import check_choices


@dataclass(frozen=True, slots=True)
class TaskArithmeticParams:
    """Parameters of task arithmetic."""

    scaling: float = parameter(0.3, "factor on the sum of the deltas")

    def __post_init__(self) -> None:
        check_choices(self)


TASK_ARITHMETIC = MergeMethod(
    name="task-arithmetic",
    version=1,
    summary="Scaled sum of the task deltas.",
    source="arXiv 2212.04089, section 2",
    params=TaskArithmeticParams,
    per_task_reload=True,
    aliases=("ta",),
)
