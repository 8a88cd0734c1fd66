"""The limits FORMAT.md states, from both sides."""

from __future__ import annotations

import math
import random

import pytest
import torch

from svd_hybrid import Artifact
from svd_hybrid.codec import HalfCodec, ResidualAffineCodec
from svd_hybrid.errors import FamilyError
from tests.format.families import compress_family, random_delta, write_family


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_delta_beyond_the_range_is_refused_and_not_a_crash(tmp_path, dtype):
    base = {"w": torch.zeros(4, 6, dtype=dtype)}
    tuned = {"w": (random_delta((4, 6), 0, 1.0).clamp(-1, 1) * 3e38).to(dtype)}
    write_family(tmp_path, base, {"a": tuned, "b": base})
    with pytest.raises(FamilyError, match="too far from the base"):
        compress_family(tmp_path, ["a", "b"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-100, 99])
@pytest.mark.parametrize("fp16", [True, False])
def test_deltas_of_any_size_within_the_range_come_back(tmp_path, dtype, exponent, fp16):
    base = {"w": torch.zeros(4, 6, dtype=dtype)}
    unit = random_delta((4, 6), 0, 1.0).clamp(-1, 1)
    tuned = {"w": (unit * 2.0**exponent).to(dtype)}
    write_family(tmp_path, base, {"a": tuned, "b": base})
    artifact = compress_family(tmp_path, ["a", "b"], fp16=fp16)
    rebuilt = dict(Artifact.open(artifact).iter_tensors(tmp_path / "base.safetensors", task="a"))
    error = (rebuilt["w"].double() - tuned["w"].double()).norm() / tuned["w"].double().norm()
    assert float(error) < 2e-2


@pytest.mark.parametrize("masked", [True, False])
def test_deltas_too_small_to_square_count_as_unchanged(tmp_path, masked):
    base = {"w": torch.zeros(4, 6, dtype=torch.float64)}
    write_family(
        tmp_path,
        base,
        {"a": {"w": random_delta((4, 6), 0) * 1e-200}},
        {"a": {"w": torch.arange(24).reshape(4, 6) % 2 > 0}} if masked else None,
    )
    artifact = compress_family(tmp_path, ["a"])
    rebuilt = dict(Artifact.open(artifact).iter_tensors(tmp_path / "base.safetensors", task="a"))
    assert torch.equal(rebuilt["w"], base["w"])


@pytest.mark.parametrize("seed", range(20))
def test_codec_errors_stay_within_the_stated_bounds(seed):
    rng = random.Random(seed)
    shape = (rng.randint(1, 3), rng.randint(1, 5), rng.randint(1, 150))
    x = random_delta(shape, seed, 2.0 ** rng.randint(-60, 60)).float()
    x[..., : shape[2] // 3] += rng.choice([0.0, 5.0]) * x.abs().max()
    x[0, 0] = rng.choice([0.0, float(x.abs().max()), -1e-3 * float(x.abs().max())])
    exact = x.double()
    half = HalfCodec()
    arrays = half.encode(x)
    top = 2.0 ** arrays["exponent"].double().reshape(-1, 1, 1)
    error = (half.decode(arrays, shape).double() - exact).abs()
    assert bool((error <= torch.maximum(2.0**-11 * exact.abs(), 2.0**-25 * top)).all())
    codec = ResidualAffineCodec(
        rng.randint(1, 8), rng.randint(1, 3), rng.choice([0, 1, 7, 64]), rng.choice(["F16", "F32"])
    )
    arrays = codec.encode(x)
    error = (codec.decode(arrays, shape).double() - exact).abs()
    last = f"stage{codec.stages - 1}"
    top = 2.0 ** arrays[f"{last}.exponent"].double().reshape(-1, 1, 1)
    step = arrays[f"{last}.step"].double()
    step = step.reshape(shape[0], -1, step.shape[-1]) * top
    size = codec.group_size or math.prod(shape[1:])
    wide = step.repeat_interleave(size, dim=2)
    wide = wide[..., : shape[2]] if codec.group_size else wide.reshape(shape)
    bound = torch.maximum(0.501 * wide, 2.0**-25 * top) + 2.0**-24 * exact.abs()
    assert bool((error <= bound).all())
