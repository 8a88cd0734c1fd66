"""The published schemes as profiles: worked examples, closed forms, masks, edges, whole runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from svd_hybrid import Artifact
from svd_hybrid.cli.compress import merged_config
from svd_hybrid.compress.config import CompressConfig, resolve_config
from svd_hybrid.compress.profiles import delta_come
from svd_hybrid.compress.profiles.base import EncodedParts, EncodedStack, squared_error
from svd_hybrid.compress.profiles.params import (
    PROFILE_PARAMS,
    BitdeltaParams,
    CompeftParams,
    DeltaComeParams,
    FastParams,
    RtvqParams,
    TvqParams,
)
from svd_hybrid.compress.profiles.table import PROFILES
from svd_hybrid.compress.settings import TensorSettings
from svd_hybrid.compress.tensor import encode_tensor
from svd_hybrid.delta.evaluate import Mix, evaluate
from svd_hybrid.errors import ParameterError, UsageError
from svd_hybrid.methods import METHODS
from tests.families import deltas_of, pack, relative_error, weights_of, write_family

CODED = {
    "tvq": [TvqParams(dense_below=0), TvqParams(bits=3, group_size=7, dense_below=0)],
    "rtvq": [
        RtvqParams(dense_below=0),
        RtvqParams(group_size=8, dense_below=0),
        RtvqParams(error_correction=False, dense_below=0),
    ],
    "bitdelta": [BitdeltaParams("tensor", 0), BitdeltaParams("row", 0)],
    "compeft": [CompeftParams(), CompeftParams(kept_share=0.4, sign_alpha=1.5)],
    "delta-come": [
        DeltaComeParams(code_bpp=6, dense_below=0),
        DeltaComeParams(rank_share=0.4, directions_3bit=2, group_size=0, dense_below=0),
    ],
    "fast": [FastParams(dense_below=0), FastParams(bits=2, group_size=5, dense_below=0)],
}
"""Parameters under which small matrices are coded too."""
CASES = [
    pytest.param(profile, params, id=f"{profile}-{index}")
    for profile, variants in CODED.items()
    for index, params in enumerate(variants)
]
EACH_CASE = pytest.mark.parametrize(("profile", "params"), CASES)


def normal(*shape: int, seed: int = 0, scale: float = 0.01) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def encode(profile: str, params: Any, stack: Tensor, mask: Tensor | None = None) -> EncodedStack:
    stored = PROFILES[profile].encode(stack, mask, params, "")
    assert stored is not None
    return stored


def rebuilt(stored: EncodedStack, tasks: int, shape: tuple[int, int]) -> Tensor:
    """(N, m, n), or (N, D, 1) of a flat region, float64."""
    source = EncodedParts(stored.parts)
    shape = (stored.scalars, 1) if stored.flat else shape
    rows = (evaluate(stored.expr, source, Mix({t: 1.0}), shape) for t in range(tasks))
    return torch.stack([found.rows(0, shape[0]) for found in rows])


def error(profile: str, params: Any, stack: Tensor) -> float:
    stored = encode(profile, params, stack)
    return math.sqrt(squared_error(stored, stack, None) / float(stack.double().square().sum()))


def nbytes(stored: EncodedStack) -> dict[str, int]:
    return {name: part.nbytes for name, part in stored.parts.items()}


# --- worked examples (methods.md §26) ------------------------------------------------------------

ROW = [-0.55, -0.1, 0.0, 0.2, 0.45]


@pytest.mark.parametrize(
    ("bits", "values"),
    [
        (2, [-2 / 3, 0, 0, 1 / 3, 1 / 3]),
        (4, [-8 / 15, -2 / 15, 0, 3 / 15, 7 / 15]),
    ],
)
def test_tvq_quantises_from_minimum_to_maximum(bits, values):
    stack = torch.tensor([[ROW, ROW]], dtype=torch.float64)
    stored = encode("tvq", TvqParams(bits=bits, dense_below=0), stack)
    got = rebuilt(stored, 1, (2, 5))
    assert torch.allclose(got[0, 0], torch.tensor(values, dtype=torch.float64), atol=1e-7)


def test_rtvq_b3o2_with_error_correction():
    rows = torch.tensor([[1, 2, -1, 0], [2, 1, 0, -1], [0, 3, -2, 1]], dtype=torch.float64)
    stack = 0.1 * rows.reshape(3, 2, 2)
    stored = encode("rtvq", RtvqParams(dense_below=0), stack)
    assert stored.parts["mean"].arrays["stage0.codes"].tolist() == [[4 | 7 << 3, 2 << 1]]
    want = [
        [0.0952381, 0.1952381, -0.0952381, 0],
        [0.1619048, 0.0619048, -0.0095238, -0.0761905],
        [0.0142857, 0.2857143, -0.2285714, 0.0714286],
    ]
    got = rebuilt(stored, 3, (2, 2)).reshape(3, 4)
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), atol=1e-7)


def test_bitdelta_is_signs_times_the_mean_magnitude():
    stack = torch.tensor([[[1.0, -2.0], [0.5, 0.5]]])
    of_tensor = rebuilt(encode("bitdelta", BitdeltaParams("tensor", 0), stack), 1, (2, 2))
    assert of_tensor.tolist() == [[[1.0, -1.0], [1.0, 1.0]]]
    of_row = rebuilt(encode("bitdelta", BitdeltaParams("row", 0), stack), 1, (2, 2))
    assert of_row.tolist() == [[[1.5, -1.5], [0.5, 0.5]]]


def test_compeft_keeps_the_largest_as_signs_times_a_scale():
    stack = torch.tensor([[[4.0, -0.5, 0.0], [-2.0, 0.5, -2.0]]])
    best = rebuilt(encode("compeft", CompeftParams(kept_share=0.34), stack), 1, (2, 3))
    third = float(torch.tensor(8 / 3))
    assert best.tolist() == [[[third, 0, 0], [-third, 0, -third]]]
    deviation = float(stack.double().std(correction=0))
    doubled = encode("compeft", CompeftParams(kept_share=0.33, sign_alpha=2.0), stack)
    got = rebuilt(doubled, 1, (2, 3))  # ceil(0.33 * 6) = 2; of equal ones the first
    assert got[0, 0, 0] == pytest.approx(2 * deviation, rel=1e-6)
    assert got[0, 1].tolist() == [-got[0, 0, 0], 0, 0]


def test_delta_come_takes_the_ranks_of_the_published_setting():
    """thunlp/Delta-CoMe, run.sh: 2, 32 and 968 directions of the 4096 x 4096 projections."""
    counts = delta_come.ranks_by_bits(4096, 4096, DeltaComeParams())
    assert counts == {8: 2, 3: 32, 2: 968}


# --- closed forms --------------------------------------------------------------------------------

N, M, K = 3, 24, 40


def zero_bytes(stored: EncodedStack, part: str) -> int:
    """Width of the zeros of the quantiser: one byte, two where some group lies far from 0."""
    width = stored.parts[part].arrays["stage0.zero"].element_size()
    assert width in (1, 2)
    return width


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_tvq_costs_its_bits_a_scalar_and_a_step_a_tensor_or_group(bits):
    stack = normal(N, M, K)
    whole = encode("tvq", TvqParams(bits=bits, dense_below=0), stack)
    zero = zero_bytes(whole, "coeff")
    assert nbytes(whole) == {"coeff": N * (M * K * bits // 8 + 4 + zero + 2)}
    grouped = encode("tvq", TvqParams(bits=bits, group_size=16, dense_below=0), stack)
    groups, zero = M * math.ceil(K / 16), zero_bytes(grouped, "coeff")
    assert nbytes(grouped) == {"coeff": N * (M * K * bits // 8 + groups * (2 + zero) + 2)}


def test_rtvq_costs_offset_bits_and_base_bits_over_tasks():
    stored = encode("rtvq", RtvqParams(dense_below=0), normal(N, M, K))
    assert nbytes(stored) == {"mean": M * K * 3 // 8 + 7, "coeff": N * (M * K * 2 // 8 + 7)}


def test_bitdelta_costs_a_bit_a_scalar_and_its_scales():
    stack = normal(N, M, K)
    of_tensor = encode("bitdelta", BitdeltaParams("tensor", 0), stack)
    assert nbytes(of_tensor) == {"coeff": N * (M * K // 8 + 2 + 2)}
    of_row = encode("bitdelta", BitdeltaParams("row", 0), stack)
    assert nbytes(of_row) == {"coeff": N * (M * K // 8 + 2 * M + 2)}


def test_compeft_costs_entropy_and_a_sign_per_kept_scalar():
    stack = normal(N, 400, 300)
    stored = encode("compeft", CompeftParams(), stack)
    entropy = -0.05 * math.log2(0.05) - 0.95 * math.log2(0.95)
    want = stack.numel() * (entropy + 0.05) / 8
    assert want < stored.parts["coeff"].nbytes < 1.03 * want


def test_delta_come_costs_its_codes_and_their_steps():
    params = DeltaComeParams(code_bpp=3, directions_3bit=4, group_size=16, dense_below=0)
    counts = delta_come.ranks_by_bits(M, K, params)
    assert counts == {8: 2, 3: 4, 2: (3 * M * K - (2 * 8 + 4 * 3) * (M + K)) // (2 * (M + K))}
    stored = encode("delta-come", params, normal(N, M, K))
    groups = {"left": math.ceil(M / 16), "right": math.ceil(K / 16)}
    sides = {"left": M, "right": K}
    zeros = {(s, b): zero_bytes(stored, f"coeff_{s}_{b}") for s in sides for b in counts}
    assert nbytes(stored) == {
        f"coeff_{side}_{bits}": N
        * (count * (size * bits // 8 + groups[side] * (2 + zeros[side, bits])) + 2)
        for bits, count in counts.items()
        for side, size in sides.items()
    }
    assert stored.directions == sum(counts.values())
    energies = torch.linalg.svdvals(normal(N, M, K).double()).square()
    share = energies[:, : stored.directions].sum() / energies.sum()
    assert stored.energy_retained == pytest.approx(float(share), rel=1e-5)


def test_fast_costs_less_than_its_codes_and_steps_packed():
    stack = normal(N, 200, 300)
    stored = encode("fast", FastParams(), stack)
    assert 0.7 < stored.parts["coeff"].nbytes / (stack.numel() * (4 + 16 / 64) / 8) < 0.9


# --- what stays dense ----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", CODED)
def test_vectors_and_small_matrices_are_as_the_paper_has_them(profile):
    """float32 in TVQ and RTVQ, 16 bits in the others; ComPEFT codes every tensor."""
    params = PROFILE_PARAMS[profile]()
    exact = profile in ("tvq", "rtvq")
    for stack in (normal(2, 1, 9000), normal(2, 8, 8)):
        stored = encode(profile, params, stack)
        assert list(stored.parts) == ["coeff"]
        if profile == "compeft":
            assert stored.parts["coeff"].codec.name == "sparse-sign"
            continue
        assert stored.parts["coeff"].codec.name == ("raw" if exact else "half")
        assert error(profile, params, stack) <= (0 if exact else 2.0**-11)
    large = encode(profile, params, normal(2, 64, 64))
    assert {part.codec.name for part in large.parts.values()} <= {
        "residual-affine",
        "sign",
        "sparse-sign",
        "zstd-affine",
    }


def test_dense_below_moves_the_limit():
    stack = normal(2, 64, 64)
    for profile in CODED:
        params = replace(PROFILE_PARAMS[profile](), dense_below=4097)
        assert encode(profile, params, stack).parts["coeff"].codec.name in ("raw", "half")


def test_delta_come_stores_narrow_matrices_and_dear_factors_in_16_bits():
    for stack in (normal(2, 7, 900), normal(2, 900, 7)):
        stored = encode("delta-come", DeltaComeParams(), stack)
        assert stored.parts["coeff"].codec.name == "half"
    dear = DeltaComeParams(code_bpp=16, directions_8bit=64)
    stored = encode("delta-come", dear, normal(2, 64, 64))
    assert stored.parts["coeff"].codec.name == "half"


# --- edges ---------------------------------------------------------------------------------------


@EACH_CASE
def test_zero_deltas_cost_nothing(profile, params):
    assert PROFILES[profile].encode(torch.zeros(3, 12, 16), None, params, "") is None
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[3] = True
    stack = normal(3, 12, 16) * ~mask
    assert PROFILES[profile].encode(stack, mask, params, "") is None


@EACH_CASE
def test_a_task_that_changed_nothing_stays_zero_unless_it_shares_a_mean(profile, params):
    stack = normal(3, 12, 16)
    stack[1] = 0
    got = rebuilt(encode(profile, params, stack), 3, (12, 16))
    assert bool(got[0].any())
    assert profile == "rtvq" or not bool(got[1].any())


@EACH_CASE
def test_one_non_zero_number(profile, params):
    stack = torch.zeros(2, 12, 16)
    stack[1, 5, 9] = 0.25
    stored = encode(profile, params, stack)
    assert torch.isfinite(rebuilt(stored, 2, (12, 16))).all()
    limits = {"bitdelta": 1.0, "rtvq": 0.7, "compeft": 1.0}
    assert error(profile, params, stack) <= limits.get(profile, 0.01)


@EACH_CASE
@pytest.mark.parametrize("constant", [0.3, -1e-9, 1e9])
def test_constant_deltas(profile, params, constant):
    stack = torch.full((2, 12, 16), constant)
    limit = 1.0 if profile == "compeft" else 0.04
    assert error(profile, params, stack) <= limit


@EACH_CASE
@pytest.mark.parametrize("exponent", [-30, 30])
def test_relative_error_does_not_depend_on_the_size_of_the_deltas(profile, params, exponent):
    stack = normal(3, 12, 16, seed=4)
    plain = error(profile, params, stack)
    assert error(profile, params, stack * 2.0**exponent) == pytest.approx(plain, rel=1e-4)


@EACH_CASE
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_small_and_large_deltas(profile, params, scale):
    assert error(profile, params, normal(2, 12, 16, seed=5, scale=scale)) < 1


@EACH_CASE
def test_one_task(profile, params):
    assert error(profile, params, normal(1, 12, 16, seed=6)) < 1


@EACH_CASE
def test_encoding_leaves_its_input_alone_and_repeats_itself(profile, params):
    stack = normal(2, 12, 16, seed=7)
    before = stack.clone()
    first, second = encode(profile, params, stack), encode(profile, params, stack)
    assert torch.equal(stack, before)
    for name, part in first.parts.items():
        assert part.strings == second.parts[name].strings
        assert all(torch.equal(a, second.parts[name].arrays[k]) for k, a in part.arrays.items())


@EACH_CASE
def test_float64_deltas_are_coded_like_float32_ones(profile, params):
    stack = normal(2, 12, 16, seed=8)
    wide = rebuilt(encode(profile, params, stack.double()), 2, (12, 16))
    assert relative_error(wide, rebuilt(encode(profile, params, stack), 2, (12, 16))) < 1e-3


# --- masks ---------------------------------------------------------------------------------------


@EACH_CASE
def test_a_mask_leaves_only_its_scalars(profile, params):
    stack = normal(3, 12, 16, seed=9)
    mask = normal(12, 16, seed=10) > 0
    loud = torch.where(mask, stack, 1e3)  # what is outside must not count
    stored = encode(profile, params, loud, mask)
    assert stored.scalars == int(mask.sum())
    assert stored.flat == (profile != "delta-come")
    quiet = encode(profile, params, torch.where(mask, stack, 0.0), mask)
    assert squared_error(stored, loud, mask) == squared_error(quiet, stack, mask)
    assert squared_error(stored, loud, mask) < float(stack[:, mask].square().sum())


@EACH_CASE
def test_both_regions_of_a_masked_tensor_come_back(profile, params):
    stack = normal(3, 12, 16, seed=11)
    mask = normal(12, 16, seed=12) > 0.003
    config = CompressConfig(profile=profile)
    settings = TensorSettings(METHODS["svd-hybrid"].params(include_noise=True), params, (1.0,) * 3)
    encoded = encode_tensor(stack, mask, config, settings)
    assert encoded.signal is not None
    assert encoded.noise is not None
    assert all(task.whole.relative_error < 1 for task in encoded.errors)


# --- whole runs ----------------------------------------------------------------------------------

SHAPES: dict[str, tuple[int, ...]] = {
    "block.weight": (12, 20),
    "block.bias": (20,),
    "conv.weight": (6, 3, 2, 2),
    "embed.weight": (64, 72),
    "logit_scale": (),
}


@EACH_CASE
def test_an_artifact_gives_back_what_the_profile_made(tmp_path, profile, params):
    family = write_family(tmp_path, SHAPES)
    values = {name: getattr(params, name) for name in params.__slots__}
    artifact = pack(family, tmp_path / "a", profile=profile, **values)
    assert artifact.verify(family.base).problems == []
    for index, task in enumerate(("ant", "bee", "cat")):
        for name, delta in deltas_of(artifact, task=task).items():
            stack = family.deltas(name)
            matrix = stack.reshape(3, *((1, -1) if stack.ndim < 3 else (stack.shape[1], -1)))
            stored = encode(profile, params, matrix.float())
            want = rebuilt(stored, 3, (matrix.shape[1], matrix.shape[2]))[index]
            assert torch.equal(delta.double().reshape(want.shape), want.float().double()), name
    weights = weights_of(artifact, family)
    assert weights.keys() == SHAPES.keys()


@EACH_CASE
def test_a_merge_is_the_mean_of_what_the_tasks_give(tmp_path, profile, params):
    family = write_family(tmp_path, SHAPES)
    values = {name: getattr(params, name) for name in params.__slots__}
    artifact = pack(family, tmp_path / "a", profile=profile, **values)
    tasks = [deltas_of(artifact, task=task) for task in ("ant", "bee", "cat")]
    for name, merged in deltas_of(artifact).items():
        assert relative_error(merged, sum(task[name].double() for task in tasks) / 3) < 1e-6, name


@pytest.mark.parametrize("method", ["tsv-compress", "tall-masks", "emr"])
def test_methods_that_keep_single_tasks_are_presets_too(tmp_path, method):
    """With tasks left to the merge, the artifact holds what the paper stores and no more."""
    family = write_family(tmp_path, SHAPES)
    artifact = pack(family, tmp_path / "a", method=method, store_tasks="off")
    task = deltas_of(artifact, task="ant")
    got, want = (
        torch.cat([each[name].double().flatten() for name in SHAPES])
        for each in (task, {name: family.deltas(name)[0] for name in SHAPES})
    )
    assert 0 < relative_error(got, want) < 1.2
    numbers = sum(math.prod(shape) for shape in SHAPES.values())
    stored = sum(file.stat().st_size for file in (tmp_path / "a").glob("*/*.safetensors"))
    assert stored < 0.7 * 4 * 3 * numbers
    assert artifact.verify(family.base).problems == []


def test_parameters_can_be_set_for_single_tensors(tmp_path):
    family = write_family(tmp_path, SHAPES)
    rules = [{"tensors": "embed.*", "dense_below": 2**40}]
    artifact = pack(family, tmp_path / "a", profile="tvq", bits=2, overrides=rules)
    want = family.deltas("embed.weight")[0]
    assert relative_error(deltas_of(artifact, task="ant")["embed.weight"], want) < 1e-6


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_parameters_with_defaults_and_help(profile):
    params = PROFILE_PARAMS[profile]()
    config = resolve_config({"profile": profile}, "test")
    assert config.profile_params == params
    assert json.loads(json.dumps(config.to_json()))["profile"] == profile
    assert PROFILES[profile].summary.endswith(".")
    assert list(PROFILES) == list(PROFILE_PARAMS)


def test_values_may_be_text_as_on_the_command_line():
    config = resolve_config({"profile": "tvq", "bits": "3", "group_size": "128"}, "test")
    assert config.profile_params == TvqParams(bits=3, group_size=128)
    config = resolve_config({"profile": "delta-come", "rank_share": "0.25"}, "test")
    assert config.profile_params.rank_share == 0.25


def test_flags_are_over_settings_and_settings_over_the_file():
    flags = {"assignments": ("bits=3", "dense-below=0"), "group_size": 128}
    config = merged_config({"profile": "tvq", "bits": 2, "group_size": 64}, "run.yml", flags)
    assert config.profile_params == TvqParams(bits=3, group_size=128, dense_below=0)


def test_a_parameter_of_another_profile_is_named_as_such():
    with pytest.raises(UsageError, match="this profile has no parameter 'bits'") as caught:
        resolve_config({"bits": 3}, "test")
    assert caught.value.fix == "it belongs to profile tvq, fast"


@pytest.mark.parametrize(
    ("profile", "values"),
    [
        ("tvq", {"bits": 0}),
        ("tvq", {"group_size": -1}),
        ("rtvq", {"base_bits": 9}),
        ("rtvq", {"offset_bits": 0}),
        ("bitdelta", {"scale_per": "column"}),
        ("compeft", {"kept_share": 0.0}),
        ("compeft", {"sign_alpha": 0.0}),
        ("compeft", {"sign_alpha": math.nan}),
        ("delta-come", {"code_bpp": 0.0}),
        ("delta-come", {"rank_share": 1.5}),
        ("delta-come", {"directions_8bit": -1}),
        ("fast", {"bits": 1}),
        ("fast", {"group_size": 0}),
        ("fast", {"dense_below": -1}),
    ],
)
def test_illegal_parameters_are_refused(profile, values):
    with pytest.raises(ParameterError, match=next(iter(values))):
        resolve_config({"profile": profile} | values, "test")


def test_an_opened_artifact_names_its_profile(tmp_path):
    family = write_family(tmp_path, SHAPES)
    pack(family, tmp_path / "a", profile="bitdelta")
    record = json.loads((tmp_path / "a" / "manifest.json").read_bytes())
    assert record["profile"] == "bitdelta"
    assert Artifact.open(tmp_path / "a").verify().problems == []
