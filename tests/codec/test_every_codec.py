"""What every codec promises, checked on all of them through one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd_hybrid.codec import (
    CODECS,
    BitmaskCodec,
    Codec,
    HalfCodec,
    RawCodec,
    ResidualAffineCodec,
    SignCodec,
    codec_from_json,
    codec_to_json,
    half,
    residual,
)
from svd_hybrid.errors import ArtifactError, SvdhError, VersionError

# --- what is tried -------------------------------------------------------------------------------

NUMBER_CODECS: list[Codec] = [
    RawCodec(),
    HalfCodec(),
    *(ResidualAffineCodec(bits) for bits in (1, 3, 8)),
    *(ResidualAffineCodec(bits, stages, 7) for bits, stages in ((1, 4), (4, 2))),
    *(ResidualAffineCodec(bits, stages, 0, "F32") for bits, stages in ((2, 3), (4, 2), (8, 1))),
    ResidualAffineCodec(4, 2, 1),
    ResidualAffineCodec(5, 1, 5, "F32"),
    ResidualAffineCodec(3, 5, 64),
    SignCodec("row"),
    SignCodec("slice"),
]


def label(codec: Codec) -> str:
    return "-".join([codec.name, *map(str, codec.config().values())])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Kind:
    """A way the numbers of a part may be."""

    name: str
    make: Callable[[tuple[int, ...], int], Tensor]


def with_outlier(shape: tuple[int, ...], seed: int) -> Tensor:
    x = normal(*shape, seed=seed)
    x.view(-1)[seed % x.numel()] = 1e4
    return x


def mixed_sizes(shape: tuple[int, ...], seed: int) -> Tensor:
    """Every row of another size, over ten decades."""
    sizes = torch.rand((*shape[:-1], 1), generator=torch.Generator().manual_seed(seed))
    return normal(*shape, seed=seed) * 10 ** (10 * sizes - 5)


KINDS = [
    Kind("normal", lambda shape, seed: normal(*shape, seed=seed)),
    Kind("zeros", lambda shape, seed: torch.zeros(shape)),
    Kind("constant", lambda shape, seed: torch.full(shape, float(normal(1, seed=seed)))),
    Kind("one-sided", lambda shape, seed: 5 + 0.01 * normal(*shape, seed=seed)),
    Kind("negative", lambda shape, seed: -normal(*shape, seed=seed).abs() - 3),
    Kind("outlier", with_outlier),
    Kind("tiny", lambda shape, seed: 1e-9 * normal(*shape, seed=seed)),
    Kind("huge", lambda shape, seed: 1e9 * normal(*shape, seed=seed)),
    Kind("mixed sizes", mixed_sizes),
    Kind("near-constant", lambda shape, seed: 1 + 1e-7 * normal(*shape, seed=seed)),
    Kind("sparse", lambda shape, seed: torch.relu(normal(*shape, seed=seed) - 1.5)),
    Kind("smallest", lambda shape, seed: 1e-40 * normal(*shape, seed=seed)),
    Kind("largest", lambda shape, seed: 2.0**98 * normal(*shape, seed=seed).clamp(-4, 4)),
]

SHAPES = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 20)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70)),
)
EACH_CODEC = pytest.mark.parametrize("codec", NUMBER_CODECS, ids=label)


# --- error bounds --------------------------------------------------------------------------------


def error_bound(codec: Codec, x: Tensor) -> Tensor:
    """What each codec promises per scalar, float64."""
    wide = x.double()
    match codec:
        case RawCodec():
            return torch.zeros_like(wide)
        case HalfCodec():
            largest = wide.abs().flatten(1).amax(1)
            unit = torch.exp2(torch.frexp(largest).exponent.double())
            return torch.maximum(
                2.0**-11 * wide.abs(), _per_slice(2.0**-25 * unit, wide)
            ) + underflow(wide)
        case ResidualAffineCodec():
            return affine_bound(codec, wide) + underflow(wide)
        case SignCodec():
            return sign_bound(codec, wide) + underflow(wide)
    raise AssertionError(f"no bound is stated for {codec}")


def sign_bound(codec: SignCodec, wide: Tensor) -> Tensor:
    """How far a magnitude lies from the mean of its row or slice, which is stored as FP16 is."""
    rows = wide.abs() if codec.scale == "row" else wide.abs().flatten(1)
    mean = rows.mean(-1, keepdim=True)
    unit = torch.exp2(torch.frexp(mean.flatten(1).amax(1)).exponent.double())
    rounding = torch.maximum(2.0**-11 * mean, _per_slice(2.0**-25 * unit, mean))
    return ((rows - mean).abs() + 1.001 * rounding + 2.0**-149).reshape(wide.shape)


def underflow(wide: Tensor) -> Tensor:
    """float32 output: relative 2**-24, but not below half of its smallest number."""
    return torch.clamp_min(2.0**-23 * wide.abs(), 2.0**-149)


def _per_slice(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def affine_bound(codec: ResidualAffineCodec, wide: Tensor) -> Tensor:
    """Half a step per stage, the step being 1 / (2**b - 1) of the group's range.

    Every stage's residual spans at most one step of the stage before. FP16 steps are rounded up by
    at most 2**-10, but not below 2**-24 of the slice's unit; those of constant groups to nearest.
    A zero below 2**23 keeps the step at least 2**-23 of the largest magnitude.
    """
    shape = wide.shape
    rows = wide if codec.group_size else wide.flatten(1)
    size = codec.group_size or rows.shape[-1]
    missing = -rows.shape[-1] % size
    padded = torch.cat([rows, rows[..., -1:].expand(*rows.shape[:-1], missing)], -1)
    groups = padded.reshape(*rows.shape[:-1], -1, size)
    reach, largest = groups.amax(-1) - groups.amin(-1), groups.abs().amax(-1)
    half = codec.step == "F16"
    error = largest
    for _ in range(codec.stages):
        unit = torch.exp2(torch.frexp(largest.flatten(1).amax(1)).exponent.double())
        unit = _per_slice(unit, largest)
        step = torch.maximum(reach / (2**codec.bits - 1), largest * 2.0**-23)
        stored = (step * (1 + 2.0**-10) + 2.0**-24 * unit) if half else step
        constant = (2.0**-11 * largest + 2.0**-25 * unit) if half else torch.zeros_like(largest)
        error = torch.where(reach == 0, constant, stored / 2) + 2.0**-23 * largest
        reach, largest = 2 * error, error
    spread = error.unsqueeze(-1).expand(groups.shape).flatten(-2)[..., : rows.shape[-1]]
    return spread.reshape(shape)


@EACH_CODEC
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=8)
@given(shape=SHAPES, seed=st.integers(0, 9999))
def test_round_trip_error_is_within_the_bound(codec, kind, shape, seed):
    x = kind.make(shape, seed)
    decoded = codec.decode(codec.encode(x), shape)
    assert decoded.dtype == torch.float32
    assert decoded.shape == shape
    assert bool(torch.isfinite(decoded).all())
    excess = (decoded.double() - x.double()).abs() - error_bound(codec, x)
    assert float(excess.max()) <= 0


@EACH_CODEC
def test_a_slice_of_zeros_is_exact_beside_slices_that_are_not(codec):
    x = normal(3, 2, 40, seed=1)
    x[1] = 0
    decoded = codec.decode(codec.encode(x), tuple(x.shape))
    assert not decoded[1].any()
    assert decoded[0].any()


@EACH_CODEC
@pytest.mark.parametrize("value", [0.3125, -0.125, 1e-9, -1e9, 0.1])
def test_a_constant_comes_back_as_closely_as_one_number_is_stored(codec, value):
    """The original returned NaN for it, and an earlier revision 0."""
    x = torch.full((2, 2, 13), value)
    decoded = codec.decode(codec.encode(x), tuple(x.shape))
    exact = isinstance(codec, RawCodec) or getattr(codec, "step", "F16") == "F32"
    assert float((decoded - x).abs().max()) <= (0 if exact else 2.0**-11 * abs(value))


@EACH_CODEC
@pytest.mark.parametrize("exponent", [-100, -20, 20, 100])
def test_codes_do_not_depend_on_the_power_of_two_the_numbers_are_scaled_by(codec, exponent):
    x = normal(2, 3, 21, seed=4)
    plain = codec.decode(codec.encode(x), tuple(x.shape))
    scaled = codec.decode(codec.encode(x * 2.0**exponent), tuple(x.shape))
    assert torch.equal(scaled, plain * 2.0**exponent)


# --- what is stored ------------------------------------------------------------------------------


@EACH_CODEC
@settings(max_examples=20)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_layout_names_every_stored_array_and_its_shape(codec, shape, seed):
    arrays = codec.encode(normal(*shape, seed=seed))
    assert {name: tuple(array.shape) for name, array in arrays.items()} == codec.layout(shape)
    assert all(array.shape[0] == shape[0] for array in arrays.values())
    assert all(array.is_contiguous() for array in arrays.values())


@EACH_CODEC
def test_slices_are_coded_independently(codec):
    """One task is read without the bytes of the others; the dtype of zeros is that of the whole."""
    x = torch.stack([normal(3, 21, seed=5), 1e-6 * normal(3, 21, seed=6), torch.zeros(3, 21)])
    arrays = codec.encode(x)
    whole = codec.decode(arrays, tuple(x.shape))
    for index in range(len(x)):
        alone = codec.encode(x[index : index + 1])
        for name, array in arrays.items():
            assert torch.equal(array[index : index + 1].double(), alone[name].double()), name
        cut = {name: array[index : index + 1] for name, array in arrays.items()}
        assert torch.equal(codec.decode(cut, (1, 3, 21))[0], whole[index])


@EACH_CODEC
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_coded_as_the_numbers_they_hold(codec, dtype):
    x = normal(2, 3, 21, seed=7).to(dtype)
    arrays, wide = codec.encode(x), codec.encode(x.double())
    assert all(torch.equal(array, wide[name]) for name, array in arrays.items())


@EACH_CODEC
def test_strides_do_not_matter_and_the_input_is_left_alone(codec):
    x = normal(4, 21, 3, seed=8).transpose(1, 2)
    before = x.clone()
    arrays, plain = codec.encode(x), codec.encode(x.contiguous())
    assert all(torch.equal(array, plain[name]) for name, array in arrays.items())
    codec.decode(arrays, tuple(x.shape)).mul_(0)
    assert torch.equal(x, before)


@EACH_CODEC
@pytest.mark.parametrize("block", [1, 50])
def test_the_size_of_working_blocks_changes_no_bit(codec, block, monkeypatch):
    x = normal(2, 5, 33, seed=11)
    arrays = codec.encode(x)
    decoded = codec.decode(arrays, tuple(x.shape))
    for module in (half, residual):
        monkeypatch.setattr(module, "BLOCK_SCALARS", block)
    again = codec.encode(x)
    assert all(torch.equal(array, again[name]) for name, array in arrays.items())
    assert torch.equal(codec.decode(arrays, tuple(x.shape)), decoded)


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [*NUMBER_CODECS, BitmaskCodec()], ids=label)
def test_configuration_survives_json(codec):
    record = json.loads(json.dumps(codec_to_json(codec)))
    assert record["name"] == codec.name
    assert codec_from_json(record) == codec
    assert type(codec).from_config(codec.config()) == codec


def test_the_table_holds_exactly_these_codecs():
    arrays = ["bitmask", "half", "raw", "residual-affine", "sign"]
    strings = ["integers", "sparse-sign", "trellis", "zstd-affine", "zstd-planes"]
    assert sorted(CODECS) == sorted(arrays + strings)


@pytest.mark.parametrize("codec", [RawCodec(), HalfCodec(), BitmaskCodec(), ResidualAffineCodec(4)])
def test_unknown_parameters_are_refused(codec):
    with pytest.raises(ArtifactError, match=codec.name):
        type(codec).from_config(codec.config() | {"color": 1})


GOOD = ResidualAffineCodec(4).config()
BAD: list[dict[str, Any]] = [
    *({key: value for key, value in GOOD.items() if key != missing} for missing in GOOD),
    *(GOOD | {"bits": bits} for bits in (0, 9, -1, True, 4.0, "4", None)),
    *(GOOD | {"stages": stages} for stages in (0, 17, False, 1.5, [])),
    *(GOOD | {"group_size": size} for size in (-1, 2**20 + 1, "64", None)),
    *(GOOD | {"step": step} for step in ("F64", "f16", 16, None, ["F16"])),
]


@pytest.mark.parametrize("config", BAD, ids=str)
def test_illegal_parameters_of_the_affine_codec_are_refused(config):
    with pytest.raises(ArtifactError, match="residual-affine"):
        ResidualAffineCodec.from_config(config)


@pytest.mark.parametrize(
    "parameters", [{"bits": 0}, {"bits": 9}, {"stages": 0}, {"group_size": -1}]
)
def test_illegal_parameters_given_by_a_caller_are_refused_too(parameters):
    with pytest.raises(SvdhError, match="outside"):
        ResidualAffineCodec(**{"bits": 4, **parameters})


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"name": "afine", "version": 1}, "unknown codec 'afine'"),
        ({"name": "half", "version": 2}, "version 2"),
        ({"name": "raw", "version": 0}, "version 0"),
    ],
)
def test_codecs_and_versions_of_the_future_are_named(record, what):
    with pytest.raises(VersionError, match=what):
        codec_from_json(record)


# --- damaged arrays ------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [*NUMBER_CODECS, BitmaskCodec()], ids=label)
def test_decoding_refuses_arrays_that_are_not_as_the_format_says(codec):
    shape = (2, 3, 21)
    x = normal(*shape, seed=9)
    arrays = dict(codec.encode(x > 0 if isinstance(codec, BitmaskCodec) else x))
    for name, array in arrays.items():
        rest = {key: value for key, value in arrays.items() if key != name}
        wrong = {
            "missing": rest,
            "a slice too few": rest | {name: array[:1]},
            "a slice too many": rest | {name: torch.cat([array, array[:1]])},
            "an axis too many": rest | {name: array.unsqueeze(-1)},
            "of another shape": rest | {name: array.flatten()[:-1]},
            "64-bit": rest | {name: array.to(torch.float64)},
            "bool": rest | {name: array.to(torch.bool)},
        }
        for what, damaged in wrong.items():
            assert refusal(codec, damaged, shape).count(name), f"{name} {what} was accepted"


def refusal(codec: Codec, arrays: dict[str, Tensor], shape: tuple[int, ...]) -> str:
    """The message of the ArtifactError that decoding raises; empty when it raises none."""
    try:
        codec.decode(arrays, shape)
    except ArtifactError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("codec", [HalfCodec(), ResidualAffineCodec(4, 2)], ids=label)
@pytest.mark.parametrize("exponent", [-1023, 1023, 32767, -32768])
def test_decoding_refuses_exponents_outside_float64(codec, exponent):
    arrays = dict(codec.encode(normal(2, 3, 8, seed=10)))
    name = next(name for name in arrays if name.endswith("exponent"))
    arrays[name] = torch.full_like(arrays[name], exponent)
    with pytest.raises(ArtifactError, match="exponent"):
        codec.decode(arrays, (2, 3, 8))
