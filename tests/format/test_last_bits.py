"""The last step of FORMAT.md: base + delta, rounded once, and what stays as it was."""

from __future__ import annotations

import pytest
import torch

from svd_hybrid import Artifact
from svd_hybrid.codec import HalfCodec
from svd_hybrid.numerics.reproducible import ReproducibleProduct
from tests.format.families import compress_family, random_delta, write_family


def rebuilt(folder, artifact, **selection) -> dict[str, torch.Tensor]:
    return dict(Artifact.open(artifact).iter_tensors(folder / "base.safetensors", **selection))


def test_a_scalar_whose_delta_is_zero_keeps_its_bits_even_a_negative_zero(tmp_path):
    base = {name: torch.full((3, 4), -0.0) for name in ("whole", "masked")}
    delta = torch.zeros(3, 4)
    delta[1] = torch.tensor([1.0, -1.0, 0.5, 2.0])  # rank 1, and nothing in the other rows
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1] = True
    tasks = {"a": {"whole": delta, "masked": delta}, "b": {"whole": -delta, "masked": -delta}}
    write_family(
        tmp_path,
        base,
        {task: {name: x.clone() for name, x in new.items()} for task, new in tasks.items()},
        {task: {"masked": mask} for task in tasks},
    )
    artifact = compress_family(
        tmp_path, list(tasks), missing_mask="ignore", min_mask_size=1, center=False
    )
    for name, tensor in rebuilt(tmp_path, artifact, task="a").items():
        unchanged = delta == 0
        assert bool(torch.signbit(tensor[unchanged]).all()), name
        assert torch.allclose(tensor[1], delta[1], rtol=0.2), name


def test_a_variance_never_becomes_negative(tmp_path):
    base = {"bn.running_var": torch.tensor([1.0, 0.5, 2.0, 0.0])}
    down = {"bn.running_var": torch.tensor([0.0, 0.0, 2.0, 0.0])}
    write_family(tmp_path, base, {"a": base, "b": down})
    artifact = compress_family(tmp_path, ["a", "b"])
    tensor = rebuilt(tmp_path, artifact, weights={"a": -1.0, "b": 2.0})["bn.running_var"]
    assert tensor.tolist() == [0.0, 0.0, 2.0, 0.0]
    assert not bool(torch.signbit(tensor).any())


def test_another_dtype_is_rounded_once(tmp_path):
    base = {"same": torch.tensor([1 + 2**-11 + 2**-40], dtype=torch.float64)}
    base["w"] = torch.zeros(2, 2, dtype=torch.float64)
    tuned = base | {"w": random_delta((2, 2), 0)}
    write_family(tmp_path, base, {"a": tuned})
    artifact = compress_family(tmp_path, ["a"])
    tensors = rebuilt(tmp_path, artifact, task="a", dtype="F16")
    assert tensors["same"].item() == 1 + 2**-10  # by way of float32 it would be 1


def test_a_product_has_no_negative_zero():
    left, right = torch.zeros(4, 1), -torch.ones(1, 5)  # one BLAS gives -0 here, another 0
    assert not bool(torch.signbit(ReproducibleProduct(left, right).rows(0, 4)).any())


@pytest.mark.parametrize("exponent", [*range(-175, -118), -1, 0, 1, *range(100, 131), 1022, -1022])
def test_half_is_the_exact_product_rounded_once(exponent):
    bits = torch.arange(-(2**15), 2**15, 7, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.float16)
    values = values[torch.isfinite(values)].reshape(1, 1, -1)
    stored = {"values": values, "exponent": torch.tensor([exponent], dtype=torch.int16)}
    decoded = HalfCodec().decode(stored, tuple(values.shape))
    assert torch.equal(decoded, (values.double() * 2.0**exponent).float())
