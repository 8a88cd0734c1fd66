"""Every tensor of a run: what is carried over, the coded task deltas, the stored merge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from svd_hybrid.artifact.fingerprint import check_digest
from svd_hybrid.artifact.manifest import TensorRecord
from svd_hybrid.artifact.merges import LinearMerge, Merge, StoredMerge
from svd_hybrid.artifact.writer import EncodedPart
from svd_hybrid.compress.coded_merge import MergeCoding
from svd_hybrid.compress.config import params_to_json
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.merging import (
    EncodedMerge,
    average_result,
    encode_merge,
    linear_result,
    normalised,
    precise_codec,
)
from svd_hybrid.compress.plan import RunPlan
from svd_hybrid.compress.profiles.base import Originals
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.compress.source import DeltaSource
from svd_hybrid.compress.stream import FamilyStream, Progress
from svd_hybrid.compress.tensor import (
    EncodedTensor,
    encode_tensor,
    masked_regions,
    settings_of_kind,
)
from svd_hybrid.compress.workers import Call, Workers
from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.delta.expr import Exact, Expr, Scale, Sum, Weighted
from svd_hybrid.delta.serial import expr_from_json, expr_to_json
from svd_hybrid.io.family import Stack, is_buffer
from svd_hybrid.io.tensors import tensor_digest
from svd_hybrid.methods import METHODS
from svd_hybrid.methods.base import MergeResult, TensorContext
from svd_hybrid.reload.rebuild import is_variance

ZERO: Expr = Sum(())


@dataclass(frozen=True, slots=True)
class _Job:
    """One tensor of a run.

    Args:
        record: of it, without what is stored.
        tensor: what was read of it; None where it is stored under another name.
    """

    record: TensorRecord
    tensor: tuple[Stack, TensorContext] | None


class TensorSink(Protocol):
    """Takes the tensors of a run as they are made: an ArtifactWriter, or memory."""

    def add_tensor(
        self,
        record: TensorRecord,
        parts: Mapping[str, EncodedPart],
        *,
        task: Mapping[str, Any] | None = None,
        blend: Mapping[str, Any] | None = None,
        merges: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Take one tensor; see ArtifactWriter."""

    def add_alias(self, record: TensorRecord, alias: str) -> None:
        """Take a tensor that is an earlier one's twin."""


