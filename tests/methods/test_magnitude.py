"""Magnitude pruning, weight selection and the linear methods."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from svd_hybrid.errors import ParameterError
from svd_hybrid.methods.magnitude import MAGNITUDE, MagnitudeParams
from svd_hybrid.methods.task_arithmetic import TASK_ARITHMETIC
from svd_hybrid.methods.weight_averaging import WEIGHT_AVERAGING
from svd_hybrid.methods.weight_select import WEIGHT_SELECT, WeightSelectParams
from tests.methods.streams import FAMILY_A, merged, random_stacks, stream_of


def test_pruned_sum_with_weights():
    stream = stream_of({"x": FAMILY_A}, weights=(1.0, 0.5, -2.0))
    expected = [4 - 1, 1.5 + 8, -3 + 4, 2.5 - 4, 2, 0]
    assert merged(MAGNITUDE, stream, density=0.5)["x"].tolist() == expected


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_density_one_is_the_sum(scope):
    stacks = random_stacks(0)
    for name, delta in merged(MAGNITUDE, stream_of(stacks), density=1.0, trim_scope=scope).items():
        torch.testing.assert_close(delta, stacks[name].double().sum(0), rtol=1e-6, atol=1e-6)


def test_rows_are_trimmed_apart():
    deltas = torch.tensor([[[1.0, -4, 2, 3], [40, 20, 10, 30]]])
    got = merged(MAGNITUDE, stream_of({"x": deltas}), density=0.5, trim_scope="row")["x"]
    assert got.tolist() == [[0, -4, 0, 3], [40, 0, 0, 30]]


def test_rescaled_as_mergelm_and_a_scalar_left_alone():
    stacks = {"s": torch.tensor([0.5]), "v": torch.tensor([[1.0, -2.0, 2.0, 4.0, 3.0]])}
    values = {"density": 0.4, "trim_rule": "above-drop", "trim_scope": "tensor"}
    got = merged(MAGNITUDE, stream_of(stacks), rescale="inverse_density", **values)
    assert got["v"].tolist() == pytest.approx([0, 0, 0, 10, 7.5])  # both of the equal ones go
    assert got["s"].item() == 0.5


def test_selected_weights():
    base = torch.tensor([1.0, -2.0, 0.0])
    deltas = torch.tensor([[0.5, 3, 1], [-3, 0, 2], [1, -1, -3], [0, 1, 4]])
    stream = stream_of({"x": deltas}, bases={"x": base})
    assert merged(WEIGHT_SELECT, stream)["x"].tolist() == [0, 0, 1]  # the lower of two medians
    assert merged(WEIGHT_SELECT, stream, rule="largest")["x"].tolist() == [-3, -1, 4]


def test_linear_methods_weigh_as_their_names_say():
    assert (WEIGHT_AVERAGING.linear, WEIGHT_AVERAGING.weights) == (True, "average")
    assert (TASK_ARITHMETIC.linear, TASK_ARITHMETIC.weights) == (True, "sum")
    assert (WEIGHT_AVERAGING.params().scaling, TASK_ARITHMETIC.params().scaling) == (1.0, 0.3)


@pytest.mark.parametrize(
    ("params", "values"),
    [
        (MagnitudeParams, {"rescale": "l1"}),
        (MagnitudeParams, {"density": 0}),
        (WeightSelectParams, {"rule": "mean"}),
        (TASK_ARITHMETIC.params, {"scaling": float("inf")}),
    ],
)
def test_parameters_outside_their_range_are_refused(params, values):
    with pytest.raises(ParameterError, match=next(iter(values))):
        params(**values)


def test_method_files_are_read_without_torch():
    names = ["weight_averaging", "task_arithmetic", "magnitude", "ties", "dare", "tall_masks"]
    names += ["consensus", "emr", "magnitude_masking", "weight_select"]
    imports = "; ".join(f"import svd_hybrid.methods.{name}" for name in names)
    code = f"{imports}; import sys; assert not {{'torch', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
