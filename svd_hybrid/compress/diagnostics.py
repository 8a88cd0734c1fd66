"""diagnostics.json: what was stored, what it costs and what was lost. Measured, never estimated."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from svd_hybrid.artifact.diagnostics import VERSION, error_facts, table_bytes
from svd_hybrid.artifact.jsonfile import canonical_json
from svd_hybrid.artifact.manifest import TensorRecord
from svd_hybrid.compress.config import CompressConfig
from svd_hybrid.compress.merging import EncodedMerge
from svd_hybrid.compress.profiles.base import EncodedStack
from svd_hybrid.compress.tensor import EncodedTensor, TaskError
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.numerics.metrics import ErrorSums

TASK_DIGITS = 4
ORIGINAL_CONFIG_KEYS = (
    "energy_threshold",
    "max_rank",
    "low_bits",
    "rtvq_stages",
    "mask_strategy",
    "weighting",
)


@dataclass(slots=True)
class Diagnostics:
    """Collects facts tensor by tensor and writes the document at the end.

    Args:
        config: the resolved configuration.
        tasks: task names in order.
        base_bytes: sizes of the base's weight files, summed.
        source_bytes: the same for the tasks.
        recovers_tasks: whether every fine-tune comes back, so that the artifact replaces them all;
            else it replaces one merged checkpoint.
        unmeasured: tasks whose errors are not known, in an artifact that others were added to.
        recalled: errors of tasks, as such an artifact recorded them.
    """

    config: CompressConfig
    tasks: list[str]
    base_bytes: int
    source_bytes: int
    recovers_tasks: bool = True
    scalars: int = 0
    delta_scalars: int = 0
    notes: list[str] = field(default_factory=list)
    totals: list[ErrorSums] = field(default_factory=list)
    stored_totals: list[ErrorSums] = field(default_factory=list)
    tasks_measured: bool = False
    merge_total: ErrorSums | None = None
    merge_bytes: int = 0
    per_parameter: dict[str, dict[str, Any]] = field(default_factory=dict)
    unmeasured: set[str] = field(default_factory=set)
    recalled: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.totals = [ErrorSums() for _ in self.tasks]
        self.stored_totals = [ErrorSums() for _ in self.tasks]

    def count_scalars(self, info: TensorInfo) -> None:
        """Count a tensor of the base, whether or not it has deltas."""
        self.scalars += info.count

    def add(self, name: str, info: TensorInfo, encoded: EncodedTensor) -> None:
        """Record one tensor that has deltas."""
        if encoded.parts:
            self.delta_scalars += info.count
        self._count_errors([error.whole for error in encoded.errors])
        for total, error in zip(self.stored_totals, encoded.errors, strict=False):
            total.merge(error.stored)
        self._facts(name, info).update(_parameter_facts(info, encoded, self.tasks))

    def add_merge(self, name: str, info: TensorInfo, merge: EncodedMerge, *, tasks: bool) -> None:
        """Record the stored merge of one tensor.

        Args:
            name: of the tensor.
            info: its dtype and shape.
            merge: what was stored.
            tasks: whether its errors of single tasks are those of the artifact.
        """
        facts = self._facts(name, info)
        facts["merge"] = {"form": merge.form, "bytes": merge.nbytes}
        self.merge_bytes += merge.nbytes
        if merge.error is not None:
            self.merge_total = self.merge_total or ErrorSums()
            self.merge_total.merge(merge.error)
            facts["merge"]["relative_error"] = merge.error.relative_error
        if tasks and merge.task_errors:
            self._count_errors(merge.task_errors)
            errors = tuple(TaskError(error, error) for error in merge.task_errors)
            facts.update(_error_facts(errors, self.tasks))
        if tasks and merge.parts:
            self.delta_scalars += info.count

    def _facts(self, name: str, info: TensorInfo) -> dict[str, Any]:
        facts = {"param_name": name, "original_shape": list(info.shape)}
        return self.per_parameter.setdefault(name, facts)

    def _count_errors(self, errors: Sequence[ErrorSums]) -> None:
        self.tasks_measured = self.tasks_measured or bool(errors)
        for total, error in zip(self.totals, errors, strict=False):
            total.merge(error)

    def add_alias(self, name: str, alias: str, info: TensorInfo) -> None:
        """Record a tensor stored under another name."""
        self.per_parameter[name] = {
            "param_name": name,
            "original_shape": list(info.shape),
            "alias_of": alias,
        }

    @property
    def relative_error(self) -> float | None:
        """Over all tasks and tensors; None when not measured or undefined."""
        if not self.tasks_measured or self.unmeasured:
            return None
        return _joined(self.totals).relative_error

    def stored_error(self, *, worst_task: bool) -> float | None:
        """The same over the scalars that are stored: what a mask leaves out does not count.

        Args:
            worst_task: that of the task with the largest, instead of all tasks'.
        """
        if self.relative_error is None:
            return None
        if not worst_task:
            return _joined(self.stored_totals).relative_error
        return max((total.relative_error or 0.0 for total in self.stored_totals), default=None)

    @property
    def task_errors(self) -> list[float | None]:
        """Relative error of every task; None when not measured or undefined."""
        pairs = zip(self.tasks, self.totals, strict=True)
        return [total.relative_error if self._measured(task) else None for task, total in pairs]

    def _measured(self, task: str) -> bool:
        return self.tasks_measured and task not in self.unmeasured

    @property
    def merge_error(self) -> float | None:
        """Relative error of the stored merge; None without one, or when not measured."""
        return self.merge_total.relative_error if self.merge_total else None

    def bytes_report(self, breakdown: Mapping[str, int]) -> dict[str, Any]:
        """Sizes and the ratios they give (codec design §13); real files only."""
        artifact = sum(breakdown.values())
        models = len(self.tasks) if self.recovers_tasks else 1
        replaced = self.source_bytes if self.recovers_tasks else self.base_bytes
        numbers, delta_numbers = self.scalars * models, self.delta_scalars * models
        return {
            "bytes_artifact": artifact,
            "bytes_replaced": replaced,
            "bytes_base": self.base_bytes,
            "breakdown": dict(breakdown),
            "ratio_src": replaced / artifact,
            "ratio_fp32": 4 * numbers / artifact,
            "ratio_fp16": 2 * numbers / artifact,
            "ratio_total": (self.base_bytes + replaced) / (self.base_bytes + artifact),
            "bpp_all": 8 * artifact / numbers if numbers else None,
            "bpp_delta": 8 * artifact / delta_numbers if delta_numbers else None,
            "parameters": self.scalars,
            "tasks": len(self.tasks),
            "models": models,
        }

    def document(
        self,
        breakdown: Mapping[str, int],
        weights: Mapping[str, float],
        clusters: Mapping[str, int] | None,
    ) -> bytes:
        """diagnostics.json for a directory with this byte breakdown."""
        config = self.config.to_json()
        record: dict[str, Any] = {
            "diagnostics_version": VERSION,
            "config": {
                f"svd_{key}": config[key]
                for key in ORIGINAL_CONFIG_KEYS
                if config.get(key) is not None
            },
            "summary": self._summary(breakdown),
            "bytes": self.bytes_report(breakdown),
            "tasks": {
                task: self.recalled.get(task)
                or (_rounded(total.as_json(), TASK_DIGITS) if self._measured(task) else {})
                for task, total in zip(self.tasks, self.totals, strict=True)
            },
            "notes": self.notes,
        }
        if any("merge" in facts for facts in self.per_parameter.values()):
            record["merge"] = {
                "name": self.config.merge_name,
                "bytes": self.merge_bytes,
                "relative_error": self.merge_error,
            }
        if clusters is not None:
            record["cluster_assignments"] = dict(clusters)
        return canonical_json(_rounded(record) | {"task_weights": dict(weights)})

    def table(self, tensors: Sequence[TensorRecord]) -> bytes | None:
        """The file with what is known of every tensor; None when that is nothing.

        Args:
            tensors: every tensor of the manifest, in its order.
        """
        if not self.per_parameter:
            return None
        return table_bytes(self.per_parameter, tensors, self.tasks)

    def _summary(self, breakdown: Mapping[str, int]) -> dict[str, Any]:
        stored = [facts for facts in self.per_parameter.values() if "alias_of" not in facts]
        ranks = [facts["k"] for facts in stored if "k" in facts]
        return {
            "num_parameters": len(stored),
            "average_rank": _mean(ranks),
            "std_rank": statistics.pstdev(ranks) if ranks else None,
            "average_energy_retained": _mean(f.get("energy_retained") for f in stored),
            "average_reconstruction_error": _mean(f.get("mean_relative_error") for f in stored),
            "average_compression_ratio": _mean(
                ratio for f in stored for ratio in f.get("compression_ratios", {}).values()
            ),
            "relative_error": self.relative_error,
            "bytes_artifact": sum(breakdown.values()),
            "ratio_src": self.bytes_report(breakdown)["ratio_src"],
        }


def _rounded(value: Any, digits: int = 7) -> Any:
    """The same document with floats at some significant digits: measurements, not weights."""
    if isinstance(value, dict):
        return {key: _rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner, digits) for inner in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _joined(totals: Sequence[ErrorSums]) -> ErrorSums:
    whole = ErrorSums()
    for total in totals:
        whole.merge(total)
    return whole


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _parameter_facts(info: TensorInfo, encoded: EncodedTensor, tasks: list[str]) -> dict[str, Any]:
    """The fields users of the original diagnostics know, with true bytes."""
    signal, noise = encoded.signal, encoded.noise
    stored_scalars = signal.scalars if signal else 0
    ratio = len(tasks) * info.nbytes / encoded.nbytes if encoded.nbytes else None
    facts: dict[str, Any] = {
        "masked_size": stored_scalars if encoded.masked else info.count,
        "unmasked_size": info.count - stored_scalars if encoded.masked else 0,
        "k": signal.rank if signal else 0,
        "energy_retained": signal.energy_retained if signal else 1.0,
        "basis": _basis_facts(signal, len(tasks)),
        "compression_ratios": dict.fromkeys(tasks, ratio),
        "bytes": {part: encoded.parts[part].nbytes for part in sorted(encoded.parts)},
    }
    if noise is not None:
        facts["noise_basis"] = _basis_facts(noise, len(tasks))
    if encoded.errors:
        facts |= _error_facts(encoded.errors, tasks)
    if encoded.errors and encoded.masked:
        facts["relative_error_with_unstored"] = {
            task: error.whole.relative_error
            for task, error in zip(tasks, encoded.errors, strict=True)
        }
    return facts


def _basis_facts(stored: EncodedStack | None, tasks: int) -> dict[str, Any]:
    if stored is None:
        return {"k": 0, "D": 0, "N": tasks, "directions": 0, "energy_retained": 1.0}
    return {
        "k": stored.rank,
        "D": stored.scalars,
        "N": tasks,
        "directions": stored.directions,
        "energy_retained": stored.energy_retained,
    }


def _error_facts(errors: Sequence[TaskError], tasks: list[str]) -> dict[str, Any]:
    return error_facts(
        {task: error.stored.as_json() for task, error in zip(tasks, errors, strict=True)}
    )