class FamilyEncoder:
    """Writes the tensors of a family, one at a time.

    Args:
        plan: what to write.
        stream: deltas, contexts and masks.
        writer: where to.
        diagnostics: collects what was measured.
        workers: who encodes.
    """

    def __init__(
        self,
        plan: RunPlan,
        stream: FamilyStream,
        writer: TensorSink,
        diagnostics: Diagnostics,
        workers: Workers,
    ) -> None:
        self.plan = plan
        self.config = plan.config
        self.stream = stream
        self.writer = writer
        self.diagnostics = diagnostics
        self.workers = workers
        self.method = METHODS[plan.config.method]
        self._prefix = plan.prefix
        carried = plan.carried.manifest.tensors if plan.carried else ()
        self._carried_records = {tensor.name: tensor for tensor in carried}
        self._base_digests: dict[str, str] = {}
        self._digests: dict[str, tuple[str | None, ...]] = {}  # of every task, where measured
        self._owners: dict[str, str] = {}  # tensor → the one it is stored under, when not itself

    def run(self, progress: Progress | None) -> None:
        """Scan where the method needs it, then encode every tensor."""
        infos = self.stream.source.base.infos
        names = sorted(infos)
        digests = {name: tensor_digest(self.stream.source.base.read(name)) for name in names}
        self._base_digests = digests
        for name, carried in self._carried_records.items():
            check_digest(carried, digests[name], self.stream.source.base.path)
        self._find_twins(names, digests)
        if self.plan.stores_merge:
            merged = [
                n for n in names if self.stream.source.has_deltas(n) and n not in self._owners
            ]
            self.stream.scan(merged, progress)
        jobs = (self._job(name) for name in names)
        for done, (job, encoded) in enumerate(self.workers.answers(jobs, self._call), start=1):
            record, info = job.record, infos[job.record.name]
            self.diagnostics.count_scalars(info)
            if job.tensor is None:
                self.writer.add_alias(record, self._owners[record.name])
                self.diagnostics.add_alias(record.name, self._owners[record.name], info)
            else:
                self._add(record, *job.tensor, encoded)
            del job, encoded  # before memory is taken for the next
            if progress:
                progress("encode", done, len(names))

    def merge(self, weights: tuple[float, ...]) -> Merge:
        """The manifest record of the merge; to be asked for after `run`."""
        params = self.config.method_params
        dtype = None if self.config.out_dtype == "base" else self.config.out_dtype
        facts = params_to_json(params)
        if self.config.overrides:
            facts["overrides"] = [rule.to_json() for rule in self.config.overrides]
        name, version = self.method.name, self.method.version
        if not self.plan.stores_merge:
            return LinearMerge(name, version, weights, params.scaling, facts, dtype)
        return StoredMerge(
            name,
            version,
            params.scaling if self.plan.uniform else 1.0,
            self.method.per_task_reload and not self.method.linear,
            self.stream.task_gains,
            facts,
            dtype,
        )

    def task_digests(self) -> dict[str, str]:
        """What the manifest says of single tasks; to be asked for after `run`.

        Left out where a tensor does not fit its dtype; empty when tasks are not coded or measured.
        """
        if not (self.plan.encodes_tasks and self.config.eval_reconstruction):
            return {}
        infos, found = self.stream.source.base.infos, {}
        for index, task in enumerate(self.stream.source.task_names):
            whole = hashlib.sha256()
            for name in sorted(infos):
                owner = self._owners.get(name, name)
                digests = self._digests.get(owner)
                one = self._base_digests[name] if digests is None else digests[index]
                if one is None or is_variance(name) != is_variance(owner):
                    break
                whole.update(one.encode())
            else:
                found[task] = whole.hexdigest()
        return found

    def _find_twins(self, names: list[str], digests: Mapping[str, str]) -> None:
        """Tied tensors: equal in base and every task, under equal settings; stored once."""
        stream = self.stream
        first_with: dict[str, str] = {}
        for name in names:
            if not stream.source.has_deltas(name):
                continue
            first = first_with.setdefault(digests[name], name)
            if (
                first != name
                and stream.source.same_everywhere(name, first)
                and stream.masks.same(name, first)
                and stream.settings.of(name) == stream.settings.of(first)
                and self._carried_owner(name) == self._carried_owner(first)
            ):
                self._owners[name] = first

    def _carried_owner(self, name: str) -> str | None:
        """Under which name the carried artifact stores a tensor; None without one."""
        if self.plan.carried is None:
            return None
        return self.plan.carried.owner(self._carried_records[name]).name

    def _job(self, name: str) -> _Job:
        info = self.stream.source.base.infos[name]
        digest = self._base_digests[name]
        record = TensorRecord(name, info.dtype, info.shape, digest, {}, buffer=is_buffer(name))
        return _Job(record, None if name in self._owners else self.stream.read(name))

    def _call(self, job: _Job) -> Call | None:
        """The encoding of a tensor's deltas; None where there is nothing to encode."""
        if job.tensor is None or job.tensor[0].deltas is None or not self.plan.encodes_tasks:
            return None
        stack, name = job.tensor[0], job.record.name
        config = self.config
        own = settings_of_kind(
            self.stream.settings.of(name), config.profile, name, job.record.shape
        )
        inputs = self.stream.inputs.of(name)
        originals = self._originals(name, stack)
        return encode_tensor, (stack.deltas, self._mask(name), config, own, originals, inputs)

    def _mask(self, name: str) -> Tensor | None:
        return self.stream.masks.combined(name) if self.method.takes_masks == "combined" else None

    def _add(
        self,
        record: TensorRecord,
        stack: Stack,
        ctx: TensorContext,
        encoded: EncodedTensor | None,
    ) -> None:
        name, info = record.name, self.stream.source.base.infos[record.name]
        parts, task, blend, merges = self._carried(record)
        if stack.deltas is None:
            self.writer.add_tensor(record, parts, task=task, blend=blend, merges=merges)
            return
        settings = self.stream.settings.of(name)
        if encoded is not None:
            parts |= encoded.parts
            task, blend = (
                None if expr is None else expr_to_json(expr)
                for expr in (encoded.task, encoded.blend)
            )
            self.diagnostics.add(name, info, encoded)
            self._digests[name] = tuple(error.sha256 for error in encoded.errors)
        if self.plan.stores_merge and not settings.keep_base:
            merge = self._merge(stack, ctx, self._mask(name), parts, blend or task)
            parts |= merge.parts
            if merge.merged is not None or merge.task is not None:
                merges[self.config.merge_name] = self._entry(merge, settings.method.scaling, record)
            self.diagnostics.add_merge(name, info, merge, tasks=not self.plan.holds_tasks)
        self.writer.add_tensor(record, parts, task=task, blend=blend, merges=merges)
        if not _share_memory(parts, stack.deltas):  # the writer keeps parts until a shard is full
            self.stream.source.recycle(stack.deltas)

    def _originals(self, name: str, stack: Stack) -> Originals:
        matrix = matrix_shape(tuple(stack.base.shape))
        source = self.stream.source

        shape = tuple(stack.base.shape)
        tuned = None
        if PROFILES[self.config.profile].encode_originals is not None:
            tuned = partial(_matrices, source, name, matrix)
            if self.workers.count > 1:  # which cannot read them
                tuned = partial(iter, list(tuned()))
        return Originals(name, shape, stack.base.reshape(matrix), tuple(source.task_names), tuned)

    def _carried(
        self, record: TensorRecord
    ) -> tuple[
        dict[str, EncodedPart],
        Mapping[str, Any] | None,
        Mapping[str, Any] | None,
        dict[str, Mapping[str, Any]],
    ]:
        """Parts, task, blend and merges of the tensor in the carried artifact."""
        if self.plan.carried is None:
            return {}, None, None, {}
        owner = self.plan.carried.owner(self._carried_records[record.name])
        parts = self.plan.carried.parts(owner).encoded()
        return parts, owner.task, owner.blend, dict(owner.merges)

    def _merge(
        self,
        stack: Stack,
        ctx: TensorContext,
        mask: Tensor | None,
        parts: Mapping[str, EncodedPart],
        task: Mapping[str, Any] | None,
    ) -> EncodedMerge:
        """The merge of one tensor before scaling, coded."""
        if self.method.linear and self.plan.holds_tasks:
            weights = normalised(ctx.weights) if is_buffer(ctx.name) else ctx.weights
            expr = None if task is None else Weighted(weights, expr_from_json(task))
            return EncodedMerge({}, expr, None)
        if stack.deltas is None or not stack.changed:
            return EncodedMerge({}, None, None)
        return encode_merge(
            self._result(stack.deltas, ctx, mask),
            stack.deltas,
            precise_codec(self.config.merged_dtype),
            self._prefix,
            measure=self.config.eval_reconstruction,
            coding=self._coding(ctx, parts, task),
        )

    def _coding(
        self,
        ctx: TensorContext,
        parts: Mapping[str, EncodedPart],
        task: Mapping[str, Any] | None,
    ) -> MergeCoding | None:
        """How the merge of a tensor is coded; None to store its numbers."""
        if self.config.merged_dtype != "coded" or is_buffer(ctx.name):
            return None
        expr = None if task is None else expr_from_json(task)
        predicts = expr is not None and not isinstance(expr, Exact)
        shape = self.stream.source.base.infos[ctx.name].shape
        error = self.config.merged_error
        tasks = len(ctx.tasks)
        return MergeCoding(ctx.name, shape, error, tasks, parts, expr if predicts else None)

    def _result(self, deltas: Tensor, ctx: TensorContext, mask: Tensor | None) -> MergeResult:
        settings = self.stream.settings.of(ctx.name)
        per_task = self.method.per_task_reload and not self.method.linear
        if is_buffer(ctx.name):
            return average_result(deltas, ctx, per_task=per_task)
        if self.method.merge is None:
            mask, regions = masked_regions(mask, self.method, settings)
            return linear_result(deltas, ctx, mask, regions)
        return self.method.merge(self.stream.weighted(deltas, ctx), settings.method, ctx)

    def _entry(
        self, merge: EncodedMerge, scaling: float, record: TensorRecord
    ) -> dict[str, Mapping[str, Any]]:
        """The expressions of the merge as the manifest has them."""
        merged = merge.merged or ZERO
        if not self.plan.uniform and not record.buffer:
            merged = Scale(scaling, merged)
        entry: dict[str, Mapping[str, Any]] = {"merged": expr_to_json(merged)}
        if self.method.per_task_reload and not self.method.linear:
            entry["task"] = expr_to_json(merge.task or ZERO)
        return entry


def _matrices(source: DeltaSource, name: str, shape: tuple[int, int]) -> Iterator[Tensor]:
    """Every task's tensor as a matrix."""
    return (tensor.reshape(shape) for tensor in source.tuned(name))


def _share_memory(parts: Mapping[str, EncodedPart], deltas: Tensor) -> bool:
    """Whether some stored array lies in the memory of the stack."""
    start = deltas.untyped_storage().data_ptr()
    stop = start + deltas.untyped_storage().nbytes()
    arrays = (array for part in parts.values() for array in part.arrays.values())
    return any(start <= array.data_ptr() < stop for array in arrays if array.numel())
