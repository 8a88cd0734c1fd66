"""What an export kept and lost, per tensor and in total."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class TensorOutcome:
    """What became of one changed tensor.

    Args:
        name: of the tensor.
        stored: as factors, whole, or not at all.
        rank: of the factors; 0 without.
        energy: squared norm of its delta.
        lost: squared norm of what the export leaves out of it.
        why: why it is lost; else empty.
    """

    name: str
    stored: Literal["factors", "whole", "lost"]
    rank: int
    energy: float
    lost: float
    why: str = ""

    @property
    def relative_error(self) -> float:
        """Norm of what is left out over the delta's."""
        return math.sqrt(self.lost / self.energy)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        facts: dict[str, Any] = {
            "stored": self.stored,
            "rank": self.rank,
            "norm": math.sqrt(self.energy),
            "relative_error": self.relative_error,
        }
        return facts | ({"why": self.why} if self.why else {})


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote.

    Args:
        output_path: the adapter's folder.
        selection: what was rebuilt, for people.
        artifact_id: of the artifact it came from.
        rank: of the factors in the file; at most what was asked for.
        dtype: of the factors.
        tensors: every changed tensor.
        notes: what the user should know.
        bytes_written: size of the output.
        wall_s, cpu_s: time of the run.
    """

    output_path: Path
    selection: str
    artifact_id: str
    rank: int
    dtype: str
    tensors: tuple[TensorOutcome, ...]
    notes: tuple[str, ...]
    bytes_written: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def relative_error(self) -> float:
        """Norm of all that is left out over the norm of the whole delta."""
        return _ratio(self.tensors)

    @property
    def factors_error(self) -> float:
        """The same over the tensors that are stored as factors."""
        return _ratio([tensor for tensor in self.tensors if tensor.stored == "factors"])

    def named(self, stored: str) -> list[TensorOutcome]:
        """The tensors stored in one way."""
        return [tensor for tensor in self.tensors if tensor.stored == stored]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "output_path": str(self.output_path),
            "format": "peft",
            "selection": self.selection,
            "artifact_id": self.artifact_id,
            "rank": self.rank,
            "dtype": self.dtype,
            "relative_error": self.relative_error,
            "relative_error_of_factors": self.factors_error,
            "tensors": {tensor.name: tensor.as_json() for tensor in self.tensors},
            "bytes_written": self.bytes_written,
            "notes": list(self.notes),
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }


def _ratio(tensors: tuple[TensorOutcome, ...] | list[TensorOutcome]) -> float:
    energy = math.fsum(tensor.energy for tensor in tensors)
    return math.sqrt(math.fsum(t.lost for t in tensors) / energy) if energy else 0.0
