"""Evaluators that users bring: `module:function`.

The function is called as `function(state, task)`, or with `part="validation"|"test"|"all"` when it
takes that argument, and returns a number or a mapping metric → number. Attributes say more:

    metrics   {"accuracy": "higher", "loss": "lower"}; the first counts. Default: one "score",
              higher is better
    tasks     names it has data for. Default: every task it is asked for
    identity  JSON, or a function task → JSON, of all a score depends on besides the model, such as
              the digest of its data. Without it results are not kept.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from svd_hybrid.errors import SvdhError, UsageError
from svd_hybrid.evaluation.base import EvaluationError, Metric, Scorer, Scores, State
from svd_hybrid.evaluation.split import ALL, Part

DIRECTIONS = {"higher": True, "lower": False}


@dataclass(frozen=True, slots=True)
class CallableEvaluator:
    """A user's function as an evaluator.

    Args:
        name: `module:function`.
        function: what is called.
        tasks: names it has data for.
        metrics: what it returns.
        part: of the data.
    """

    name: str
    function: Callable[..., Any]
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    part: Part = ALL
    notes: tuple[str, ...] = ()

    def count(self, task: str) -> int:
        """Unknown."""
        return 0

    def identity(self, task: str) -> Mapping[str, Any] | None:
        """What the function says of itself."""
        known = getattr(self.function, "identity", None)
        if known is None:
            return None
        facts = known(task) if callable(known) else known
        settings = {"evaluator": self.name, "part": self.part.as_json()}
        return {**settings, "source": _source_digest(self.function), "own": facts}

    def open(self, state: State) -> Scorer:
        """Scores by calling the function."""

        def score(task: str) -> Scores:
            extra = {"part": self.part.name} if self._takes_part else {}
            try:
                found = self.function(dict(state), task, **extra)
            except SvdhError:
                raise
            except Exception as error:  # the user's code raises what it likes
                raise EvaluationError(
                    f"evaluator failed: {type(error).__name__}: {str(error)[:200]}",
                    where=f"evaluator {self.name}, task {task!r}",
                    fix="--debug shows where",
                ) from error
            if isinstance(found, Mapping):
                return {str(name): _number(value) for name, value in found.items()}
            if len(self.metrics) > 1:
                raise EvaluationError(
                    f"evaluator gave one number, it declares {len(self.metrics)} metrics",
                    where=f"evaluator {self.name}, task {task!r}",
                )
            return {self.metrics[0].name: _number(found)}

        return score

    def restricted(self, part: Part) -> CallableEvaluator:
        """The same on a part, if the function can be told of one."""
        if part.name != "all" and not self._takes_part:
            raise UsageError(
                f"evaluator {self.name} has no parts of its data",
                fix='let the function take part="validation"|"test"|"all"',
            )
        return replace(self, part=part)

    @property
    def _takes_part(self) -> bool:
        return "part" in inspect.signature(self.function).parameters


def load_callable(name: str, tasks: Sequence[str]) -> CallableEvaluator:
    """The evaluator `module:function`; the current directory is searched too.

    Args:
        name: as the user wrote it.
        tasks: those to be scored, when the function does not say which it has.

    Raises:
        UsageError: there is no such module or function, or its attributes are wrong.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UsageError(f"evaluator {name!r} is not MODULE:FUNCTION")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that nothing in it hides an installed module
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise UsageError(f"module {module_name!r} cannot be imported: {error}") from error
        raise UsageError(
            f"module {module_name!r} cannot be imported: there is none",
            where=f"evaluator {name!r}",
            fix="put it into this folder or on PYTHONPATH",
        ) from error
    except Exception as error:  # the user's code raises what it likes
        raise UsageError(
            f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}",
            where=f"evaluator {name!r}",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"module {module_name!r} has no function {function_name!r}")
    own = getattr(function, "tasks", None)
    names = tuple(own() if callable(own) else own) if own is not None else tuple(tasks)
    return CallableEvaluator(name, function, names, _metrics(function, name))


def _metrics(function: Callable[..., Any], name: str) -> tuple[Metric, ...]:
    declared = getattr(function, "metrics", {"score": "higher"})
    if (
        not isinstance(declared, Mapping)
        or not declared
        or any(direction not in DIRECTIONS for direction in declared.values())
    ):
        raise UsageError(
            f"evaluator {name} declares metrics {declared!r}",
            fix='write metrics = {"accuracy": "higher", "loss": "lower"}; the first counts',
        )
    return tuple(Metric(str(m), DIRECTIONS[direction]) for m, direction in declared.items())


def _number(value: Any) -> Any:
    """A Python number of a NumPy or torch scalar; anything else as it is, to be refused later."""
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (ValueError, RuntimeError):  # more than one number
        return value


def _source_digest(function: Callable[..., Any]) -> str:
    """SHA-256 of the file the function is defined in."""
    import hashlib

    path = inspect.getsourcefile(inspect.unwrap(function))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
