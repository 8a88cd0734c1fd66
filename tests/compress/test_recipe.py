"""mergekit recipes give mergekit's numbers, or are refused with the key that is in the way.

The formulas are written anew here, tensor by tensor; scripts/compare_mergekit.py runs the real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from svd_hybrid import Artifact, compress
from svd_hybrid.artifact.files import read_manifest
from svd_hybrid.cli.app import main
from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.recipe.check import check_checkpoints
from svd_hybrid.compress.recipe.read import Recipe, read_recipe
from svd_hybrid.compress.request import CompressRequest
from svd_hybrid.compress.run import run_compress
from svd_hybrid.compress.settings import FamilySettings, depths
from svd_hybrid.errors import ParameterError, UsageError
from tests.families import FamilyFiles, State, load_state, weights_of, write_family

LAYERS = 3
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (9, 8),
    **{f"model.layers.{i}.self_attn.q_proj.weight": (8, 8) for i in range(LAYERS)},
    **{f"model.layers.{i}.mlp.up_proj.weight": (12, 8) for i in range(LAYERS)},
    "model.norm.weight": (8,),
    "lm_head.weight": (9, 8),
}
TASKS = ("ant", "bee", "cat")
GRADED = [{"filter": "self_attn", "value": [0.2, 0.5, 1.0]}, {"filter": "mlp", "value": 0.7}, 0.4]


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> FamilyFiles:
    return write_family(tmp_path_factory.mktemp("family"), SHAPES, TASKS)


def cases(*entries: Any) -> list[dict[str, Any]]:
    """Conditional values; a plain one is the default."""
    return [entry if isinstance(entry, dict) else {"value": entry} for entry in entries]


# --- mergekit's formulas, once more --------------------------------------------------------------


def setting(name: str, *scopes: Mapping[str, Any], key: str, default: Any = None) -> Any:
    parts = name.split(".")
    t = int(parts[2]) / (LAYERS - 1) if parts[1] == "layers" else 0.0
    for scope in scopes:
        entries = scope.get(key, [{"filter": "nothing"}])
        if not isinstance(entries, list) or not isinstance(entries[0], dict):
            entries = [{"value": entries}]
        for entry in entries:
            if entry.get("filter", "*") in ("*", None) or entry["filter"] in name:
                return interpolated(entry["value"], t)
    return default


def interpolated(value: Any, t: float) -> Any:
    if not isinstance(value, list):
        return value
    place = t * (len(value) - 1)
    low = min(int(place), len(value) - 1)
    high = min(low + 1, len(value) - 1)
    return value[low] + (place - low) * (value[high] - value[low])


def largest(delta: Tensor, density: float) -> Tensor:
    order = delta.abs().flatten().argsort(descending=True)
    mask = torch.zeros(delta.numel(), dtype=torch.float64)
    mask[order[: int(density * delta.numel())]] = 1
    return delta * mask.reshape(delta.shape)


def merged(document: Mapping[str, Any], family: FamilyFiles) -> State:
    """What mergekit gives, in float64."""
    base, result = load_state(family.base), {}
    method, shared = document["merge_method"], document.get("parameters", {})
    inputs = {str(path): load_state(path) for path in (family.base, *family.tasks.values())}
    models = {entry["model"]: entry.get("parameters", {}) for entry in document["models"]}
    if method == "linear" and "base_model" in document:
        models.setdefault(document["base_model"], {})
    if method != "linear":
        models.pop(document["base_model"], None)
    by_default = method in ("linear", "ties")
    for name, start in base.items():
        normalize = setting(name, shared, key="normalize", default=by_default)
        weights = [setting(name, own, shared, key="weight") for own in models.values()]
        tensors = [inputs[path][name].double() for path in models]
        if method == "linear":
            total = sum(w * x for w, x in zip(weights, tensors, strict=True))
            result[name] = total / (sum(weights) if normalize else 1.0)
            continue
        deltas = [tensor - start.double() for tensor in tensors]
        if method == "ties":
            densities = [
                setting(name, own, shared, key="density", default=1.0) for own in models.values()
            ]
            deltas = [largest(d, k) for d, k in zip(deltas, densities, strict=True)]
        stack = torch.stack([w * d for w, d in zip(weights, deltas, strict=True)])
        agree = torch.ones_like(stack)
        if method in ("ties", "dare_ties"):
            elected = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
            agree = (stack.sign() == elected).double()
        shape = (-1, *[1] * (stack.ndim - 1))
        divisor = (torch.tensor(weights, dtype=torch.float64).reshape(shape) * agree).sum(0)
        divisor[divisor.abs() < 1e-8] = 1
        mixed = (stack * agree).sum(0) / (divisor if normalize else 1.0)
        factor = setting(name, shared, key="lambda", default=1.0)
        result[name] = start.double() + factor * mixed
    return result


def run(recipe: Recipe, folder: Path) -> State:
    """The merge that svdh makes of it."""
    config = resolve_config(recipe.values, "recipe")
    run_compress(CompressRequest(recipe.base, recipe.tasks, folder, config))
    files = FamilyFiles(recipe.base, dict(recipe.tasks))
    return weights_of(Artifact.open(folder), files)


def models(family: FamilyFiles, *weights: Any, **more: Any) -> list[dict[str, Any]]:
    return [
        {"model": str(path), "parameters": {"weight": weight} | more}
        for path, weight in zip(family.tasks.values(), weights, strict=True)
    ]


PARAMETERS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"weight": 0.5}),
    ("task_arithmetic", {}),
    ("task_arithmetic", {"normalize": True, "lambda": [0.5, 1.5]}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.5, "normalize": False, "lambda": 0.7, "int8_mask": True}),
    ("ties", {"density": cases({"filter": "mlp", "value": [0.3, 0.9]}, 0.5), "rescale": False}),
    ("ties", {"density": 0.5, "normalize": cases({"filter": "norm", "value": False}, True)}),
    ("dare_linear", {"density": 1}),
    ("dare_linear", {"normalize": True, "lambda": cases({"filter": "lm_", "value": 2}, 1)}),
    ("dare_ties", {}),
    ("dare_ties", {"normalize": True, "rescale": False}),
]
WEIGHTS = {
    "numbers": (0.5, 1.0, -0.25),
    "gradients": (cases(*GRADED), [0.1, 1, 0.3], 0.6),
    "one gradient": ([0.5, 1.0],) * 3,
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("method", "parameters"), PARAMETERS)
def test_a_recipe_gives_mergekits_numbers(tmp_path, family, method, parameters, weights):
    listed = models(family, *WEIGHTS[weights])
    document = {"merge_method": method, "models": listed, "parameters": parameters}
    if method != "linear" or "weight" in parameters:
        document["base_model"] = str(family.base)
    got = run(read_recipe(document, "recipe.yml"), tmp_path / "art")
    for name, want in merged(document, family).items():
        assert float((got[name].double() - want).abs().max()) < 2e-6, name


def test_densities_may_differ_between_models(tmp_path, family):
    listed = models(family, 1, 2, 1)
    for entry, density in zip(
        listed[:2], (0.2, cases({"filter": "q_proj", "value": 0.9}, 0.4)), strict=True
    ):
        entry["parameters"]["density"] = density
    document = {
        "merge_method": "ties",
        "base_model": str(family.base),
        "models": listed,
        "parameters": {"density": [0.5, 0.8]},
    }
    got = run(read_recipe(document, "recipe.yml"), tmp_path / "art")
    for name, want in merged(document, family).items():
        assert float((got[name].double() - want).abs().max()) < 2e-6, name


def test_linear_that_is_not_normalised_needs_weights_that_sum_to_1(tmp_path, family):
    document = {
        "merge_method": "linear",
        "models": models(family, 0.5, 0.3, 0.2),
        "parameters": {"normalize": False},
    }
    got = run(read_recipe(document, "recipe.yml"), tmp_path / "art")
    for name, want in merged(document, family).items():
        assert float((got[name].double() - want).abs().max()) < 2e-6, name
    for weights in ((1, 1, 1), ([0.5, 1], 0.3, 0.2)):
        document["models"] = models(family, *weights)
        with pytest.raises(UsageError, match="normalize is false"):
            read_recipe(document, "recipe.yml")


def test_dare_is_random_and_says_that_its_draws_are_other_ones(tmp_path, family):
    document = {
        "merge_method": "dare_linear",
        "base_model": str(family.base),
        "models": models(family, 1, 1, 1),
        "parameters": {"density": 0.5},
    }
    recipe = read_recipe(document, "recipe.yml")
    assert "one random stream" in " ".join(recipe.notes)
    got, base = run(recipe, tmp_path / "art"), load_state(family.base)
    whole = merged(document | {"parameters": {}}, family)
    name = "model.layers.0.mlp.up_proj.weight"
    kept = (got[name] - base[name]).norm() / (whole[name] - base[name]).norm()
    assert 0.8 < float(kept) < 2.0


# --- what a recipe becomes -----------------------------------------------------------------------


def a_recipe(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "base"},
            {"model": "fine/ant", "parameters": {"weight": 1, "density": 0.5}},
            {"model": "fine/bee.safetensors", "parameters": {"weight": 2, "density": 0.5}},
        ],
        "parameters": {"normalize": True},
    }
    return {key: value for key, value in (document | changes).items() if value is not None}


def test_paths_names_and_parameters():
    recipe = read_recipe(a_recipe(), "recipe.yml")
    assert recipe.base == Path("base")
    assert recipe.tasks == {"ant": Path("fine/ant"), "bee": Path("fine/bee.safetensors")}
    assert dict(recipe.values) == {
        "method": "ties",
        "scaling": 1.0,
        "density": 0.5,
        "trim_scope": "tensor",
        "zero_sign": "plus",
        "weight_rule": "mergekit",
        "merge_func": "mean",
        "weights": [1.0, 2.0],
        "out_dtype": "base",
        "store_tasks": "off",
        "overrides": [],
    }
    assert recipe.notes == ()


def test_task_names_are_made_unique():
    entries = [{"model": path, "parameters": {"weight": 1}} for path in ("a/M_1", "b/m-1", "M1/")]
    recipe = read_recipe({"merge_method": "linear", "models": entries}, "recipe.yml")
    assert list(recipe.tasks) == ["M_1", "m-1.2", "M1.3"]
    assert recipe.base == Path("a/M_1")
    assert "made for the first model, a/M_1" in recipe.notes[0]


def test_what_changes_nothing_is_said():
    recipe = read_recipe(
        a_recipe(merge_method="task_arithmetic", parameters={"rescale": True, "int8_mask": True}),
        "recipe.yml",
    )
    assert recipe.notes == (
        "density changes nothing in merge_method task_arithmetic",
        "rescale changes nothing in merge_method task_arithmetic",
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "base"),
        ({"dtype": "float32"}, "F32"),
        ({"dtype": "bfloat16"}, "BF16"),
        ({"dtype": "float32", "out_dtype": "torch.float16"}, "F16"),
        ({"out_dtype": "bfloat16"}, "BF16"),
        ({"dtype": "float64"}, "base"),
    ],
)
def test_dtype_of_the_result(given, expected):
    assert read_recipe(a_recipe(**given), "r").values["out_dtype"] == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slices": []}, "svdh cannot honour key 'slices'"),
        ({"modules": {}}, "'modules'"),
        ({"tokenizer_source": "union"}, "'tokenizer_source'"),
        ({"tokenizer": {"source": "base"}}, "'tokenizer'"),
        ({"chat_template": "auto"}, "'chat_template'"),
        ({"basemodel": "x"}, "unknown key 'basemodel'"),
        ({"merge_method": "slerp"}, "svdh has no merge_method 'slerp'"),
        ({"base_model": None}, "merge_method ties needs key 'base_model'"),
        ({"base_model": "org/model@main"}, "base_model names a revision"),
        ({"base_model": {"path": "x"}}, "base_model is not a path"),
        ({"models": None}, "key 'models' is not a list"),
        ({"models": [{"model": "base"}]}, "nothing but the base"),
        ({"models": [{"path": "x"}]}, r"models\[0\] has no key 'model'"),
        ({"models": [{"model": "x+lora"}]}, "names an adapter"),
        ({"models": [{"model": "x", "layer_range": [0, 1]}]}, "unknown key 'layer_range'"),
        ({"models": [{"model": "x"}] * 2}, "lists a model twice"),
        ({"models": [{"model": "x"}]}, "weight of 'x' has no value"),
        ({"models": [{"model": "x", "parameters": {"normalize": True}}]}, "normalize is a param"),
        ({"parameters": {"gamma": 0.1}}, "unknown parameter 'gamma'"),
        ({"parameters": ["weight"]}, "parameters is not a mapping"),
        ({"parameters": {"lambda": "much"}}, "lambda is 'much', must be a number"),
        ({"parameters": {"lambda": float("nan")}}, "lambda is nan"),
        ({"parameters": {"lambda": []}}, "lambda is an empty list"),
        ({"parameters": {"lambda": [{"filter": "mlp"}]}}, "not a filter and a value"),
        ({"parameters": {"lambda": {"filters": "mlp", "value": 1}}}, "unknown key 'filters'"),
        ({"parameters": {"lambda": [1, {"value": 1}]}}, "lambda is {'value': 1}"),
        ({"parameters": {"normalize": [True, False]}}, "normalize is a list of flags"),
        ({"parameters": {"normalize": 3}}, "normalize is 3, must be true or false"),
        ({"parameters": {"rescale": True}}, "drop key 'rescale'"),
        ({"dtype": "int8"}, "dtype is 'int8', which is no float dtype"),
        ({"out_dtype": "float64"}, "out_dtype float64 needs dtype float64"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes, said):
    with pytest.raises(UsageError) as caught:
        read_recipe(a_recipe(**changes), "recipe.yml")
    assert caught.match(said) or said in caught.value.fix
    assert caught.value.where.startswith("recipe.yml")


def test_a_flag_of_the_whole_model_has_one_value():
    flag = {"normalize": cases({"filter": "mlp", "value": True}, False)}
    with pytest.raises(UsageError, match="normalize differs between tensors"):
        read_recipe(a_recipe(merge_method="task_arithmetic", parameters=flag), "r")


@pytest.mark.parametrize(("method", "density"), [("ties", 0), ("ties", [1, 2]), ("dare_ties", -1)])
def test_a_density_outside_its_range(method, density):
    entries = [{"model": "x", "parameters": {"weight": 1, "density": density}}]
    with pytest.raises(ParameterError, match="density of 'x' is"):
        read_recipe(a_recipe(merge_method=method, models=entries), "r")


def test_depth_is_that_of_mergekit_inside_the_layers():
    assert depths([f"model.layers.{i}.w" for i in range(5)]) == {
        f"model.layers.{i}.w": i / 4 for i in range(5)
    }
    assert depths(["model.layers.0.w"]) == {"model.layers.0.w": 1.0}


# --- dtypes of the checkpoints -------------------------------------------------------------------


def checked(tmp_path: Path, base: torch.dtype, tuned: torch.dtype, **given: Any) -> list[str]:
    first = write_family(tmp_path / "a", {"w": (2, 2)}, TASKS, dtype=base)
    second = write_family(tmp_path / "b", {"w": (2, 2)}, TASKS, dtype=tuned)
    return check_checkpoints(read_recipe(a_recipe(**given), "r"), first.base, second.tasks)


def test_half_precision_arithmetic_is_not_imitated(tmp_path):
    half, single = torch.bfloat16, torch.float32
    assert "rounds once" in checked(tmp_path, half, half)[0]
    assert "rounds once" in checked(tmp_path, half, half, dtype="bfloat16")[0]
    (said,) = checked(tmp_path, half, half, dtype="float32")
    assert "equal magnitudes at the cut" in said
    assert checked(tmp_path, single, single, out_dtype="bfloat16") == []
    with pytest.raises(UsageError, match="key 'dtype' asks for BF16, the checkpoints hold F32"):
        checked(tmp_path, single, single, dtype="bfloat16")
    with pytest.raises(UsageError, match="key 'dtype' asks for F64"):
        checked(tmp_path, single, single, dtype="float64")
    with pytest.raises(UsageError, match="different dtypes, as in tensor 'w'"):
        checked(tmp_path, half, single)
    assert len(checked(tmp_path, half, single, dtype="float32")) == 1


def test_tensors_too_small_for_their_density_are_named(tmp_path):
    family = write_family(tmp_path, {"big": (4, 4), "norm": (3,)}, TASKS)
    listed = {"base_model": str(family.base), "models": models(family, 1, 1, 1)}
    for density in (0.3, [1, 0.3], cases({"filter": "norm", "value": 0.2}, 0.5)):
        document = listed | {"merge_method": "ties", "parameters": {"density": density}}
        notes = check_checkpoints(read_recipe(document, "r"), family.base, family.tasks)
        assert notes == ["of tensors this small mergekit keeps one scalar, svdh none: 'norm'"]
    document = listed | {"merge_method": "dare_ties", "parameters": {"density": 0.1}}
    assert check_checkpoints(read_recipe(document, "r"), family.base, family.tasks) == []


# --- weights of an average -----------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "expected"), [("", (2 / 4, 1 / 4, 1 / 4)), ("1,3,4", None)])
def test_overridden_weights_of_an_average_sum_to_1(weights, expected):
    rules = [{"tensors": "*mlp*", "tasks": ["ant"], "weight": 2}]
    config = resolve_config(
        {"method": "weight-averaging", "weights": weights, "overrides": rules}, "test"
    )
    common = (1 / 8, 3 / 8, 4 / 8) if weights else (1 / 3,) * 3
    settings = FamilySettings(config, TASKS, common, SHAPES)
    assert settings.of("lm_head.weight").weights == common
    own = settings.of("model.layers.0.mlp.up_proj.weight").weights
    assert own == pytest.approx(expected or (2 / 9, 3 / 9, 4 / 9))


def test_overridden_weights_that_cancel_define_no_average():
    rules = [{"tensors": "*mlp*", "tasks": ["ant"], "weight": -2}]
    config = resolve_config({"method": "weight-averaging", "overrides": rules}, "test")
    settings = FamilySettings(config, TASKS, (1 / 3,) * 3, SHAPES)
    with pytest.raises(ParameterError, match="weights of tensor 'model"):
        settings.of("model.layers.0.mlp.up_proj.weight")


# --- on the command line -------------------------------------------------------------------------


def command(folder: Path, document: dict[str, Any], *more: object) -> int:
    (folder / "recipe.yml").write_text(yaml.safe_dump(document), "utf-8")
    words = ["compress", "-q", "--config", folder / "recipe.yml", "--artifact-dir", folder / "art"]
    return main([str(word) for word in (*words, *more)])


def test_a_recipe_on_the_command_line(tmp_path, family, monkeypatch, capsys):
    monkeypatch.chdir(family.base.parent)  # paths are relative to the current folder
    entries = [{"model": f"{t}.safetensors", "parameters": {"weight": 1}} for t in TASKS]
    document = {"merge_method": "linear", "models": entries}
    assert command(tmp_path, document) == 0
    assert capsys.readouterr().err == (
        "note: linear has no base: the artifact is made for the first model, ant.safetensors\n"
    )
    files = FamilyFiles(family.tasks["ant"], family.tasks)
    got = weights_of(Artifact.open(tmp_path / "art"), files)
    states = [load_state(path) for path in family.tasks.values()]
    for name, tensor in got.items():
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        assert float((tensor.double() - mean).abs().max()) < 1e-6


def test_the_command_line_wins_over_a_recipe(tmp_path, family):
    entries = [{"model": f"org/{task}", "parameters": {"weight": 1}} for task in TASKS]
    document = {"merge_method": "task_arithmetic", "models": entries, "base_model": "org/base"}
    given = [f"--task={task}={path}" for task, path in family.tasks.items()]
    more = (f"--base-model-path={family.base}", "--scaling=0.5", "--store-tasks=on", *given)
    assert command(tmp_path, document, *more) == 0
    manifest = read_manifest(tmp_path / "art")
    assert (list(manifest.tasks), manifest.holds_tasks) == (list(TASKS), True)
    assert manifest.merges["merged"].scaling == 0.5


def test_a_recipe_adds_a_merge_to_an_artifact(tmp_path, family):
    compress(family.base, family.tasks, tmp_path / "first")
    document = {
        "merge_method": "ties",
        "base_model": str(family.base),
        "models": models(family, 1, 2, 1),
        "parameters": {"density": 0.4},
    }
    assert command(tmp_path, document, "--from-artifact", tmp_path / "first") == 0
    manifest = read_manifest(tmp_path / "art")
    assert (sorted(manifest.merges), manifest.holds_tasks) == (["merged", "ties"], True)
    got = weights_of(Artifact.open(tmp_path / "art"), family, merge="ties")
    for name, want in merged(document, family).items():
        assert float((got[name].double() - want).abs().max()) < 2e-6, name


def test_models_that_are_elsewhere(tmp_path, family, capsys):
    entries = [{"model": "org/ant", "parameters": {"weight": 1}}]
    document = {"merge_method": "linear", "models": entries, "base_model": str(family.base)}
    document["parameters"] = {"weight": 1}
    assert command(tmp_path, document) == 2
    said = capsys.readouterr().err
    assert "a model of the recipe is no local path" in said
    assert "org/ant" in said
    assert command(tmp_path, document, f"--task=bee={family.tasks['bee']}") == 2
    assert "no task 'bee'" in capsys.readouterr().err
