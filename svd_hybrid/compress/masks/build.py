"""TALL masks of a family as files: built by the rule of the merge methods, packed, and measured.

The rule and its numbers are those of methods.multitask; here they are streamed, for several
thresholds at once, into one packed file (io.packed_masks) each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd_hybrid.compress.config import CompressConfig, resolve_config
from svd_hybrid.compress.masks.family import FamilyMasks
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.source import DeltaSource
from svd_hybrid.compress.statistics import FamilyStatistics
from svd_hybrid.compress.stream import FamilyStream, Progress
from svd_hybrid.errors import FamilyError, ParameterError
from svd_hybrid.io.family import FamilyPolicy, open_family
from svd_hybrid.io.outputs import OutputKind, check_free, protect_inputs
from svd_hybrid.io.packed_masks import BitPacker, PackedMaskWriter, flattened
from svd_hybrid.io.staging import staged_directory
from svd_hybrid.methods import METHODS
from svd_hybrid.methods.steps.multitask import GRID, multitask_vector, tall_masks
from svd_hybrid.numerics.threads import one_thread

METHOD = "tall-masks"
FILE_NAME = "TALL_mask_{}.safetensors"
MASKS = OutputKind("folder of masks", (FILE_NAME.format("*"),), (FILE_NAME.format("*"),))


@dataclass(frozen=True, slots=True)
class MaskFiles:
    """What `write_masks` made.

    Args:
        files: the packed file of each threshold.
        coverage: threshold → task → share of scalars that its mask keeps, in [0, 1].
    """

    files: Mapping[str, Path]
    coverage: Mapping[str, Mapping[str, float]]


def mask_config(vector: str, **parameters: Any) -> CompressConfig:
    """The configuration of a run that builds masks.

    Args:
        vector: multi-task vector the masks are taken from, `sum` or `ties`.
        parameters: others of the configuration, such as `on_missing`.

    Raises:
        UsageError, ParameterError: as for any configuration.
    """
    return resolve_config({"method": METHOD, "vector": vector} | parameters, "masks")


def labels(lambdas: Sequence[float]) -> dict[str, float]:
    """Thresholds by the name that files and results have for them.

    Raises:
        ParameterError: none, one twice, or one that is no number >= 0.

    >>> labels((0.2, 1))
    {'0.2': 0.2, '1': 1}
    """
    found = {f"{value:g}": value for value in lambdas}
    if not found or len(found) < len(lambdas):
        raise ParameterError("lambdas are missing, or one is given twice")
    for value in lambdas:
        if not 0 <= value < math.inf:
            raise ParameterError(f"a value of lambdas is {value}, must be in [0, inf)")
    return found


def build_masks(
    source: DeltaSource,
    config: CompressConfig,
    lambdas: Sequence[float] = GRID,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every float tensor by ascending name: its masks (N, D) bool by threshold.

    Args:
        source: the family.
        config: of `mask_config`.
        lambdas: thresholds, >= 0; smaller is denser.
        progress: called as tensors are read.
    """
    tasks, infos, method = source.task_names, source.base.infos, METHODS[METHOD]
    stream = FamilyStream(
        method,
        source,
        FamilySettings(config, tasks, (1.0,) * len(tasks), infos),
        FamilyMasks(source, {}, config),
        FamilyStatistics({}, source.base.infos, "", "error"),
    )
    names = flattened(infos)
    stream.scan([name for name in names if source.has_deltas(name)], progress)
    for done, name in enumerate(names, start=1):
        stack, ctx = stream.read(name)
        deltas = stack.deltas
        if deltas is None:  # left out of the merge, so no mask keeps anything of it
            empty = torch.zeros((len(tasks), infos[name].count), dtype=torch.bool)
            yield name, dict.fromkeys(labels(lambdas), empty)
            continue
        vector = multitask_vector(deltas, config.method_params, ctx, ctx.scan and ctx.scan.ties)
        yield (
            name,
            {
                label: tall_masks(deltas, vector, ctx, (value,) * len(tasks))
                for label, value in labels(lambdas).items()
            },
        )
        if progress:
            progress("masks", done, len(names))


def write_masks(
    base: Path,
    tasks: Mapping[str, Path],
    output: Path,
    lambdas: Sequence[float] = GRID,
    *,
    vector: str = "sum",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MaskFiles:
    """Build the masks of a family and write `TALL_mask_<lambda>.safetensors` for each threshold.

    Args:
        base: base checkpoint.
        tasks: checkpoint by task, in order.
        output: the folder to make.
        lambdas: thresholds, >= 0; smaller is denser.
        vector: multi-task vector, `sum` or `ties`.
        overwrite: replace an existing folder, whole.
        progress: called as tensors are read.

    Raises:
        UsageError, ParameterError: parameters that cannot work.
        FamilyError: checkpoints that do not fit, or hold no scalars.
        StorageError: the folder is in the way, or cannot be written.
    """
    named, config = labels(lambdas), mask_config(vector)
    protect_inputs(output, [base, *tasks.values()])
    check_free(output, overwrite, MASKS)
    source = _open(base, tasks, config)
    infos = source.base.infos
    scalars = sum(infos[name].count for name in flattened(infos))
    if not scalars:
        raise FamilyError("base holds no float scalars to mask", where=str(base))
    kept = {label: torch.zeros(len(tasks), dtype=torch.int64) for label in named}
    names = {label: FILE_NAME.format(label) for label in named}
    with staged_directory(output, overwrite, MASKS) as staging, one_thread(), ExitStack() as stack:
        writers = {
            label: stack.enter_context(PackedMaskWriter(staging / name, list(tasks), scalars))
            for label, name in names.items()
        }
        for _, by_label in build_masks(source, config, lambdas, progress):
            for label, masks in by_label.items():
                writers[label].add(masks)
                kept[label] += masks.sum(1)
    return MaskFiles(
        {label: output / name for label, name in names.items()},
        {
            label: {task: int(n) / scalars for task, n in zip(tasks, counts, strict=True)}
            for label, counts in kept.items()
        },
    )


def tall_mask_bits(
    base: Path,
    tasks: Mapping[str, Path],
    lambdas: Sequence[float] = GRID,
    vector: str = "sum",
    **parameters: Any,
) -> dict[str, dict[str, Tensor]]:
    """Threshold → task → packed bits (bytes,) uint8: what `write_masks` writes, in memory.

    Args:
        base: base checkpoint.
        tasks: checkpoint by task, in order.
        lambdas: thresholds, >= 0.
        vector: multi-task vector, `sum` or `ties`.
        parameters: others of the configuration, such as `on_missing`.
    """
    config = mask_config(vector, **parameters)
    packers = {label: {task: BitPacker() for task in tasks} for label in labels(lambdas)}
    pieces: dict[str, dict[str, list[Tensor]]] = {
        label: {task: [] for task in tasks} for label in packers
    }
    for _, by_label in build_masks(_open(base, tasks, config), config, lambdas):
        for label, masks in by_label.items():
            for task, mask in zip(tasks, masks, strict=True):
                pieces[label][task].append(torch.from_numpy(packers[label][task].feed(mask)))
    return {
        label: {
            task: torch.cat([*found, torch.from_numpy(packers[label][task].finish())])
            for task, found in by_task.items()
        }
        for label, by_task in pieces.items()
    }


def _open(base: Path, tasks: Mapping[str, Path], config: CompressConfig) -> DeltaSource:
    policy = FamilyPolicy(
        config.on_missing, config.on_extra, config.on_shape_mismatch, config.nonfinite
    )
    return open_family(base, tasks, policy)
