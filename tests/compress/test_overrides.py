"""Parameters for single tensors: patterns, tasks, gradients over depth, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid import compress
from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.settings import FamilySettings, at_depth, depths
from svd_hybrid.errors import ParameterError, SvdhError, UnknownNameError, UsageError
from tests.families import (
    UNQUANTISED,
    FamilyFiles,
    deltas_of,
    pack,
    relative_error,
    weights_of,
    write_family,
)

LAYERS = 5
SHAPES = {"embed.weight": (9, 6), "head.weight": (6, 9)} | {
    f"layers.{layer}.{kind}": (6, 8) for layer in range(LAYERS) for kind in ("mlp", "attn")
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    return write_family(tmp_path_factory.mktemp("family"), SHAPES, seed=5)


def settings(*rules: dict[str, Any], **config: Any) -> FamilySettings:
    resolved = resolve_config({"method": "ties", "overrides": list(rules)} | config, "test")
    return FamilySettings(resolved, ["ant", "bee"], (1.0, 1.0), SHAPES)


def test_the_last_rule_that_fits_wins_and_others_do_not_apply():
    found = settings(
        {"tensors": "layers.*", "density": 0.5, "trim_scope": "tensor"},
        {"tensors": ["re:layers\\.[01]\\.mlp", "head.*"], "density": 0.1},
    )
    assert found.of("layers.3.mlp").method.density == 0.5
    assert found.of("layers.1.mlp").method.density == 0.1
    assert found.of("layers.1.mlp").method.trim_scope == "tensor"
    assert found.of("head.weight").method.density == 0.1
    assert found.of("embed.weight") == found.common


def test_weights_and_densities_of_single_tasks():
    found = settings(
        {"tensors": "*", "weight": 2.0},
        {"tensors": "layers.*", "tasks": ["bee"], "weight": 0.5, "density": 0.7},
        {"tensors": "*.attn", "density": 0.3},
    )
    assert found.of("embed.weight").weights == (2.0, 2.0)
    mlp, attention = found.of("layers.0.mlp"), found.of("layers.0.attn")
    assert (mlp.weights, mlp.densities) == ((2.0, 0.5), (0.2, 0.7))
    assert (attention.method.density, attention.densities) == (0.3, ())


def test_profile_parameters_are_overridden_too(family, tmp_path):
    rules = [{"tensors": "layers.*", "low_bits": 2, "energy_threshold": 0.1}]
    coarse = pack(family, tmp_path / "coarse", overrides=rules)
    fine = pack(family, tmp_path / "fine", profile="hybrid")
    for name in SHAPES:
        errors = [
            relative_error(deltas_of(art, task="ant")[name], family.deltas(name)[0])
            for art in (coarse, fine)
        ]
        assert (errors[0] > 3 * errors[1]) == name.startswith("layers."), name


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "svd-hybrid"])
def test_kept_tensors_are_those_of_the_base_and_tasks_keep_theirs(family, tmp_path, method):
    kept = pack(
        family,
        tmp_path / "kept",
        method=method,
        store_tasks="on",
        keep_base=["*.attn"],
        overrides=[{"tensors": "head.*", "keep_base": True}],
        **UNQUANTISED,
    )
    merged = deltas_of(kept)
    for name in SHAPES:
        assert (not merged[name].any()) == (name.endswith("attn") or name == "head.weight")
        task = deltas_of(kept, task="cat")[name]
        assert relative_error(task, family.deltas(name)[2]) <= 1e-6


def test_weights_of_a_linear_merge_may_differ_between_tensors(family, tmp_path):
    rules = [
        {"tensors": "layers.*", "tasks": ["ant"], "weight": {"gradient": [0.0, 2.0]}},
        {"tensors": "embed.*", "scaling": -1.0},
    ]
    artifact = pack(
        family, tmp_path / "art", method="task-arithmetic", scaling=0.5, overrides=rules,
        **UNQUANTISED,
    )  # fmt: skip
    for name, merged in deltas_of(artifact).items():
        first = {"embed.weight": 1.0, "head.weight": 1.0}.get(name)
        if first is None:
            first = 2.0 * int(name.split(".")[1]) / (LAYERS - 1)
        deltas = family.deltas(name)
        factor = -1.0 if name == "embed.weight" else 0.5
        want = factor * (first * deltas[0] + deltas[1] + deltas[2])
        assert relative_error(merged, want) <= 2e-6, name


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "emr", "tsv-compress", "iso-c"])
def test_running_statistics_are_averaged_whatever_applies_to_the_rest(tmp_path, method):
    shapes = {"bn.running_mean": (7,), "bn.running_var": (7,), "bn.weight": (7,), "w": (5, 6)}
    family = write_family(tmp_path / "family", shapes, seed=6)
    rules = [{"tensors": "w", "scaling": 0.5}, {"tensors": "*", "tasks": ["bee"], "weight": 2.0}]
    for index, overrides in enumerate(([], rules)):
        artifact = pack(
            family, tmp_path / str(index), method=method, scaling=3.0, overrides=overrides,
            **UNQUANTISED,
        )  # fmt: skip
        weights = torch.tensor([1.0, 2.0, 1.0] if overrides else [1.0] * 3).double()
        for name in ("bn.running_mean", "bn.running_var"):
            want = torch.einsum("t,t...->...", weights / weights.sum(), family.deltas(name))
            assert relative_error(deltas_of(artifact)[name], want) <= 2e-6, (name, overrides)


def test_each_density_trims_its_tensors_as_one_model(family, tmp_path):
    """A global trim treats the tensors that share their parameters as one vector."""
    rules = [{"tensors": "layers.*", "density": 0.05}]
    artifact = pack(family, tmp_path / "art", method="magnitude", density=0.5, overrides=rules)
    # one task alone tells how many scalars survived
    alone = FamilyFiles(family.base, {"ant": family.tasks["ant"]})
    artifact = pack(alone, tmp_path / "one", method="magnitude", density=0.5, overrides=rules)
    kept = {name: int(delta.count_nonzero()) for name, delta in deltas_of(artifact).items()}
    inside = sum(count for name, count in kept.items() if name.startswith("layers."))
    assert inside == int(0.05 * 48 * 2 * LAYERS)
    assert sum(kept.values()) - inside == int(0.5 * (54 + 54))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=5), st.floats(0, 1))
def test_a_gradient_stays_between_its_neighbours_and_meets_its_ends(points, depth):
    value = at_depth({"gradient": points}, depth)
    assert min(points) - 1e-9 <= value <= max(points) + 1e-9
    assert at_depth({"gradient": points}, 0.0) == points[0]
    assert at_depth({"gradient": points}, 1.0) == pytest.approx(points[-1])


def test_depth_counts_the_layers_of_each_stack_apart():
    found = depths(["a.0.w", "a.1.w", "b.0.w", "b.1.w", "b.2.w", "wte.embed", "norm.weight"])
    assert [found[name] for name in ("a.1.w", "b.1.w", "wte.embed", "norm.weight")] == [
        1,
        0.5,
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("rule", "fault", "text"),
    [
        ({"density": 0.5}, UsageError, "names no tensors"),
        ({"tensors": "*", "densty": 0.5}, UsageError, "did you mean 'density'"),
        ({"tensors": "*", "density": "half"}, ParameterError, "must be a number"),
        ({"tensors": "*", "density": 1.5}, ParameterError, "density is 1.5"),
        ({"tensors": "*", "merge_func": {"gradient": [1, 2]}}, ParameterError, "gradient"),
        ({"tensors": "*", "density": {"gradient": []}}, ParameterError, "gradient"),
        ({"tensors": "*", "tasks": ["ant"], "election": "count"}, UsageError, "single tasks"),
        ({"tensors": "*", "tasks": ["eel"], "weight": 1.0}, SvdhError, "no task 'eel'"),
        ({"tensors": "re:(", "density": 0.5}, ParameterError, "no regular expression"),
        ({"tensors": "*", "model": "x"}, UsageError, "unknown key 'model'"),
        ({"tensors": 5, "density": 0.5}, UsageError, "no list of names"),
    ],
)
def test_faulty_rules_are_one_clear_error(family, tmp_path, rule, fault, text):
    with pytest.raises(fault, match=text.replace("(", "\\(")):
        compress(family.base, family.tasks, tmp_path / "art", method="ties", overrides=[rule])
    assert not (tmp_path / "art").exists()


def test_a_parameter_of_another_method_is_named_with_its_owners():
    with pytest.raises(UsageError) as caught:
        resolve_config({"method": "iso-c", "density": 0.2}, "test")
    assert "method iso-c has no parameter 'density'" in str(caught.value)
    assert "ties" in str(caught.value)


def test_overrides_are_recorded_with_the_merge(family, tmp_path):
    rules = [{"tensors": ["head.*"], "density": 0.4}]
    artifact = pack(family, tmp_path / "art", method="ties", overrides=rules)
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["merges"]["merged"]["parameters"]["overrides"] == rules
    assert json.loads((artifact.path / "config.json").read_text())["overrides"] == rules


@pytest.mark.parametrize("given_weights", [[0.5, 1.0, -2.0], {"bee": 1.0, "ant": 0.5, "cat": -2.0}])
def test_task_weights_are_given_in_order_or_by_name(family, tmp_path, given_weights):
    artifact = pack(
        family, tmp_path / "art", method="task-arithmetic", weights=given_weights, scaling=1.0,
        **UNQUANTISED,
    )  # fmt: skip
    factors = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64)
    for name, merged in deltas_of(artifact).items():
        want = torch.einsum("t,t...->...", factors, family.deltas(name))
        assert relative_error(merged, want) <= 2e-6


def test_weights_by_name_need_no_checkpoints_either(family, tmp_path):
    pack(family, tmp_path / "tasks", **UNQUANTISED)
    result = compress(
        family.base, {}, tmp_path / "art", from_artifact=tmp_path / "tasks",
        method="task-arithmetic", weights={"cat": 3.0, "ant": 1.0, "bee": 0.0},
    )  # fmt: skip
    assert dict(result.weights) == {"ant": 1.0, "bee": 0.0, "cat": 3.0}


def test_weights_of_an_average_are_normalised_unless_told_otherwise(family, tmp_path):
    average = pack(family, tmp_path / "a", method="weight-averaging", weights=[1, 1, 2])
    assert list(average.merges["merged"].values()) == [0.25, 0.25, 0.5]
    plain = pack(
        family, tmp_path / "b", method="weight-averaging", weights=[1, 1, 2],
        normalize_weights=False,
    )  # fmt: skip
    assert list(plain.merges["merged"].values()) == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("weights", "text"),
    [([1.0], "must be 3 finite numbers"), ([1.0, -1.0, 0.0], "define no average")],
)
def test_weights_that_cannot_be_meant(family, tmp_path, weights, text):
    with pytest.raises(ParameterError, match=text):
        pack(family, tmp_path / "art", method="weight-averaging", weights=weights)
    with pytest.raises((UsageError, UnknownNameError)):
        pack(family, tmp_path / "art", method="ties", weights={"ant": 1.0})
    assert not Path(tmp_path / "art").exists()


def test_a_merge_is_base_plus_its_delta(family, tmp_path):
    artifact = pack(family, tmp_path / "art", method="iso-c")
    base = pack(family, tmp_path / "zero", method="iso-c", scaling=0.0)
    deltas = deltas_of(artifact)
    for name, weight in weights_of(artifact, family).items():
        start = weights_of(base, family)[name]
        assert torch.equal(weight, (start.double() + deltas[name].double()).float())
