"""Every tensor of a grown artifact: what was stored copied as it lies, the new tasks added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch

from svd_hybrid.artifact.fingerprint import check_digest
from svd_hybrid.artifact.manifest import TensorRecord
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.writer import ArtifactWriter
from svd_hybrid.compress.append.measure import tensor_facts
from svd_hybrid.compress.append.rest import RestSource
from svd_hybrid.compress.append.tensor import GrowingTensor, reweighed, to_json
from svd_hybrid.compress.config import CompressConfig, params_to_json
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.profiles.base import Originals
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.tensor import settings_of_kind
from svd_hybrid.errors import shorten
from svd_hybrid.io.family import Family, Stack
from svd_hybrid.io.tensors import DTYPE_NAMES, tensor_digest
from svd_hybrid.numerics.metrics import ErrorSums


@dataclass(slots=True)
class Grower:
    """Writes the tensors of the grown artifact, one at a time."""

    config: CompressConfig
    rest: RestSource
    writer: ArtifactWriter
    diagnostics: Diagnostics
    recorded: Mapping[str, Any]
    untied: list[str] = field(default_factory=list)

    @property
    def artifact(self) -> ArtifactReader:
        """What is grown."""
        return self.rest.artifact

    @property
    def family(self) -> Family:
        """Base and new tasks."""
        return self.rest.family

    @property
    def places(self) -> Mapping[str, int]:
        """Index of every new task."""
        return self.rest.places

    def run(self, progress: Progress | None) -> None:
        """Read, extend and write every tensor."""
        settings = FamilySettings(
            self.config, list(self.places), (0.0,) * len(self.places), self.family.base.infos
        )
        prefixes = self._prefixes()
        profile = self.config.profile
        records = self.artifact.manifest.tensors
        for done, record in enumerate(records, start=1):
            base = self.family.base.read(record.name)
            check_digest(record, tensor_digest(base), self.family.base.path)
            self.diagnostics.count_scalars(self.family.base.infos[record.name])
            own = settings_of_kind(settings.of(record.name), profile, record.name, record.shape)
            self._write(record, own.profile, prefixes)
            if progress:
                progress("append", done, len(records))

    def notes(self, new: list[str], replaced: list[str]) -> Iterator[str]:
        """How the new tasks were stored."""
        chosen = params_to_json(self.config.profile_params)
        facts = ", ".join(f"{key}={value}" for key, value in chosen.items() if value is not None)
        how = f"by profile {self.config.profile}" + (f" ({facts})" if facts else "")
        if new:
            yield f"appended {how}: {shorten(new)}"
        if replaced:
            yield f"replaced {how}: {shorten(replaced)}"
        if self.untied:
            yield f"no longer tied, and stored twice for all tasks: {shorten(self.untied)}"

    def _prefixes(self) -> tuple[str, ...]:
        """Those of earlier additions, and a free one."""
        tensors = self.artifact.manifest.tensors
        used = {name.split(".", 1)[0] for tensor in tensors for name in tensor.parts if "." in name}
        used |= {name for tensor in tensors for name in tensor.parts}
        numbers = range(len(used) + 1)
        free = next(number for number in numbers if f"n{number}" not in used)
        return tuple(f"n{number}." for number in range(free + 1))

    def _write(self, record: TensorRecord, params: Any, prefixes: tuple[str, ...]) -> None:
        plain = replace(record, parts={}, task=None, blend=None, merges={}, alias=None)
        if record.alias is not None:
            if self.family.same_everywhere(record.name, record.alias):
                self.writer.add_alias(plain, record.alias)
                info = self.family.base.infos[record.name]
                self.diagnostics.add_alias(record.name, record.alias, info)
                return
            self.untied.append(record.name)
        owner = self.artifact.owner(record)
        stack = self.family.stack(record.name)
        grown = self.rest.grown(record, stack.base, prefixes)
        before = dict(grown.parts)
        for index in self.places.values():
            grown.clear(index)
        errors: dict[str, ErrorSums | None] = {}
        for number, (task, index) in enumerate(self.places.items()):
            errors[task] = self._add(grown, stack, record, number, index, params)
        grown.drop_unused()
        more = len(self.writer.tasks) - len(self.artifact.manifest.tasks)
        self.writer.add_tensor(
            plain,
            grown.parts,
            task=reweighed(to_json(grown.task), more),
            blend=reweighed(to_json(grown.blend), more),
            merges=reweighed(grown.merges, more),
        )
        if stack.deltas is not None:
            self._measure(record, owner, grown, before, errors)
            self.family.recycle(stack.deltas)

    def _add(
        self,
        grown: GrowingTensor,
        stack: Stack,
        record: TensorRecord,
        number: int,
        index: int,
        params: Any,
    ) -> ErrorSums | None:
        """Code one task; returns what is lost, where that is measured."""
        if stack.deltas is None:
            return None
        delta = stack.deltas[number].reshape(grown.shape)
        profile = PROFILES[self.config.profile]
        if profile.encode_originals is not None:
            mine = next(islice(self.family.tuned(record.name), number, None))
            dtype = DTYPE_NAMES[mine.dtype]
            matrix = mine.reshape(grown.shape)
            originals = Originals(
                record.name,
                record.shape,
                grown.base,
                (list(self.places)[number],),
                lambda: iter((matrix,)),
            )
            grown.add_exact(index, profile.encode_originals(originals, params), dtype, record.dtype)
            delta = matrix.to(torch.float64) - grown.base.to(torch.float64)
        else:
            rest = (delta.to(torch.float64) - grown.delta(index)).to(delta.dtype)
            stored = profile.encode(rest.unsqueeze(0), None, params, "")
            if stored is not None and stored.parts:
                grown.add(index, stored)
        return grown.error(index, delta) if self.config.eval_reconstruction else None

    def _measure(
        self,
        record: TensorRecord,
        owner: TensorRecord,
        grown: GrowingTensor,
        before: Mapping[str, Any],
        errors: Mapping[str, ErrorSums | None],
    ) -> None:
        info = self.family.base.infos[record.name]
        known = self.recorded.get("per_parameter", {}).get(owner.name)
        facts = tensor_facts(known, info, grown, before, errors, self.diagnostics.tasks)
        self.diagnostics.per_parameter[record.name] = facts
        self.diagnostics.tasks_measured = True
        if grown.task is not None:
            self.diagnostics.delta_scalars += info.count
        for task, error in errors.items():
            if error is not None:
                self.diagnostics.totals[self.places[task]].merge(error)
