"""Spectral and low-rank + sparse methods against the stored outputs of the original programs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from svd_hybrid.delta.evaluate import Mix, TensorParts, evaluate, matrix_shape
from svd_hybrid.methods.base import MergeMethod, MergeResult, TensorContext
from svd_hybrid.methods.iso_c import ISO_C
from svd_hybrid.methods.iso_cts import ISO_CTS
from svd_hybrid.methods.iso_iasad import ISO_IASAD
from svd_hybrid.methods.scale_svd import SCALE_SVD
from svd_hybrid.methods.tsv_compress import TSV_COMPRESS
from svd_hybrid.methods.tsv_m import TSV_M
from tests.golden.compare import Case, golden_case, relative_error
from tests.golden.conftest import GOLDEN
from tests.golden.spectral_cases import settings, statistics

pytestmark = pytest.mark.golden

ROWS = (ISO_C, ISO_CTS, ISO_IASAD, SCALE_SVD, TSV_COMPRESS, TSV_M)
METHODS: dict[str, MergeMethod] = {method.name: method for method in ROWS}


def named(*methods: str) -> list[str]:
    """The stored cases of these reference methods."""
    folders = sorted((GOLDEN / "cases").glob("*/case.json"))
    cases = [golden_case(GOLDEN, path.parent.name) for path in folders]
    return [case.name for case in cases if case.facts["method"] in methods]


@cache
def deltas(family: Path, tasks: int) -> dict[str, Tensor]:
    """(N, *shape) float32 by name, float tensors only."""
    base = load_file(family / "base.safetensors")
    tuned = [load_file(family / f"task_{number}.safetensors") for number in range(tasks)]
    return {
        name: torch.stack([task[name].float() - start.float() for task in tuned])
        for name, start in base.items()
        if start.is_floating_point()
    }


def run(
    case: Case, tensor: str, *, intended: bool = False, **changes: Any
) -> tuple[MergeResult, Tensor]:
    """What our method makes of one tensor of a case, and the deltas."""
    facts = case.facts
    method, values = settings(facts) or pytest.fail(f"nothing stands for {case.name}")
    stack = deltas(case.family, facts["n_tasks"])[tensor]
    tasks = tuple(f"task_{number}" for number in range(facts["n_tasks"]))
    stored = case.load("layer_stats") if case.holds("layer_stats") else {}
    found = statistics(
        facts, stored, tensor, stack.shape[-1] if stack.ndim > 1 else 0, intended=intended
    )
    ctx = TensorContext(tensor, tasks, case.base[tensor], (1.0,) * len(tasks), statistics=found)
    rule = METHODS[method]
    result = rule.merge(stack, rule.params(**(values | changes)), ctx)
    return result, stack


def merged(result: MergeResult, stack: Tensor) -> Tensor:
    shape = matrix_shape(tuple(stack.shape[1:]))
    rows = evaluate(result.merged, TensorParts(result.parts), Mix({}, shared=1.0), shape)
    return rows.rows(0, shape[0]).reshape(stack.shape[1:])


def one_task(result: MergeResult, stack: Tensor, task: int) -> Tensor:
    shape = matrix_shape(tuple(stack.shape[1:]))
    rows = evaluate(result.task, TensorParts(result.parts), Mix({task: 1.0}), shape)
    return rows.rows(0, shape[0]).reshape(stack.shape[1:])


def assert_close(case: Case, file: str, **how: Any) -> None:
    stored = case.load(file)
    assert stored
    for tensor in sorted(set(stored) - set(case.nonfinite(file))):
        error = relative_error(merged(*run(case, tensor, **how)), stored[tensor])
        assert error <= case.tolerance(file), (tensor, error)


@pytest.mark.parametrize("name", named("iso_c", "iso_cts", "tsvm", "tsv_rank_reduction"))
@pytest.mark.parametrize("null_space", ["drop", "ref"])
def test_merges_are_those_of_the_reference(golden, name, null_space):
    case = golden_case(golden, name)
    assert_close(case, "merged_tv", null_space=null_space)


@pytest.mark.parametrize(
    "name",
    [n for n in named("iso_c", "iso_cts", "tsvm") if golden_case(GOLDEN, n).holds("merged_model")],
)
def test_merged_models_are_those_of_the_reference(golden, name):
    case = golden_case(golden, name)
    scaling = settings(case.facts)[1]["scaling"]
    for tensor, want in case.load("merged_model").items():
        if case.base[tensor].is_floating_point():
            model = case.base[tensor].double() + scaling * merged(*run(case, tensor))
            assert relative_error(model, want) <= case.tolerance("merged_model"), tensor


@pytest.mark.parametrize("name", named("tsvm"))
def test_the_eigen_route_agrees_with_the_svd_route(golden, name):
    assert_close(golden_case(golden, name), "merged_tv", variant="eigen")


@pytest.mark.parametrize("name", named("tsvm_eigen"))
def test_the_float32_eigen_route_of_the_reference_is_as_wrong_as_documented(golden, name):
    """Expected difference: it loses half the digits (`reference_bug`); ours agrees with the SVD."""
    case = golden_case(golden, name)
    for tensor, theirs in case.load("merged_tv").items():
        ours = merged(*run(case, tensor))
        assert relative_error(ours, merged(*run(case, tensor, variant="svd"))) < 2e-5
        assert relative_error(theirs, ours) > 1e-4


@pytest.mark.parametrize("name", named("tsv_compress"))
def test_truncated_tasks_are_those_of_the_reference(golden, name):
    case = golden_case(golden, name)
    for tensor, want in case.load("reconstruction_task_0").items():
        error = relative_error(one_task(*run(case, tensor), 0), want)
        assert error <= case.tolerance("reconstruction_task_0"), tensor
    for key, want in case.load("singular_values").items():
        task, tensor = key.split("/", 1)
        truncated = one_task(*run(case, tensor), int(task.removeprefix("task_")))
        found = torch.linalg.svdvals(truncated)[: len(want)]
        assert relative_error(found, want) <= case.tolerance("singular_values"), key


@pytest.mark.parametrize("name", named("scale_svd"))
def test_approximated_tasks_are_those_of_the_reference(golden, name):
    case = golden_case(golden, name)
    task = case.facts["params"]["task"]
    file = f"processed_{task}"
    for tensor, want in case.load(file).items():
        ours = one_task(*run(case, tensor), int(task.removeprefix("task_")))
        assert relative_error(ours, want) <= case.tolerance(file), tensor


@pytest.mark.parametrize("name", named("scale_svd+iso_c", "scale_svd+iso_cts"))
def test_approximation_before_isotropic_merging_is_that_of_the_reference(golden, name):
    case = golden_case(golden, name)
    assert_close(case, "merged_tv")
    assert_close(case, "merged_tv_own_stats", intended=True)


@pytest.mark.parametrize("name", named("iso_iasad"))
def test_iasad_is_that_of_the_reference_in_legacy_mode_and_right_by_default(golden, name):
    case = golden_case(golden, name)
    assert_close(case, "merged_tv")
    assert_close(case, "merged_tv_intended", intended=True, mode="right")
