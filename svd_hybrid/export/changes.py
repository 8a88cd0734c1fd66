"""What a selection changes in each tensor of the base, taken apart where factors can hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svd_hybrid.artifact.fingerprint import check_tensor
from svd_hybrid.artifact.manifest import TensorRecord
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.export.factors import Factors, best_factors
from svd_hybrid.export.roles import ALL, BaseFacts, is_kept, why_no_factors
from svd_hybrid.io.adapter.modules import stored_in_out
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.io.tensors import DTYPES
from svd_hybrid.numerics.metrics import squared_norm
from svd_hybrid.reload.rebuild import BLOCK_SCALARS, selected_delta
from svd_hybrid.reload.selection import Selection

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Change:
    """One changed tensor.

    Args:
        name: of the tensor.
        energy: squared norm of its delta.
        factors: of a linear weight.
        in_out: whether that is stored (inputs, outputs).
        why: why there are no factors.
    """

    name: str
    energy: float
    factors: Factors | None = None
    in_out: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Deltas:
    """Deltas of one selection, from an artifact and its base."""

    artifact: ArtifactReader
    base: CheckpointReader
    selection: Selection

    @property
    def records(self) -> Sequence[TensorRecord]:
        """Every tensor of the base."""
        return self.artifact.manifest.tensors

    def of(self, record: TensorRecord) -> Tensor | None:
        """The delta as a matrix (m, n) float32; None where it is zero.

        Raises:
            BaseMismatchError: the base tensor is another one.
            ArtifactError: stored parts are damaged.
        """
        base = self.base.read(record.name)
        check_tensor(record, base, self.base.path)
        if not base.is_floating_point():
            return None
        found = selected_delta(self.artifact, record, self.selection, base)
        if found is None:
            return None
        rows, columns = matrix_shape(record.shape)
        delta = torch.empty((rows, columns))
        step = max(1, BLOCK_SCALARS // max(columns, 1))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            delta[start:stop] = found.rows(start, stop).to(torch.float32)
        return delta if bool(delta.any()) else None


def find_changes(
    deltas: Deltas,
    facts: BaseFacts,
    rank: int,
    dtype: str,
    keep: Sequence[str],
    progress: Progress | None,
) -> Iterator[Change]:
    """Every changed tensor, in the order of the manifest; one delta in memory at a time.

    Args:
        deltas: what to take apart.
        facts: of the base.
        rank: most directions of a weight.
        dtype: of the factors.
        keep: patterns of tensors that get no factors, because they are to be saved whole.
        progress: called as tensors are done.
    """
    infos = deltas.base.infos
    in_out = stored_in_out(infos)
    named = [pattern for pattern in keep if pattern != ALL]
    for done, record in enumerate(deltas.records, start=1):
        delta = deltas.of(record)
        if delta is not None:
            name = record.name
            why = why_no_factors(name, infos[name], facts)
            if why or is_kept(name, named):
                yield Change(name, squared_norm(delta), why=why)
            else:
                turned = in_out.get(name, False)
                factors = best_factors(delta, rank, DTYPES[dtype], in_out=turned)
                yield Change(name, factors.energy, factors, turned)
        if progress:
            progress("export", done, len(deltas.records))
