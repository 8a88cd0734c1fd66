"""An artifact in the original layout → ours, with the same numbers.

Bases, means and high coefficients are taken over bit for bit (as FP16 where they are FP16, else as
float32). The low coefficients are stored decoded, float32: they are N x N numbers per tensor, so
their codes would save next to nothing, and their steps 1/scale are no float32 numbers, so keeping
the codes would move the result by a last bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from svd_hybrid.artifact.manifest import TensorRecord
from svd_hybrid.artifact.merges import LinearMerge
from svd_hybrid.artifact.output import ARTIFACT, staged_artifact
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.writer import ArtifactWriter, EncodedPart
from svd_hybrid.codec import BitmaskCodec, HalfCodec, RawCodec
from svd_hybrid.compress.config import CompressConfig, known_keys, params_to_json, resolve_config
from svd_hybrid.compress.config_file import normalise_keys
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.compress.finish import finish_artifact, rebuilt_facts
from svd_hybrid.compress.profiles.base import EncodedStack, encode_part
from svd_hybrid.compress.request import CompressResult
from svd_hybrid.compress.stream import Progress
from svd_hybrid.compress.tensor import MASK_PART, NOISE_PREFIX, EncodedTensor
from svd_hybrid.compress.weighting import TaskWeights
from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.delta.expr import Dense, Expr, Flat, LowRank, Scale, Scattered, Sum
from svd_hybrid.delta.serial import expr_to_json
from svd_hybrid.errors import shorten
from svd_hybrid.io.family import is_buffer
from svd_hybrid.io.masks import TaskMask, open_masks
from svd_hybrid.io.outputs import check_free, protect_inputs
from svd_hybrid.io.reader import CheckpointReader, file_bytes, open_checkpoint
from svd_hybrid.io.tensors import DTYPES, TensorInfo, tensor_digest
from svd_hybrid.legacy.files import LegacyArtifact, Problems
from svd_hybrid.legacy.region import LegacyRegion, UnusableError
from svd_hybrid.methods import METHODS
from svd_hybrid.methods.svd_hybrid import combine_masks
from svd_hybrid.numerics.threads import one_thread

OTHER_SHAPE = "the base's tensor has another shape than the artifact's, so it is another base"
NO_MASK = "masks are needed (the original did not store them), from --mask-dir"
OTHER_MASK = "the masks given select another number of scalars than the artifact holds"
NOT_FLOAT = "the base's tensor is not floating point"
EXACT_LIMBS = 2
"""Products of float32 factors are then as exact as float32 is; see delta.expr.LowRank."""


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """One conversion.

    Args:
        legacy_dir: the artifact in the original layout.
        base: the base checkpoint it was made from; names and shapes come from there.
        artifact_dir: the directory to make.
        mask_dir: the tasks' masks, when the run used any.
        overwrite: replace an existing directory.
    """

    legacy_dir: Path
    base: Path
    artifact_dir: Path
    mask_dir: Path | None = None
    overwrite: bool = False


def run_convert(request: ConvertRequest, progress: Progress | None = None) -> CompressResult:
    """Convert, or refuse with everything that is missing; nothing is written then.

    Raises:
        UsageError: the new artifact would replace an input.
        StorageError: a path is missing, in the way, or cannot be written.
        ArtifactError: the original artifact is damaged, or lacks what a conversion needs.
        UnsafeError: a file needs code to load.
        FamilyError: the base or a mask cannot be read.
    """
    wall, cpu = time.monotonic(), time.process_time()
    masked = () if request.mask_dir is None else (request.mask_dir,)
    protect_inputs(request.artifact_dir, (request.legacy_dir, request.base, *masked))
    check_free(request.artifact_dir, request.overwrite, ARTIFACT)
    base = open_checkpoint(request.base)
    problems = Problems()
    legacy = LegacyArtifact(request.legacy_dir, base.infos, problems)
    unreadable = [name for name, info in base.infos.items() if info.dtype not in DTYPES]
    for name in unreadable:
        problems.add("the base has dtypes svdh cannot read", name)
    if unreadable or not legacy.tasks:
        problems.raise_if_any(request.legacy_dir)
    weights = legacy.weights()
    config = _config(legacy)
    masks: Mapping[str, TaskMask] = {}
    if request.mask_dir is not None:
        masks = open_masks(request.mask_dir, legacy.tasks, base.infos)
    diagnostics = Diagnostics(config, legacy.tasks, file_bytes(base), legacy.nbytes)
    with staged_artifact(request.artifact_dir, request.overwrite) as staging, one_thread():
        writer = ArtifactWriter(staging, config.profile, legacy.tasks)
        converter = _Converter(legacy, base, masks, config)
        names = sorted(base.infos)
        for done, name in enumerate(names, start=1):
            info = base.infos[name]
            digest = tensor_digest(base.read(name))
            encoded = converter.encode(name, info)
            writer.add_tensor(
                TensorRecord(name, info.dtype, info.shape, digest, {}, buffer=is_buffer(name)),
                encoded.parts,
                task=None if encoded.task is None else expr_to_json(encoded.task),
                blend=None if encoded.blend is None else expr_to_json(encoded.blend),
            )
            diagnostics.count_scalars(info)
            if info.is_float:
                diagnostics.add(name, info, encoded)
            if progress:
                progress("convert", done, len(names))
        problems.raise_if_any(request.legacy_dir)
        diagnostics.notes += _notes(legacy, converter)
        clusters = legacy.clusters()
        task_weights = TaskWeights(
            tuple(weights.values()), None if clusters is None else tuple(clusters.values())
        )
        merge = LinearMerge(
            config.method,
            METHODS[config.method].version,
            task_weights.weights,
            config.method_params.scaling,
            params_to_json(config.method_params),
        )
        manifest = finish_artifact(
            writer,
            config,
            {config.merge_name: merge},
            legacy.tasks,
            task_weights,
            diagnostics,
            lambda draft: rebuilt_facts(ArtifactReader(staging, draft), base, None, {}, progress),
        )
    return CompressResult(
        request.artifact_dir,
        manifest,
        diagnostics.bytes_report(manifest.breakdown),
        None,
        dict.fromkeys(legacy.tasks, None),
        None,
        weights,
        tuple(diagnostics.notes),
        time.monotonic() - wall,
        time.process_time() - cpu,
    )


def _config(legacy: LegacyArtifact) -> CompressConfig:
    """The configuration the original recorded, in our spelling and layout."""
    where = f"{legacy.folder}/config.json"
    known = known_keys("svd-hybrid", "hybrid")
    recorded = normalise_keys(legacy.config, where)
    values = {key: value for key, value in recorded.items() if key in known and value is not None}
    layout = {"method": "svd-hybrid", "profile": "hybrid", "basis": "tasks"}
    return resolve_config(values | layout | {"eval_reconstruction": False}, where)


def _notes(legacy: LegacyArtifact, converter: _Converter) -> list[str]:
    notes = [
        "converted from the original layout, which does not record its base: the base given is "
        "the artifact's from now on; bytes_replaced counts the original artifact's files"
    ]
    if not legacy.config:
        notes.append("config.json was missing: the parameters recorded here are defaults")
    if converter.unchanged:
        notes.append(f"not stored, so unchanged from the base: {shorten(converter.unchanged)}")
    if converter.recovered:
        notes.append(
            "low coefficients the original had turned into NaN came back from their norms: "
            + shorten(converter.recovered)
        )
    if legacy.clusters() is not None:
        notes.append(
            "the original merged clusters with other weights than it wrote down; here the merge "
            "uses those it wrote down"
        )
    return notes


@dataclass(slots=True)
class _Converter:
    """Turns one tensor after another into parts and expressions."""

    legacy: LegacyArtifact
    base: CheckpointReader
    masks: Mapping[str, TaskMask]
    config: CompressConfig
    unchanged: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)

    def encode(self, name: str, info: TensorInfo) -> EncodedTensor:
        """The tensor's parts; none when it is unchanged, or when a problem was noted."""
        nothing = EncodedTensor({}, None, None, None, None, masked=False, errors=())
        if not self.legacy.holds(name):
            if info.is_float:
                self.unchanged.append(name)
            return nothing
        try:
            return self._assemble(name, info, self.legacy.regions(name))
        except UnusableError as problem:
            self.legacy.problems.add(str(problem), name)
            return nothing

    def _assemble(
        self, name: str, info: TensorInfo, regions: Mapping[str, LegacyRegion]
    ) -> EncodedTensor:
        recorded = self.legacy.recorded_shape(name)
        if recorded is not None and tuple(recorded) != info.shape:
            raise UnusableError(OTHER_SHAPE)
        if not info.is_float:
            raise UnusableError(NOT_FLOAT)
        if any(region.recovered for region in regions.values()):
            self.recovered.append(name)
        mask = self._mask(name, info, regions)
        parts: dict[str, EncodedPart] = {}
        stacks: dict[str, EncodedStack] = {}
        task_terms: list[Expr] = []
        blend_terms: list[Expr] = []
        for kind, region in regions.items():
            inside = kind == "masked"
            stored = encode_region(region, "" if inside else NOISE_PREFIX)
            if stored is None:
                continue
            stacks[kind] = stored
            parts |= stored.parts
            term = Flat(stored.expr) if mask is None else Scattered(MASK_PART, stored.expr, inside)
            task_terms.append(term)
            shrink = None if inside else self.legacy.noise_shrink()
            blend_terms.append(term if shrink is None else Scale(shrink, term))
        if mask is not None and parts:
            parts[MASK_PART] = encode_part(BitmaskCodec(), mask)
        return EncodedTensor(
            parts,
            _sum(task_terms),
            None if blend_terms == task_terms else _sum(blend_terms),
            stacks.get("masked"),
            stacks.get("noise"),
            masked=mask is not None,
            errors=(),
        )

    def _mask(
        self, name: str, info: TensorInfo, regions: Mapping[str, LegacyRegion]
    ) -> Tensor | None:
        """The run's combined mask as a matrix; None when the tensor is stored whole."""
        signal = regions["masked"].scalars if "masked" in regions else 0
        if not regions or (signal == info.count and "noise" not in regions):
            return None
        held = sum(region.scalars for region in regions.values())
        if held > info.count:
            raise UnusableError(OTHER_SHAPE)
        found = [mask.read(name) for mask in self.masks.values()]
        known = [mask for mask in found if mask is not None]
        if not known:
            raise UnusableError(NO_MASK)
        mask = combine_masks(known, self.config.method_params)
        if int(mask.sum()) != signal or ("noise" in regions and held != info.count):
            raise UnusableError(OTHER_MASK)
        return mask.reshape(matrix_shape(info.shape))


