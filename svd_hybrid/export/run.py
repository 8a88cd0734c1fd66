"""export: base + artifact → a LoRA adapter in PEFT's format.

selection ─► per tensor: delta rebuilt ─► linear weights: best factors of a rank; other tensors:
saved whole where asked for, else lost ─► what is lost is measured ─► written beside the target,
read back as an adapter of the base ─► renamed into place
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from svd_hybrid.artifact.files import directory_bytes
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.errors import UsageError
from svd_hybrid.export.card import adapter_card
from svd_hybrid.export.changes import Deltas, Progress, find_changes
from svd_hybrid.export.config import adapter_config
from svd_hybrid.export.plan import AdapterPlan, plan_adapter
from svd_hybrid.export.result import ExportResult
from svd_hybrid.export.roles import BaseFacts, check_patterns
from svd_hybrid.export.weights import write_weights
from svd_hybrid.io.adapter.contents import WEIGHT_FILES
from svd_hybrid.io.adapter.reader import AdapterReader
from svd_hybrid.io.model_writer import TORCH_SUFFIXES
from svd_hybrid.io.new_file import write_file
from svd_hybrid.io.outputs import OutputKind, check_free, protect_inputs
from svd_hybrid.io.reader import ADAPTER_ENTRY, open_checkpoint
from svd_hybrid.io.staging import staged_directory
from svd_hybrid.numerics.threads import one_thread
from svd_hybrid.reload.rebuild import Rebuilder
from svd_hybrid.reload.selection import select

CARD = "README.md"
ADAPTER = OutputKind("adapter", (ADAPTER_ENTRY, *WEIGHT_FILES, CARD), (ADAPTER_ENTRY,))


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """One export: what to rebuild, and what the adapter may hold.

    Args:
        artifact_dir: what compress wrote.
        base: the base it was made from.
        output_path: the folder to make.
        rank: most directions of a weight, >= 1.
        task, weights, merge: what to rebuild; see `select`.
        keep: which changed tensors are saved whole: module paths or their ends, patterns over
            tensor names, or `all` for those that factors cannot hold.
        dtype: F32, F16 or BF16; of the factors.
        module_prefix: put before module names, where the model's class has one more than the base.
        overwrite: replace an existing output.
    """

    artifact_dir: Path
    base: Path
    output_path: Path
    rank: int
    task: str | None = None
    weights: Mapping[str, float] | None = None
    merge: str | None = None
    keep: tuple[str, ...] = ()
    dtype: str = "F32"
    module_prefix: str = ""
    overwrite: bool = False


def run_export(request: ExportRequest, progress: Progress | None = None) -> ExportResult:
    """Write an adapter, and say what it leaves out.

    Raises:
        UsageError: parameters that cannot work, or nothing an adapter can hold.
        BaseMismatchError: another base.
        ArtifactError, StorageError: as for reload.
    """
    wall, cpu = time.monotonic(), time.process_time()
    _check_request(request)
    artifact = ArtifactReader.open(request.artifact_dir)
    selection = select(
        artifact.manifest, task=request.task, weights=request.weights, merge=request.merge
    )
    base = open_checkpoint(request.base)
    rebuilder = Rebuilder(artifact, base, selection)  # which compares the headers
    check_patterns(request.keep, base.infos)
    deltas, facts = Deltas(artifact, base, selection), BaseFacts.read(request.base)
    with one_thread(), staged_directory(request.output_path, request.overwrite, ADAPTER) as staging:
        found = find_changes(deltas, facts, request.rank, request.dtype, request.keep, progress)
        changes = list(found)
        if not any(change.factors for change in changes):
            raise UsageError(
                f"{selection.label} changes no linear weight, which is all that factors can hold",
                where=str(request.artifact_dir),
                fix="use svdh reload, which writes whole models",
            )
        plan = plan_adapter(changes, request.keep, base.infos, facts)
        prefix = request.module_prefix.rstrip(".") + "." if request.module_prefix else ""
        weights = staging / WEIGHT_FILES[0]
        write_weights(weights, plan, request.dtype, rebuilder, _BiasDeltas(deltas), prefix)
        _write_config(staging, plan, request, facts)
        result = ExportResult(
            request.output_path,
            selection.label,
            artifact.manifest.artifact_id,
            plan.rank,
            request.dtype,
            plan.outcomes,
            tuple(_notes(plan, request)),
        )
        card = adapter_card(result, request.base.name)
        write_file(staging / CARD, card.encode())
        AdapterReader(staging, base, (prefix, ""))
        size = directory_bytes(staging)
    return dataclasses.replace(
        result,
        bytes_written=size,
        wall_s=time.monotonic() - wall,
        cpu_s=time.process_time() - cpu,
    )


def _check_request(request: ExportRequest) -> None:
    if request.rank < 1:
        raise UsageError(f"rank is {request.rank}, must be 1 or more")
    if request.output_path.suffix in (".safetensors", *TORCH_SUFFIXES):
        raise UsageError(
            "an adapter is a folder, not a file",
            where=str(request.output_path),
            fix="pass a path without a suffix",
        )
    check_free(request.output_path, request.overwrite, ADAPTER)
    protect_inputs(request.output_path, (request.base, request.artifact_dir))
    if request.artifact_dir.resolve() in request.output_path.resolve().parents:
        raise UsageError(
            "output lies inside the artifact, which is never edited",
            where=str(request.output_path),
            fix="choose another output path",
        )


class _BiasDeltas:
    """The change of a bias, by its name."""

    def __init__(self, deltas: Deltas) -> None:
        self._deltas = deltas
        self._records = {record.name: record for record in deltas.records}

    def __call__(self, name: str) -> Tensor:
        delta = self._deltas.of(self._records[name])
        assert delta is not None  # it was found to be changed
        return delta


def _write_config(
    folder: Path, plan: AdapterPlan, request: ExportRequest, facts: BaseFacts
) -> None:
    config = adapter_config(
        rank=plan.rank,
        targets=plan.targets,
        saved=plan.saved_modules,
        in_out=plan.in_out,
        with_bias=bool(plan.biases),
        base_name=str(request.base),
        task_type=facts.task_type,
    )
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_file(folder / ADAPTER_ENTRY, text.encode())


def _notes(plan: AdapterPlan, request: ExportRequest) -> list[str]:
    """What the user should know besides the errors."""
    notes = [
        f"{source} is saved as {name} too: the base has none, its model ties the two"
        for name, source in plan.copies.items()
    ]
    if plan.rank < request.rank:
        notes.append(f"no delta has a higher rank than {plan.rank}; the factors have that")
    if plan.biases:
        notes.append("biases are stored as lora_bias, which old releases of PEFT do not read")
    return notes
