"""Artifacts in the original layout, written as that system wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass
class Legacy:
    """What goes into one directory; every field may be changed before it is written.

    Args:
        bases: tensor → region (`masked`, `noise`) → basis record.
        coefficients: tensor → task → region (`masked`, `unmasked`) → coefficient record.
        config, weights, diagnostics, clusters: the JSON documents; None leaves one out.
        folders: names of the two folders.
    """

    bases: dict[str, dict[str, Any]]
    coefficients: dict[str, dict[str, Any]]
    config: dict[str, Any] | None
    weights: dict[str, float] | None
    diagnostics: dict[str, Any] | None = None
    clusters: dict[str, int] | None = None
    folders: tuple[str, str] = ("basis", "coeffs")
    written: Path | None = field(default=None)

    def write(self, folder: Path) -> Path:
        for name, records in zip(self.folders, (self.bases, self.coefficients), strict=True):
            (folder / name).mkdir(parents=True)
            for tensor, record in records.items():
                file = tensor.replace("/", "_").replace("\\", "_") + ".pt"
                torch.save(record, folder / name / file)
        for file, document in (
            ("config.json", self.config),
            ("weights.json", self.weights),
            ("diagnostics.json", self.diagnostics),
            ("clusters.json", self.clusters),
        ):
            if document is not None:
                (folder / file).write_text(json.dumps(document, indent=2))
        self.written = folder
        return folder


def quantise(x: Tensor, bits: int, stages: int, *, head: bool = False) -> dict[str, Any]:
    """The residual quantiser: a scale of levels per unit.

    Args:
        x: one task's coefficients.
        bits: per code.
        stages: of the residual.
        head: the last revision, which divides by the range of constants instead of coding zeros.
    """
    payloads, residual = [], x.clone()
    for stage in range(stages if x.numel() else 0):
        scale = (2**bits - 1) / (residual.max() - residual.min())
        zero = -torch.round(scale * residual.min())
        codes = torch.round(scale * residual + zero).clamp(0, 2**bits - 1).to(torch.uint8)
        if not (head or bool(torch.isfinite(scale))):
            scale, zero, codes = torch.tensor(1.0), torch.tensor(0.0), torch.zeros_like(codes)
        payloads.append(
            {
                "stage": stage,
                "quantized": codes,
                "scale": scale,
                "zero_point": zero,
                "residual_norm": residual.norm().item(),
            }
        )
        residual = residual - (codes.float() - zero) / scale
    return {
        "payloads": payloads,
        "num_bits": bits,
        "num_stages": stages,
        "original_shape": x.shape,
        "original_dtype": str(x.dtype),
    }


def basis_record(
    high: Tensor, low: Tensor, mean: Tensor | None, values: Tensor, tasks: int
) -> dict[str, Any]:
    rank = high.shape[1]
    total = float(values.square().sum())
    return {
        "U_high": high,
        "U_low": low,
        "singular_values": values,
        "k": rank,
        "mean": None if mean is None else mean.reshape(-1, 1),
        "energy_retained": float(values[:rank].square().sum()) / total if total else 1.0,
        "D": high.shape[0],
        "N": tasks,
    }


def original_region(
    deltas: Tensor,
    rank: int,
    *,
    center: bool = True,
    project_raw: bool = False,
    head: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Basis record and each task's coefficient record for deltas (N, D), as the program made them.

    Args:
        deltas: one row a task.
        rank: high directions.
        center: subtract the mean first.
        project_raw: the revision that projected the deltas without subtracting it.
        head: the revision that turns constants into NaN.
    """
    mean = deltas.mean(0) if center else None
    centred = deltas if mean is None else deltas - mean
    left, values, _ = torch.linalg.svd(centred.T, full_matrices=False)
    high, low = left[:, :rank].half(), left[:, rank:].half()
    source = deltas if project_raw else centred
    records = [
        {
            "c_high_fp16": (high.float().T @ row).half(),
            "c_low_quant": quantise(low.float().T @ row, 4, 2, head=head),
        }
        for row in source
    ]
    return basis_record(high, low, mean, values, len(deltas)), records


def meant(
    basis: Mapping[str, Any], records: Sequence[Mapping[str, Any]], weights: Sequence[float]
) -> Tensor:
    """The weighted sum of what a region's records stand for, float64 (D,)."""
    total = torch.zeros(basis["U_high"].shape[0], dtype=torch.float64)
    for record, weight in zip(records, weights, strict=True):
        low = torch.zeros(basis["U_low"].shape[1], dtype=torch.float64)
        for payload in record["c_low_quant"]["payloads"]:
            codes = payload["quantized"].double()
            low += (codes - float(payload["zero_point"])) / float(payload["scale"])
        total += weight * (basis["U_high"].double() @ record["c_high_fp16"].double())
        total += weight * (basis["U_low"].double() @ low)
    if basis["mean"] is not None:
        total += sum(weights) * basis["mean"].double().reshape(-1)
    return total
