"""Golden cases as objects, and the comparisons every golden test makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from svd_hybrid.codec import RawCodec, ResidualAffineCodec
from svd_hybrid.codec.bitpack import unpack
from svd_hybrid.compress.profiles.base import EncodedParts, decode_part
from svd_hybrid.compress.profiles.hybrid import _Encoder
from svd_hybrid.compress.profiles.params import HybridParams
from svd_hybrid.delta.evaluate import Mix, evaluate
from svd_hybrid.delta.expr import Dense, Sum

EPSILON_F32 = 2.0**-24


@dataclass(frozen=True)
class Case:
    """One folder of the golden vectors."""

    root: Path
    name: str

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text("utf-8"))

    @property
    def folder(self) -> Path:
        return self.root / "cases" / self.name

    def holds(self, file: str) -> bool:
        return (self.folder / f"{file}.safetensors").is_file()

    def load(self, file: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{file}.safetensors")

    def tolerance(self, file: str) -> float:
        return self.facts["tolerance"][f"{file}.safetensors"]["value"]

    def nonfinite(self, file: str) -> list[str]:
        return self.facts.get("nonfinite_keys", {}).get(f"{file}.safetensors", [])

    @property
    def family(self) -> Path:
        return self.root / "families" / self.facts["family"]

    @property
    def weights(self) -> list[float]:
        return list(self.facts["weights"].values())

    @cached_property
    def base(self) -> dict[str, Tensor]:
        return load_file(self.family / "base.safetensors")

    @cached_property
    def deltas(self) -> dict[str, Tensor]:
        """(N, *shape) float64 by name, float tensors only."""
        tasks = [load_file(self.family / f"{task}.safetensors") for task in self.facts["weights"]]
        return {
            name: torch.stack([task[name].double() - start.double() for task in tasks])
            for name, start in self.base.items()
            if start.is_floating_point()
        }

    def unpacked(self, file: str, key: str, shape: torch.Size) -> Tensor:
        """A bit-packed mask as bools (numpy.packbits, first scalar in the high bit)."""
        return unpack_mask(self.load(file)[key], shape)


@cache
def golden_case(root: Path, name: str) -> Case:
    """The case, one object per name, so that its files are read once."""
    return Case(root, name)


def stored_cases(root: Path) -> list[Case]:
    """Every case of a folder of golden vectors, by name; none where there is no folder."""
    folders = sorted((root / "cases").glob("*/case.json"))
    return [golden_case(root, path.parent.name) for path in folders]


def unpack_mask(packed: Tensor, shape: torch.Size) -> Tensor:
    bits = np.unpackbits(packed.numpy(), count=shape.numel())
    return torch.from_numpy(bits.astype(bool)).reshape(shape)


def relative_error(got: Tensor, want: Tensor) -> float:
    """Frobenius norm of the difference over that of `want`; absolute where that is below 1e-12."""
    got, want = got.double(), want.double()
    norm = float(want.norm())
    return float((got - want).norm()) / (norm if norm >= 1e-12 else 1.0)


@dataclass(frozen=True)
class Stage:
    """One quantiser stage in the reference's words: codes, levels per unit, zero point."""

    codes: Tensor
    scale: float
    zero: float


def quantise(x: Tensor, bits: int, stages: int) -> tuple[list[Stage], Tensor]:
    """Our codec in the original layout: the stages it stores, and what they decode to."""
    codec = ResidualAffineCodec(bits, stages, group_size=0, step="F32")
    whole = x.reshape(1, 1, -1)
    arrays = codec.encode(whole)
    found = []
    for index in range(stages):
        codes, step, zero, exponent = (
            arrays[f"stage{index}.{kind}"] for kind in ("codes", "step", "zero", "exponent")
        )
        unit = float(step.double()) * 2.0 ** int(exponent)
        found.append(
            Stage(
                unpack(codes, bits, x.numel()).flatten(),
                1 / unit if unit else float("inf"),
                int(zero),
            )
        )
    return found, codec.decode(arrays, tuple(whole.shape)).reshape(x.shape)


def worst_error(x: Tensor, bits: int, stages: int) -> float:
    """Bound on |x - decoded|: half a step of the last stage, plus float32 storage of the steps.

    A residual spans at most one step of the stage before, hence range / (2**bits - 1)**stages.
    """
    reach = float(x.max().double() - x.min().double())
    rounding = 4 * EPSILON_F32 * float(x.abs().max())
    return reach / (2**bits - 1) ** stages / 2 + rounding


@dataclass(frozen=True)
class OnStoredBasis:
    """What our encoder makes of a stack on the basis a golden case stores."""

    encoder: _Encoder
    tasks: int

    def coefficients(self, half: str) -> Tensor:
        """(N, k) as a reader will see them."""
        part = self.encoder.parts[f"coeff_{half}"]
        return torch.stack([decode_part(part, task)[:, 0] for task in range(self.tasks)])

    def codes(self, stage: int) -> Tensor:
        """(N, k) low codes."""
        part = self.encoder.parts["coeff_low"]
        packed = part.arrays[f"stage{stage}.codes"]
        return unpack(packed, self.encoder.params.low_bits, part.rows)

    def merged(self, weights: list[float]) -> Tensor:
        """(D,) weighted merge, by the code that reload uses."""
        terms = list(self.encoder.terms)
        if "mean" in self.encoder.parts:
            terms.append(Dense("mean"))
        rows = evaluate(
            Sum(tuple(terms)),
            EncodedParts(self.encoder.parts),
            Mix(dict(enumerate(weights))),
            (self.encoder.scalars, 1),
        )
        return rows.rows(0, self.encoder.scalars)[:, 0]


def on_stored_basis(
    stack: Tensor, bases: Mapping[str, Tensor], prefix: str, params: HybridParams
) -> OnStoredBasis:
    """Run the encoder's coefficient step on U_high, U_low and (when centring) mean of a case.

    Args:
        stack: (N, D) deltas of the selected scalars.
        bases: the case's bases; `prefix` is `<parameter>/<region>`.
    """
    encoder = _Encoder(stack.float().unsqueeze(-1), params, "tasks", stack.shape[1], "")
    if params.center:
        mean = bases[f"{prefix}/mean"].unsqueeze(-1)  # the reference stores it in float32
        encoder.stored_mean = encoder._store("mean", RawCodec(), mean)
    high, low = (bases[f"{prefix}/U_{half}"].float().T for half in ("high", "low"))
    basis = encoder._store_basis(high, low)
    assert torch.equal(basis, torch.cat([high, low]))  # our FP16 holds theirs exactly
    encoder._store_coefficients(basis, high.shape[0])
    return OnStoredBasis(encoder, stack.shape[0])


def hybrid_params(case: Case, **changes: Any) -> HybridParams:
    """The storage parameters of a golden case."""
    given = case.facts["params"]
    names = {"energy_threshold", "max_rank", "center", "fp16", "low_bits", "rtvq_stages"}
    known = {name: given[f"svd_{name}"] for name in names}
    return HybridParams(**(known | changes), basis="tasks")
