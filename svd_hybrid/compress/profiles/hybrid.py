"""`hybrid`: the storage the SVD-Hybrid documentation describes, with the heavy data coded.

Per tensor: an optional mean, an orthonormal basis split by energy into high and low directions, the
projections on the high ones in FP16, those on the low ones in residual low-bit stages. The basis
is the *small* factor shared by the tasks (`left`, `right`); the original put the long one there and
quantised a handful of numbers (`tasks`, kept for parity). Source: methods.md §21.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.codec import Codec, HalfCodec, RawCodec, ResidualAffineCodec
from svd_hybrid.compress.profiles.base import (
    EncodedStack,
    Profile,
    decode_part,
    encode_part,
    join_slices,
    masked_stack,
    squared_error,
)
from svd_hybrid.compress.profiles.params import BASIS_BITS, HybridParams
from svd_hybrid.delta.expr import Dense, Expr, LowRank, Sum
from svd_hybrid.numerics.energy import explained_energy, rank_for_energy
from svd_hybrid.numerics.linalg import gram_of_rows, least_squares_on, principal_directions

TOLERATED_LOSS = 1.1
"""What `basis_dtype=auto` may multiply the error by."""


def precise_codec(params: HybridParams) -> Codec:
    """Codec of the mean and the high coefficients."""
    return HalfCodec() if params.fp16 else RawCodec()


def basis_codec(params: HybridParams) -> Codec:
    """Codec of the basis."""
    bits = BASIS_BITS.get(params.basis_dtype)
    return ResidualAffineCodec(bits) if bits else precise_codec(params)


def low_codec(params: HybridParams, *, whole_slice: bool) -> Codec:
    """Codec of the low coefficients; in the original layout a slice shares one float32 step."""
    if whole_slice or not params.group_size:
        return ResidualAffineCodec(params.low_bits, params.rtvq_stages, 0, "F32")
    return ResidualAffineCodec(params.low_bits, params.rtvq_stages, params.group_size)


def encode(
    stack: Tensor, mask: Tensor | None, params: HybridParams, prefix: str = ""
) -> EncodedStack | None:
    """Store one region of one tensor.

    Args:
        stack: (N, m, n) float32 or float64, task minus base; finite.
        mask: (m, n) bool, or None for the whole tensor; scalars outside are not stored.
        params: as the user set them.
        prefix: put before the name of every part.

    Returns:
        Parts `mean`, `basis_high`, `basis_low`, `coeff_high`, `coeff_low` as far as they exist,
        and `delta = basis.T @ coeff (+ mean)` over them; None when all deltas are zero.
    """
    if params.basis_dtype == "auto":
        return _with_cheapest_basis(stack, mask, params, prefix)
    if params.basis == "tasks":
        flat = stack.flatten(1) if mask is None else stack[:, mask]
        return _Encoder(flat.unsqueeze(-1), params, "tasks", flat.shape[1], prefix).run()
    m, n = stack.shape[1:]
    side = params.basis
    if min(m, n) == 1 or side == "auto":
        side = "left" if m <= n else "right"  # a vector's only sensible basis is the 1 x 1 one
    scalars = m * n if mask is None else int(mask.sum())
    return _Encoder(masked_stack(stack, mask), params, side, scalars, prefix).run()


def _with_cheapest_basis(
    stack: Tensor, mask: Tensor | None, params: HybridParams, prefix: str
) -> EncodedStack | None:
    """The trial with the fewest basis bits whose real error is close to that of an FP16 basis."""

    def trial(basis_dtype: Literal["fp16", "int8", "int4"]) -> EncodedStack | None:
        return encode(stack, mask, replace(params, basis_dtype=basis_dtype), prefix)

    precise = trial("fp16")
    if precise is None:
        return None
    allowed = TOLERATED_LOSS**2 * squared_error(precise, stack, mask)
    coarse: tuple[Literal["int4", "int8"], ...] = ("int4", "int8")
    for basis_dtype in coarse:
        stored = trial(basis_dtype)
        if stored is not None and squared_error(stored, stack, mask) <= allowed:
            return stored
    return precise


class _Encoder:
    """The steps of `encode` for one stack (N, m, n); `tasks` has n = 1 and m scalars."""

    def __init__(
        self,
        stack: Tensor,
        params: HybridParams,
        side: Literal["left", "right", "tasks"],
        scalars: int,
        prefix: str,
    ) -> None:
        self.stack = stack
        self.params = params
        self.side = side
        self.scalars = scalars
        self.prefix = prefix
        self.parts: dict[str, EncodedPart] = {}
        self.terms: list[Expr] = []
        self.mean: Tensor | None = None  # exact
        self.stored_mean: Tensor | None = None  # as a reader will see it

    def run(self) -> EncodedStack | None:
        if not bool(self.stack.any()):
            return None
        if self.params.center and self.stack.shape[0] > 1:
            self._store_mean()
        energies, basis = self._directions()
        rank = rank_for_energy(energies, self.params.energy_threshold, self.params.max_rank)
        kept = basis.shape[0] if self.params.keep_low else rank
        decoded = self._store_basis(basis[:rank], basis[rank:kept])
        if kept:
            self._store_coefficients(decoded, rank)
        if self.stored_mean is not None:
            self.terms.append(Dense(f"{self.prefix}mean"))
        return EncodedStack(
            self.parts,
            self.terms[0] if len(self.terms) == 1 else Sum(tuple(self.terms)),
            flat=self.side == "tasks",
            rank=rank,
            directions=kept,
            scalars=self.scalars,
            energy_retained=float(explained_energy(energies)[rank - 1]) if rank else 1.0,
        )

    def _store_mean(self) -> None:
        self.mean = self.stack.mean(dim=0)
        self.stored_mean = self._store("mean", precise_codec(self.params), self.mean)

    def _store(self, name: str, codec: Codec, x: Tensor) -> Tensor:
        """Keep one shared part; returns it as a reader will see it."""
        part = self.parts[self.prefix + name] = encode_part(codec, x)
        return decode_part(part, None)

    def _centred(self, mean: Tensor | None) -> Iterator[Tensor]:
        """Each task's (short side, long side) matrix, one at a time, less `mean`."""
        for delta in self.stack:
            centred = delta if mean is None else delta - mean
            yield centred.T if self.side == "right" else centred

    def _directions(self) -> tuple[Tensor, Tensor]:
        """Energies (r,) and basis (r, length), strongest first; of the exactly centred stack."""
        m = self.stack.shape[1]
        if self.side != "tasks":
            gram = gram_of_rows(self._centred(self.mean))
            energies, vectors = principal_directions(gram, gram.shape[0])
            return energies, vectors.T
        columns = torch.cat(list(self._centred(self.mean)), dim=1).T.to(torch.float64)  # (N, D)
        energies, rotation = principal_directions(columns @ columns.T, m)
        basis = (rotation.T @ columns) / energies.sqrt().unsqueeze(1)
        signs = torch.where(basis.gather(1, basis.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
        return energies, basis * signs

    def _store_basis(self, high: Tensor, low: Tensor) -> Tensor:
        """Store the two halves; returns the basis (kept, length) as a reader will see it."""
        codec = basis_codec(self.params)
        decoded = [
            self._store(name, codec, half)
            for name, half in (("basis_high", high), ("basis_low", low))
            if half.shape[0]
        ]
        return torch.cat(decoded) if decoded else high.to(torch.float32)

    def _store_coefficients(self, basis: Tensor, rank: int) -> None:
        """Project every task on the decoded basis and store high and low parts."""
        # The original layout projects (methods.md §21.7); least squares also undoes what rounding
        # did to the basis, which matters once that is coded in few bits.
        projector = basis.to(torch.float64) if self.side == "tasks" else least_squares_on(basis.T)
        coarse = low_codec(self.params, whole_slice=self.side == "tasks")
        halves = [("high", slice(0, rank), precise_codec(self.params))]
        if rank < basis.shape[0]:
            halves.append(("low", slice(rank, None), coarse))
        encoded: dict[str, list[EncodedPart]] = {name: [] for name, _, _ in halves}
        for matrix in self._centred(self.stored_mean):  # one task's coefficients in memory
            coefficients = (projector @ matrix.to(torch.float64)).to(torch.float32)
            for name, rows, codec in halves:
                encoded[name].append(encode_part(codec, coefficients[rows].unsqueeze(0)))
        for name, slices in encoded.items():
            factors = (f"{self.prefix}basis_{name}", f"{self.prefix}coeff_{name}")
            self.parts[factors[1]] = join_slices(slices)
            left, right = factors[::-1] if self.side == "right" else factors
            self.terms.append(LowRank(left, right, limbs=1 if self.params.fp16 else 2))


HYBRID = Profile(
    name="hybrid",
    summary="Shared SVD basis, FP16 high-energy coefficients, multi-stage low-bit others.",
    encode=encode,
)
