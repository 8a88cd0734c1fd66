"""diagnostics.json: every promised field, true bytes, and errors that a reload confirms."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from svd_hybrid import Artifact
from svd_hybrid.artifact import layout
from svd_hybrid.compress.diagnostics import Diagnostics
from svd_hybrid.errors import ArtifactError
from tests.families import (
    SHAPES,
    FamilyFiles,
    load_state,
    pack,
    relative_error,
    weights_of,
    write_family,
    write_states,
)

TASKS = ("ant", "bee", "cat")
TOP = {"config", "summary", "per_parameter", "task_weights", "bytes", "tasks", "notes"}
CONFIG = {
    *("svd_energy_threshold", "svd_max_rank", "svd_low_bits", "svd_rtvq_stages"),
    *("svd_mask_strategy", "svd_weighting"),
}
SUMMARY = {
    *("num_parameters", "average_rank", "std_rank", "average_energy_retained"),
    *("average_reconstruction_error", "average_compression_ratio"),
}
PARAMETER = {
    *("param_name", "original_shape", "masked_size", "unmasked_size", "basis"),
    *("k", "energy_retained", "reconstruction_errors", "compression_ratios"),
    *("mean_relative_error", "std_relative_error", "max_relative_error", "min_relative_error"),
}
ERRORS = {
    *("absolute_error", "relative_error", "max_absolute_error", "mean_absolute_error"),
    *("original_norm", "reconstructed_norm"),
}
SIGNIFICANT = 1e-6
"""Sizes and sums are written with seven digits."""
OF_TENSORS = 1e-3
"""Measurements of single tensors with four."""


def family_with_everything(folder: Path) -> FamilyFiles:
    """Floats of every shape, an integer, a frozen tensor, a tie, a running statistic."""
    family = write_family(folder / "plain", {**SHAPES, "frozen": (9,), "bn.running_mean": (6,)})
    base = load_state(family.base)
    states = {task: load_state(path) for task, path in family.tasks.items()}
    for state in (base, *states.values()):
        state["tied.weight"] = state["embed.weight"].clone()
        state["steps"] = torch.tensor([1, 2, 3])
    for state in states.values():
        state["frozen"] = base["frozen"]
    return write_states(folder / "family", base, states)


def diagnostics_of(artifact: Artifact) -> dict[str, Any]:
    return artifact.diagnostics()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[FamilyFiles, Artifact]:
    folder = tmp_path_factory.mktemp("everything")
    family = family_with_everything(folder)
    parameters = {"profile": "hybrid", "weighting": "cluster", "cluster_k": 2}
    return family, pack(family, folder / "artifact", **parameters)


def test_every_field_of_the_original_diagnostics_is_there(everything):
    document = diagnostics_of(everything[1])
    assert set(document) >= TOP | {"cluster_assignments"}
    assert set(document["config"]) == CONFIG
    assert set(document["summary"]) >= SUMMARY
    for name, facts in document["per_parameter"].items():
        if name == "tied.weight":
            assert facts == {
                "param_name": name,
                "original_shape": list(SHAPES["embed.weight"]),
                "alias_of": "embed.weight",
            }
            continue
        assert set(facts) >= PARAMETER, name
        assert facts["param_name"] == name
        assert set(facts["basis"]) >= {"k", "D", "N", "energy_retained"}
        assert set(facts["compression_ratios"]) == set(TASKS)
        assert set(facts["reconstruction_errors"]) == set(TASKS)
        assert all(set(errors) >= ERRORS for errors in facts["reconstruction_errors"].values())


def test_parameter_facts_repeat_each_other_consistently(everything):
    family, artifact = everything
    document = diagnostics_of(artifact)
    shapes = {name: list(tensor.shape) for name, tensor in load_state(family.base).items()}
    assert set(document["per_parameter"]) == set(shapes) - {"steps"}  # integers have no delta
    for name, facts in document["per_parameter"].items():
        assert facts["original_shape"] == shapes[name]
        if "alias_of" in facts:
            continue
        assert facts["masked_size"] + facts["unmasked_size"] == math.prod(shapes[name])
        assert facts["k"] == facts["basis"]["k"]
        assert facts["energy_retained"] == facts["basis"]["energy_retained"]
        assert 0 <= facts["energy_retained"] <= 1
        assert facts["basis"]["N"] == len(TASKS)
        errors = [e["relative_error"] for e in facts["reconstruction_errors"].values()]
        assert facts["mean_relative_error"] == pytest.approx(statistics.fmean(errors))
        assert facts["std_relative_error"] == pytest.approx(statistics.pstdev(errors), abs=1e-9)
        assert (facts["min_relative_error"], facts["max_relative_error"]) == (
            min(errors),
            max(errors),
        )


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("basis", ["left", "right", "tasks"])
def test_rank_and_energy_are_those_of_the_singular_values(tmp_path, basis, center):
    """Of the stack (less its mean, when centred) unfolded along the side that is the basis."""
    family = write_family(tmp_path, tasks=TASKS, seed=27)
    artifact = pack(family, tmp_path / "a", basis=basis, center=center, energy_threshold=0.7)
    per_parameter = diagnostics_of(artifact)["per_parameter"]
    for name in ("block.weight", "conv.weight", "embed.weight"):
        stack = family.deltas(name).flatten(2)
        stack = stack - stack.mean(0) if center else stack
        unfolded = {
            "left": torch.cat(list(stack), dim=1),
            "right": torch.cat(list(stack), dim=0),
            "tasks": stack.flatten(1),
        }
        energies = torch.linalg.svdvals(unfolded[basis]).square()
        shares = energies.cumsum(0) / energies.sum()
        rank = int((shares < 0.7).sum()) + 1
        facts = per_parameter[name]
        assert facts["k"] == rank
        assert facts["energy_retained"] == pytest.approx(float(shares[rank - 1]), rel=OF_TENSORS)
        known = energies > 1e-9 * energies[0]
        assert facts["basis"]["directions"] == int(known.sum())  # no null direction is stored


def test_the_summary_summarises_the_parameters(everything):
    document = diagnostics_of(everything[1])
    stored = [f for f in document["per_parameter"].values() if "alias_of" not in f]
    summary = document["summary"]
    assert summary["num_parameters"] == len(stored)
    assert summary["average_rank"] == pytest.approx(statistics.fmean(f["k"] for f in stored))
    assert summary["std_rank"] == pytest.approx(statistics.pstdev(f["k"] for f in stored))
    for key, of in (
        ("average_energy_retained", "energy_retained"),
        ("average_reconstruction_error", "mean_relative_error"),
    ):
        assert summary[key] == pytest.approx(
            statistics.fmean(f[of] for f in stored), rel=OF_TENSORS
        )
    ratios = [r for f in stored for r in f["compression_ratios"].values() if r is not None]
    assert summary["average_compression_ratio"] == pytest.approx(statistics.fmean(ratios))


def test_a_frozen_tensor_has_no_error_no_rank_and_no_bytes(everything):
    facts = diagnostics_of(everything[1])["per_parameter"]["frozen"]
    assert (facts["k"], facts["bytes"]) == (0, {})
    for errors in facts["reconstruction_errors"].values():
        assert errors["relative_error"] == 0
        assert errors["original_norm"] == errors["reconstructed_norm"] == 0


def test_weights_and_clusters_are_those_of_the_artifact(everything):
    _, artifact = everything
    document = diagnostics_of(artifact)
    assert document["task_weights"] == artifact.merges["merged"]
    clusters = json.loads((artifact.path / "clusters.json").read_text())
    assert document["cluster_assignments"] == clusters
    assert json.loads((artifact.path / "weights.json").read_text()) == document["task_weights"]


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["left", "right", "tasks", "auto"])
@pytest.mark.parametrize("parameters", [{}, {"low_bits": 1, "rtvq_stages": 1, "keep_low": False}])
def test_recorded_errors_are_those_measured_on_reloaded_weights(tmp_path, basis, parameters):
    """A reloaded float32 weight carries the rounding of the weight itself, the record does not."""
    family = write_family(tmp_path, tasks=TASKS, seed=21, scale=0.5)
    artifact = pack(family, tmp_path / "artifact", basis=basis, **parameters)
    document, base = diagnostics_of(artifact), load_state(family.base)
    squares = dict.fromkeys(TASKS, (0.0, 0.0))
    for position, task in enumerate(TASKS):
        rebuilt = weights_of(artifact, family, task=task)
        for name in SHAPES:
            recorded = document["per_parameter"][name]["reconstruction_errors"][task]
            delta = family.deltas(name)[position]
            got = rebuilt[name].double() - base[name].double()
            rounding = 2.0**-24 * float((base[name].abs() + got.abs()).norm())
            error = float((got - delta).norm())
            assert recorded["absolute_error"] == pytest.approx(error, abs=rounding, rel=OF_TENSORS)
            norm = float(delta.norm())
            assert recorded["original_norm"] == pytest.approx(norm, rel=OF_TENSORS)
            assert recorded["relative_error"] == pytest.approx(
                error / norm, abs=rounding / norm, rel=OF_TENSORS
            )
            largest = float((got - delta).abs().max())
            most = pytest.approx(largest, abs=rounding, rel=OF_TENSORS)
            assert recorded["max_absolute_error"] == most
            before = squares[task]
            squares[task] = (before[0] + error**2, before[1] + norm**2)
    for task, (error, norm) in squares.items():
        whole = document["tasks"][task]["relative_error"]
        assert whole == pytest.approx(math.sqrt(error / norm), rel=1e-3, abs=1e-7)
    family_error = math.sqrt(
        sum(error for error, _ in squares.values()) / sum(norm for _, norm in squares.values())
    )
    assert document["summary"]["relative_error"] == pytest.approx(family_error, rel=1e-3, abs=1e-7)


def test_shrink_and_noise_split_the_error_into_lost_and_added(tmp_path):
    family = write_family(tmp_path, tasks=TASKS, seed=22)
    artifact = pack(family, tmp_path / "a", energy_threshold=0.5, keep_low=False)
    for facts in diagnostics_of(artifact)["per_parameter"].values():
        for errors in facts["reconstruction_errors"].values():
            whole = math.hypot(errors["shrink"], errors["noise"])
            assert errors["relative_error"] == pytest.approx(whole, rel=1e-5, abs=1e-7)


def test_under_a_mask_errors_count_what_is_stored_and_again_what_is_not(tmp_path):
    family = write_family(tmp_path / "family", tasks=TASKS, seed=23)
    mask = {name: torch.arange(math.prod(s)).reshape(s) % 3 == 0 for name, s in SHAPES.items()}
    (tmp_path / "masks").mkdir()
    for task in TASKS:
        save_file(mask, tmp_path / "masks" / f"{task}_mask.safetensors")
    masks = tmp_path / "masks"
    artifact = pack(family, tmp_path / "artifact", mask_dir=masks, profile="hybrid")
    per_parameter = diagnostics_of(artifact)["per_parameter"]
    for name, selected in mask.items():
        facts = per_parameter[name]
        if int(selected.sum()) < 10:  # min_mask_size: kept whole
            assert facts["unmasked_size"] == 0
            continue
        assert facts["masked_size"] == facts["basis"]["D"] == int(selected.sum())
        assert facts["unmasked_size"] == int((~selected).sum())
        for position, task in enumerate(TASKS):
            delta = family.deltas(name)[position]
            assert facts["reconstruction_errors"][task]["relative_error"] < 5e-3
            outside = float(delta[~selected].norm() / delta.norm())
            whole = facts["relative_error_with_unstored"][task]
            assert whole == pytest.approx(outside, rel=1e-3)


def test_a_task_that_left_the_tensor_alone_has_no_relative_error_but_an_absolute_one(tmp_path):
    """0 against something rebuilt has no ratio: null, not infinity, which JSON cannot say."""
    family = write_family(tmp_path / "plain", {"w": (6, 6)}, TASKS, seed=24)
    base = load_state(family.base)
    states = {task: load_state(path) for task, path in family.tasks.items()} | {"bee": base}
    family = write_states(tmp_path / "family", base, states)
    artifact = pack(family, tmp_path / "artifact", low_bits=1, rtvq_stages=1)
    facts = diagnostics_of(artifact)["per_parameter"]["w"]
    errors = facts["reconstruction_errors"]["bee"]
    assert errors["original_norm"] == 0
    assert errors["absolute_error"] > 0
    assert errors["relative_error"] is None
    assert facts["mean_relative_error"] is not None


def test_without_measuring_there_are_no_errors_and_the_same_shards(tmp_path):
    family = write_family(tmp_path, tasks=TASKS, seed=25)
    measured = pack(family, tmp_path / "measured")
    quick = pack(family, tmp_path / "quick", eval_reconstruction=False)
    document = diagnostics_of(quick)
    assert document["summary"]["relative_error"] is None
    assert not any("reconstruction_errors" in f for f in document["per_parameter"].values())
    for shard in measured.path.rglob("*.safetensors"):
        twin = quick.path / shard.relative_to(measured.path)
        assert twin.read_bytes() == shard.read_bytes()


# --- bytes ---------------------------------------------------------------------------------------


def directory_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 3, 11])
def test_the_byte_breakdown_sums_to_the_size_of_the_directory(tmp_path, seed, count):
    """The document states its own size, so it is tried at several lengths."""
    tasks = [f"task-{number}" for number in range(count)]
    shapes = {f"layer.{number}.weight": (4, 3 + seed) for number in range(1 + seed)}
    family = write_family(tmp_path / "family", shapes, tasks, seed=seed)
    artifact = pack(family, tmp_path / "artifact")
    sizes = diagnostics_of(artifact)["bytes"]
    on_disk = directory_bytes(artifact.path)
    assert sum(sizes["breakdown"].values()) == sizes["bytes_artifact"] == on_disk
    for key, size in sizes["breakdown"].items():
        path = artifact.path / key
        assert size == (path.stat().st_size if path.is_file() else directory_bytes(path))


def test_ratios_follow_from_bytes_alone(everything):
    family, artifact = everything
    sizes = diagnostics_of(artifact)["bytes"]
    base = load_state(family.base)
    numbers = sum(tensor.numel() for tensor in base.values())
    base_file = family.base.stat().st_size
    replaced = sum(path.stat().st_size for path in family.tasks.values())
    assert sizes["parameters"] == numbers
    assert sizes["tasks"] == len(TASKS)
    assert sizes["bytes_base"] == base_file
    assert sizes["bytes_replaced"] == replaced
    total = sizes["bytes_artifact"]
    for key, want in {
        "ratio_src": replaced / total,
        "ratio_fp32": 4 * numbers * len(TASKS) / total,
        "ratio_fp16": 2 * numbers * len(TASKS) / total,
        "ratio_total": (base_file + replaced) / (base_file + total),
        "bpp_all": 8 * total / (numbers * len(TASKS)),
    }.items():
        assert sizes[key] == pytest.approx(want, rel=SIGNIFICANT), key


def test_compression_ratios_count_every_stored_byte_of_a_tensor(everything):
    family, artifact = everything
    base = load_state(family.base)
    for name, facts in diagnostics_of(artifact)["per_parameter"].items():
        if facts.get("bytes"):
            deltas = base[name].numel() * base[name].element_size() * len(TASKS)
            want = deltas / sum(facts["bytes"].values())
            assert facts["compression_ratios"]["ant"] == pytest.approx(want, rel=SIGNIFICANT)


def test_the_result_of_compress_says_what_the_document_says(tmp_path):
    from svd_hybrid import compress

    family = write_family(tmp_path, tasks=TASKS, seed=26)
    result = compress(family.base, family.tasks, tmp_path / "artifact", profile="hybrid")
    artifact = Artifact.open(tmp_path / "artifact")
    document = diagnostics_of(artifact)
    assert result.bytes["breakdown"] == document["bytes"]["breakdown"]
    assert result.bytes["bytes_artifact"] == directory_bytes(tmp_path / "artifact")
    assert result.relative_error == pytest.approx(document["summary"]["relative_error"], rel=1e-6)
    assert dict(result.weights) == document["task_weights"]
    rebuilt = dict(artifact.iter_tensors(task="ant"))
    assert relative_error(rebuilt["block.weight"], family.deltas("block.weight")[0]) < 5e-3


# --- the table -----------------------------------------------------------------------------------


def test_the_table_gives_back_what_was_measured(tmp_path, monkeypatch):
    """All kinds of facts at once: a mask with its noise, an alias, a merge, a task left alone."""
    measured = {}
    whole = Diagnostics.table

    def table(self, tensors):
        measured.update(self.per_parameter)
        return whole(self, tensors)

    monkeypatch.setattr(Diagnostics, "table", table)
    family = family_with_everything(tmp_path)
    states = {task: load_state(path) for task, path in family.tasks.items()}
    states["bee"] = load_state(family.base)
    family = write_states(tmp_path / "bee", states["bee"], states)
    mask = {name: torch.arange(math.prod(s)).reshape(s) % 3 == 0 for name, s in SHAPES.items()}
    (tmp_path / "masks").mkdir()
    for task in TASKS:
        save_file(mask, tmp_path / "masks" / f"{task}_mask.safetensors")
    for name, parameters in {
        "inside and outside": {"mask_dir": tmp_path / "masks", "include_noise": True},
        "inside": {"mask_dir": tmp_path / "masks", "low_bits": 1},
        "merge": {"method": "ties", "store_tasks": "on"},
        "a merge alone": {"method": "iso-c", "profile": "fast"},
        "tasks of a merge": {"method": "emr"},
    }.items():
        measured.clear()
        artifact = pack(family, tmp_path / name, **parameters)
        plain = json.loads((artifact.path / "diagnostics.json").read_text())
        assert "per_parameter" not in plain
        document = artifact.diagnostics()
        assert list(document["per_parameter"]) == sorted(measured)
        assert_close(document["per_parameter"], measured)
        del document["per_parameter"]
        assert document == plain


def assert_close(got: Any, want: Any) -> None:
    """The same document up to the digits of a table; a ratio of rounding errors has fewer."""
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert_close(got[key], value)
    elif isinstance(want, float):
        assert got == pytest.approx(want, rel=OF_TENSORS, abs=2e-4)
    else:
        assert got == want


def test_documents_are_a_small_part_of_a_small_artifact(tmp_path):
    shapes = {f"layer.{n}.{kind}": s for n in range(25) for kind, s in LAYER.items()}
    tasks = [f"task-{number}" for number in range(7)]
    family = write_family(tmp_path / "family", shapes, tasks)
    artifact = pack(family, tmp_path / "artifact", profile="compeft", kept_share=0.029)
    sizes = artifact.diagnostics()["bytes"]
    assert sizes["bpp_all"] < 0.26
    documents = sum(sizes["breakdown"].get(name, 0) for name in layout.DOCUMENTS)
    assert documents < 0.03 * sizes["bytes_artifact"]
    assert sizes["breakdown"]["README.md"] < 1500


LAYER = {"a.weight": (96, 192), "b.weight": (192, 160), "a.bias": (192,), "norm.weight": (96,)}
"""A hundred tensors, 1.2 million parameters."""


def test_a_table_of_another_artifact_is_refused(tmp_path):
    family = write_family(tmp_path, tasks=TASKS, seed=28)
    one = pack(family, tmp_path / "one")
    few = write_family(tmp_path / "few", {"w": (3, 3)}, TASKS)
    other = pack(few, tmp_path / "other")
    name = layout.DIAGNOSTICS_TENSORS
    (other.path / name).write_bytes((one.path / name).read_bytes())
    with pytest.raises(ArtifactError, match="table fits no such artifact"):
        other.diagnostics()
    (other.path / name).write_bytes(b"no frame")
    with pytest.raises(ArtifactError, match="compressed data"):
        other.diagnostics()
