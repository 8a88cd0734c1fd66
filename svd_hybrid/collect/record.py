"""What a statistics file says of itself: of which weights, on which data, how many samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from svd_hybrid.errors import FamilyError
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.io.tensors import tensor_digest

METADATA_KEY = "svdh_statistics"
VERSION = 1
"""+1 when equal inputs give other numbers, or fields change."""


@dataclass(frozen=True, slots=True)
class StatisticsRecord:
    """The record inside one task's file.

    Args:
        task: whose data ran.
        kind: `moment` or `gram`.
        ran: whose weights ran: the task's own fine-tune or the base.
        tensors: `tensor_digest` by name of the checkpoint that ran.
        data: source, digest, counts and settings of the data.
        rows: inputs counted, by weight.
        inputs_first: weights stored inputs x outputs.
        without: floating-point matrices of the checkpoint that have no statistics.
        version: of this record and of the numbers.
    """

    task: str
    kind: Literal["moment", "gram"]
    ran: Literal["task", "base"]
    tensors: Mapping[str, str]
    data: Mapping[str, Any]
    rows: Mapping[str, int] = field(default_factory=dict)
    inputs_first: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    version: int = VERSION

    @property
    def key(self) -> str:
        """SHA-256 (hex) of everything that decides the numbers, rounding aside."""
        data = {name: value for name, value in self.data.items() if name not in ("source", "asked")}
        decisive = {"kind": self.kind, "version": self.version, "data": data}
        text = json.dumps(decisive | {"tensors": dict(self.tensors)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over names and digests of the checkpoint that ran."""
        lines = (f"{name} {digest}\n" for name, digest in sorted(self.tensors.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def metadata(self) -> dict[str, str]:
        """As it stands in a safetensors header."""
        return {METADATA_KEY: json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)}

    def summary(self) -> dict[str, Any]:
        """For people: without the digest of every tensor."""
        found = {name: value for name, value in asdict(self).items() if name not in LONG}
        rows = sorted(set(self.rows.values()))
        return {**found, "fingerprint": self.fingerprint, "weights": len(self.rows), "rows": rows}

    @classmethod
    def read(cls, metadata: Mapping[str, str], where: str) -> StatisticsRecord | None:
        """The record of a file's metadata; None where the file has none.

        Raises:
            FamilyError: it is of a version or shape this program does not know.
        """
        if METADATA_KEY not in metadata:
            return None
        try:
            found = json.loads(metadata[METADATA_KEY])
            if found["version"] != VERSION:
                raise FamilyError(
                    f"statistics have version {found['version']}, this program reads {VERSION}",
                    where=where,
                    fix="collect them again",
                )
            lists = {name: tuple(found[name]) for name in ("inputs_first", "without")}
            return cls(**{**found, **lists})
        except (ValueError, KeyError, TypeError) as error:
            raise FamilyError(
                f"record of the statistics is damaged: {error}",
                where=where,
                fix="collect them again",
            ) from error


LONG = ("tensors", "rows")


def digests(checkpoint: CheckpointReader) -> dict[str, str]:
    """`tensor_digest` of every tensor of a checkpoint, by name."""
    return {name: tensor_digest(checkpoint.read(name)) for name in sorted(checkpoint.infos)}
