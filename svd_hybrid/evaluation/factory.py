"""From what the user names to an evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from svd_hybrid.errors import UsageError
from svd_hybrid.evaluation.base import Evaluator
from svd_hybrid.evaluation.callable import load_callable
from svd_hybrid.evaluation.classification import ClassificationEvaluator, ClassificationSettings
from svd_hybrid.evaluation.live import LiveSettings
from svd_hybrid.evaluation.perplexity import PerplexityEvaluator
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.models.inputs import InputSettings
from svd_hybrid.registry import did_you_mean

NAMES = ("vision", "text", "perplexity")


@dataclass(frozen=True, slots=True)
class EvaluatorChoice:
    """An evaluator yet to be built.

    Args:
        name: `vision`, `text`, `perplexity` or `module:function`.
        base: base checkpoint.
        data: `[TASK=]SOURCE` entries.
        model: folder with config.json, or `module:function`; None for the base's folder.
        inputs: how data becomes batches.
        outputs: how outputs become classes.
        stride: of perplexity's windows.
    """

    name: str
    base: Path
    data: tuple[str, ...] = ()
    model: str | None = None
    inputs: InputSettings = InputSettings()  # noqa: RUF009 # immutable
    outputs: ClassificationSettings = ClassificationSettings()  # noqa: RUF009 # immutable
    stride: int | None = None

    def build(self, tasks: Sequence[str]) -> Evaluator:
        """Read its data for some tasks, and build its model.

        Raises:
            UsageError: an unknown name, an option that does not belong to it, or a task without
                data.
            SvdhError: as data, heads and model deserve.
        """
        if ":" in self.name:
            evaluator = load_callable(self.name, tasks)  # first: it may be the name that is wrong
            self._refuse_options(has_data=False)
            return evaluator
        if self.name not in NAMES:
            raise UsageError(
                f"unknown evaluator {self.name!r}",
                fix=did_you_mean(self.name, NAMES) + "; or write module:function",
            )
        self._refuse_options(has_data=True)
        if not tasks:
            raise UsageError(
                "no task to score on", fix="pass --task NAME, --artifact-dir or --checkpoint-dir"
            )
        live = LiveSettings(
            open_checkpoint(self.base), self.model, self.data, tuple(tasks), self.inputs
        )
        if self.name == "perplexity":
            return PerplexityEvaluator.build(live, self.stride)
        return ClassificationEvaluator.build(self.name, self.outputs, live)

    def _refuse_options(self, *, has_data: bool) -> None:
        """Options that would be ignored."""
        scores_classes = has_data and self.name != "perplexity"
        given = {
            "--data": self.data and not has_data,
            "--heads": self.outputs.heads is not None and not scores_classes,
            "--stride": self.stride is not None and self.name != "perplexity",
            "--model": self.model is not None and not has_data,
        }
        for option, wrong in given.items():
            if wrong:
                raise UsageError(f"{option} has no meaning for evaluator {self.name}")
        if has_data and not self.data:
            raise UsageError("no data given", fix="pass --data [TASK=]SOURCE or --family DIR")