def encode_region(region: LegacyRegion, prefix: str) -> EncodedStack | None:
    """The parts of one region in the `tasks` layout, each stored exactly; None when all is zero."""
    parts: dict[str, EncodedPart] = {}
    terms: list[Expr] = []
    for name, basis, coefficients in (
        ("high", region.high, region.coeff_high),
        ("low", region.low, region.coeff_low),
    ):
        if bool(coefficients.any()):
            factors = f"{prefix}basis_{name}", f"{prefix}coeff_{name}"
            parts[factors[0]] = _exact(basis.T.contiguous())
            parts[factors[1]] = _exact(coefficients.unsqueeze(-1))
            terms.append(LowRank(*factors, limbs=EXACT_LIMBS))
    if region.mean is not None and bool(region.mean.any()):
        parts[f"{prefix}mean"] = _exact(region.mean.unsqueeze(1))
        terms.append(Dense(f"{prefix}mean"))
    total = _sum(terms)
    if total is None:
        return None
    rank = region.high.shape[1]
    return EncodedStack(
        parts,
        total,
        flat=True,
        rank=rank,
        directions=rank + region.low.shape[1],
        scalars=region.scalars,
        energy_retained=region.energy_retained if math.isfinite(region.energy_retained) else 1.0,
    )


def _exact(x: Tensor) -> EncodedPart:
    """The part without loss: FP16 as FP16 where the codec's exponent allows, else float32."""
    if x.dtype == torch.float16:
        codec = HalfCodec()
        half = encode_part(codec, x)
        shape = (x.shape[0] if half.stacked else 1, half.rows, half.columns)
        if torch.equal(codec.decode(half.arrays, shape).reshape(x.shape), x.to(torch.float32)):
            return half
    return encode_part(RawCodec(), x)


def _sum(terms: list[Expr]) -> Expr | None:
    if not terms:
        return None
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))
