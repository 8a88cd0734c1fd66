"""`svdh convert`: artifacts in the original layout become ours, or are refused with one list."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svd_hybrid.artifact.verify import verify
from svd_hybrid.cli.app import main as svdh
from svd_hybrid.reload.model import Artifact
from tests.entrypoints.conftest import ROOT, Run
from tests.entrypoints.legacy_layout import Legacy, basis_record, meant, original_region, quantise

GOLDEN = Path(os.environ.get("SVDH_GOLDEN", ROOT.parent / "shared" / "golden"))
TASKS = ["cars", "dtd", "svhn"]
WEIGHTS = {"cars": 0.5, "dtd": 0.25, "svhn": 0.25}
SHAPES = {"block/proj.weight": (9, 4), "block.ln.weight": (7,), "logit_scale": (), "frozen": (3, 4)}
CONFIG = {
    "tasks": TASKS,
    "checkpoint_dir": "/somewhere/else",
    "svd_energy_threshold": 0.95,
    "svd_max_rank": 64,
    "svd_center": True,
    "svd_fp16": True,
    "svd_low_bits": 4,
    "svd_rtvq_stages": 2,
    "svd_mask_strategy": "union",
    "svd_include_noise": False,
    "svd_noise_shrink": 0.5,
    "svd_weighting": "uniform",
    "svd_store_artifacts": True,
    "svd_randomized_svd_threshold": 1500000,
    "device": "cpu",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(5)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    path = tmp_path / "base.safetensors"
    save_file(tensors | {"steps": torch.tensor([3])}, path)
    return path


def original(*, center: bool = True, project_raw: bool = False) -> Legacy:
    """Three tensors of the base as the original program stored them; `frozen` has no files."""
    generator = torch.Generator().manual_seed(6)
    bases, coefficients = {}, {}
    for name in ("block/proj.weight", "block.ln.weight", "logit_scale"):
        count = int(np.prod(SHAPES[name]))
        deltas = 0.01 * torch.randn((3, count), generator=generator) + 0.02
        basis, records = original_region(deltas, 1, center=center, project_raw=project_raw)
        bases[name] = {"masked": basis}
        coefficients[name] = {
            t: {"masked": r, "unmasked": None} for t, r in zip(TASKS, records, strict=True)
        }
    config = CONFIG | {"svd_center": center}
    return Legacy(bases, coefficients, config, dict(WEIGHTS))


def convert(legacy: Legacy, base: Path, *more: str) -> int:
    folder = base.parent / "legacy"
    if not folder.exists():
        legacy.write(folder)
    paths = ["--legacy-dir", str(folder), "--base-model-path", str(base)]
    return svdh(["convert", *paths, "--artifact-dir", str(base.parent / "new"), "-q", *more])


def problems(capsys: pytest.CaptureFixture[str]) -> str:
    seen = capsys.readouterr().err
    assert seen.count("error: ") == 1
    assert "Traceback" not in seen
    return seen


def check_numbers(legacy: Legacy, artifact: Path, region: str = "masked") -> None:
    """The merge and every task are what the legacy records stand for, to float32."""
    opened = Artifact.open(artifact)
    selections: list[tuple[dict[str, Any], list[float]]] = [({}, list(WEIGHTS.values()))]
    for index, task in enumerate(TASKS):
        selections.append(({"task": task}, [float(i == index) for i in range(len(TASKS))]))
    for selection, weights in selections:
        got = dict(opened.iter_tensors(**selection))
        for name, bases in legacy.bases.items():
            records = [legacy.coefficients[name][task][region] for task in TASKS]
            want = meant(bases["masked"], records, weights)
            np.testing.assert_allclose(
                got[name].reshape(-1).double(), want, rtol=2e-7, atol=1e-7 * float(want.abs().max())
            )


def test_converted_numbers_are_the_stored_ones(base: Path, capsys: pytest.CaptureFixture[str]):
    legacy = original()
    assert convert(legacy, base) == 0
    seen = capsys.readouterr()
    assert seen.out == f"{base.parent / 'new'}\n"
    assert "the base given is the artifact's from now on" in seen.err
    assert "unchanged from the base: 'frozen'" in seen.err
    artifact = base.parent / "new"
    assert not verify(artifact, base).problems
    check_numbers(legacy, artifact)
    merged = dict(Artifact.open(artifact).iter_tensors(base))
    before = load_file(base)
    assert torch.equal(merged["frozen"], before["frozen"])
    assert torch.equal(merged["steps"], before["steps"])
    assert Artifact.open(artifact).merges["merged"] == WEIGHTS


def test_bases_and_high_coefficients_keep_their_bits(base: Path):
    legacy = original()
    assert convert(legacy, base) == 0
    config = json.loads((base.parent / "new" / "config.json").read_text())
    assert config.items() >= {"basis": "tasks", "energy_threshold": 0.95, "max_rank": 64}.items()
    from svd_hybrid.artifact.reader import ArtifactReader

    reader = ArtifactReader.open(base.parent / "new")
    records = {record.name: record for record in reader.manifest.tensors}
    for name, bases in legacy.bases.items():
        parts = reader.parts(records[name])
        assert torch.equal(parts.decode("basis_high", None).T, bases["masked"]["U_high"].float())
        assert torch.equal(parts.decode("mean", None), bases["masked"]["mean"])
        for index, task in enumerate(TASKS):
            stored = legacy.coefficients[name][task]["masked"]["c_high_fp16"].float()
            assert torch.equal(parts.decode("coeff_high", index)[:, 0], stored)


def test_uncentred_artifacts_have_no_mean(base: Path):
    legacy = original(center=False)
    assert convert(legacy, base) == 0
    check_numbers(legacy, base.parent / "new")


def test_other_folder_names_and_documents(base: Path, capsys: pytest.CaptureFixture[str]):
    legacy = original()
    legacy.folders = ("bases", "compressed")
    legacy.config = None
    legacy.weights = None
    legacy.diagnostics = {
        "task_weights": WEIGHTS,
        "cluster_assignments": {"cars": 4, "dtd": 2, "svhn": 2},
        "per_parameter": {"logit_scale": {"original_shape": [], "k": float("nan")}},
    }
    assert convert(legacy, base) == 0
    seen = capsys.readouterr().err
    assert "config.json was missing" in seen
    assert "merge uses those it wrote down" in seen
    check_numbers(legacy, base.parent / "new")
    clusters = json.loads((base.parent / "new" / "clusters.json").read_text())
    assert clusters == {"cars": 0, "dtd": 1, "svhn": 1}


def test_command_line_and_reload(run: Run, base: Path):
    legacy = original().write(base.parent / "old")
    done = run(
        *("-m", "svd_hybrid", "convert", "--legacy-dir", legacy, "--base-model-path", base),
        *("--artifact-dir", base.parent / "new", "--json"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["weights"] == WEIGHTS
    assert document["relative_error"] is None
    paths = ["--artifact-dir", str(base.parent / "new"), "--base-model-path", str(base)]
    assert svdh(["inspect", *paths[:2]]) == 0
    assert svdh(["reload", *paths, "--task", "dtd", "--output-path", str(base.parent / "d")]) == 0


def masked(legacy: Legacy, *, noise: bool = False) -> dict[str, Tensor]:
    """Make `block/proj.weight` a masked tensor; returns its masks by task."""
    generator = torch.Generator().manual_seed(8)
    shape = SHAPES["block/proj.weight"]
    masks = {task: torch.rand(shape, generator=generator) < 0.4 for task in TASKS}
    union = torch.stack(list(masks.values())).any(0)
    deltas = 0.01 * torch.randn((3, *shape), generator=generator)
    basis, records = original_region(deltas[:, union], 2)
    legacy.bases["block/proj.weight"] = {"masked": basis}
    coefficients = {task: {"masked": r} for task, r in zip(TASKS, records, strict=True)}
    if noise:
        basis, records = original_region(deltas[:, ~union], 1)
        legacy.bases["block/proj.weight"]["noise"] = basis
        for task, record in zip(TASKS, records, strict=True):
            coefficients[task]["unmasked"] = record
    legacy.coefficients["block/proj.weight"] = coefficients
    return masks


def write_masks(folder: Path, masks: dict[str, Tensor], name: str) -> None:
    folder.mkdir()
    for task, mask in masks.items():
        torch.save({name: mask}, folder / f"{task}_mask.pt")


@pytest.mark.parametrize("noise", [False, True])
def test_masked_tensors_need_the_masks_and_then_convert(
    base: Path, noise: bool, capsys: pytest.CaptureFixture[str]
):
    legacy = original()
    masks = masked(legacy, noise=noise)
    name = "block/proj.weight"
    assert convert(legacy, base) == 4
    assert f"masks are needed (the original did not store them), from --mask-dir: '{name}'" in (
        problems(capsys)
    )
    write_masks(base.parent / "masks", masks, name)
    assert convert(legacy, base, "--mask-dir", str(base.parent / "masks")) == 0
    union = torch.stack(list(masks.values())).any(0)
    weights = list(WEIGHTS.values())
    records = legacy.coefficients[name]
    inside = meant(legacy.bases[name]["masked"], [records[t]["masked"] for t in TASKS], weights)
    got = dict(Artifact.open(base.parent / "new").iter_tensors())[name].double()
    torch.testing.assert_close(got[union], inside, rtol=1e-6, atol=1e-9)
    if noise:
        region = legacy.bases[name]["noise"]
        outside = meant(region, [records[t]["unmasked"] for t in TASKS], weights)
        torch.testing.assert_close(got[~union], 0.5 * outside, rtol=1e-6, atol=1e-9)
    else:
        assert not got[~union].any()


def test_other_masks_are_noticed(base: Path, capsys: pytest.CaptureFixture[str]):
    legacy = original()
    masks = masked(legacy)
    masks["cars"] = torch.ones_like(masks["cars"])
    write_masks(base.parent / "masks", masks, "block/proj.weight")
    assert convert(legacy, base, "--mask-dir", str(base.parent / "masks")) == 4
    assert "select another number of scalars" in problems(capsys)


def test_noise_without_its_factor(base: Path, capsys: pytest.CaptureFixture[str]):
    legacy = original()
    write_masks(base.parent / "masks", masked(legacy, noise=True), "block/proj.weight")
    assert legacy.config is not None
    del legacy.config["svd_noise_shrink"]
    assert convert(legacy, base, "--mask-dir", str(base.parent / "masks")) == 4
    assert "no svd_noise_shrink" in problems(capsys)


def test_constants_that_became_nan_come_back_when_their_norm_tells_them(
    base: Path, capsys: pytest.CaptureFixture[str]
):
    """One low coefficient, two with equal residuals, a frozen tensor: each has a range of zero."""
    legacy = original()
    generator = torch.Generator().manual_seed(9)
    deltas = 0.01 * torch.randn((3, 7), generator=generator)
    basis, records = original_region(deltas, 2, center=False, head=True)  # 3 directions, 1 low
    assert all(float(r["c_low_quant"]["payloads"][0]["scale"]) == float("inf") for r in records)
    legacy.bases["block.ln.weight"] = {"masked": basis}
    legacy.coefficients["block.ln.weight"] = {
        task: {"masked": record} for task, record in zip(TASKS, records, strict=True)
    }
    name, constant = "block/proj.weight", -3e-4
    equal = legacy.coefficients[name]["svhn"]["masked"]["c_low_quant"]["payloads"]
    equal[1] = equal[1] | {"scale": INF, "zero_point": INF, "residual_norm": 2**0.5 * -constant}
    low = legacy.bases[name]["masked"]["U_low"].double().sum(1) * constant
    frozen, nothing = original_region(torch.zeros((3, 12)), 1, head=True)
    legacy.bases["frozen"] = {"masked": frozen}
    legacy.coefficients["frozen"] = {
        task: {"masked": record} for task, record in zip(TASKS, nothing, strict=True)
    }
    assert legacy.config is not None
    del legacy.config["svd_center"]
    assert convert(legacy, base) == 0
    text = "came back from their norms: 'block.ln.weight', 'block/proj.weight', 'frozen'"
    assert text in capsys.readouterr().err
    for index, task in enumerate(TASKS):
        got = dict(Artifact.open(base.parent / "new").iter_tensors(task=task))
        torch.testing.assert_close(got["block.ln.weight"], deltas[index], rtol=2e-3, atol=2e-5)
        assert not got["frozen"].any()
    del equal[1]
    want = low + meant(
        legacy.bases[name]["masked"], [legacy.coefficients[name]["svhn"]["masked"]], [1.0]
    )
    torch.testing.assert_close(got[name].flatten().double(), want, rtol=1e-6, atol=1e-9)


def spoil_payload(**values: Any) -> Callable[[Legacy], None]:
    def change(legacy: Legacy) -> None:
        record = legacy.coefficients["block.ln.weight"]["dtd"]["masked"]
        record["c_low_quant"]["payloads"][0].update(values)

    return change


def spoil_basis(**values: Any) -> Callable[[Legacy], None]:
    return lambda legacy: legacy.bases["block.ln.weight"]["masked"].update(values)


def without(*path: str) -> Callable[[Legacy], None]:
    def change(legacy: Legacy) -> None:
        record: Any = getattr(legacy, path[0])
        for key in path[1:-1]:
            record = record[key]
        del record[path[-1]]

    return change


def setting(**values: Any) -> Callable[[Legacy], None]:
    def change(legacy: Legacy) -> None:
        for key, value in values.items():
            setattr(legacy, key, value)

    return change


INF, NAN = torch.tensor(float("inf")), torch.tensor(float("nan"))
BASIS = ("bases", "block.ln.weight", "masked")
COEFFICIENT = ("coefficients", "block.ln.weight", "dtd")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (spoil_payload(scale=INF, zero_point=NAN), "low coefficients are NaN"),
        (spoil_payload(scale=NAN, zero_point=NAN), "low coefficients are NaN"),
        (spoil_payload(scale=torch.tensor(0.0)), "NaN or infinite"),
        (spoil_payload(zero_point=torch.tensor(0.5)), "early quantiser"),
        (spoil_payload(quantized=torch.zeros(9, dtype=torch.uint8)), "not as the original wrote"),
        (spoil_payload(scale="large"), "not as the original wrote"),
        (spoil_basis(U_high=torch.full((7, 1), float("nan"))), "NaN or infinite"),
        (spoil_basis(U_high=torch.zeros((7, 2))), "not as the original wrote"),
        (spoil_basis(U_low=torch.zeros((6, 2))), "not as the original wrote"),
        (spoil_basis(mean=torch.zeros(6)), "not as the original wrote"),
        (spoil_basis(mean=None), "the mean is missing"),
        (without(*BASIS, "mean"), "the mean is missing"),
        (without(*BASIS, "U_low"), "U_low is missing"),
        (without(*BASIS), "basis of a region is missing"),
        (without(*COEFFICIENT), "coefficients of some tasks are missing"),
        (without(*COEFFICIENT, "masked"), "coefficients of some tasks are missing"),
        (without(*COEFFICIENT, "masked", "c_high_fp16"), "not as the original wrote"),
        (without(*COEFFICIENT, "masked", "c_low_quant"), "not as the original wrote"),
        (without("bases", "block.ln.weight"), "basis or coefficients are missing"),
    ],
)
def test_problems_of_one_tensor_name_it(
    base: Path, change: Callable[[Legacy], None], text: str, capsys: pytest.CaptureFixture[str]
):
    legacy = original()
    change(legacy)
    assert convert(legacy, base) == 4
    line = next(line for line in problems(capsys).splitlines() if text in line)
    assert line.endswith(": 'block.ln.weight'")
    assert sorted(path.name for path in base.parent.iterdir()) == ["base.safetensors", "legacy"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without("weights", "cars"), "weights.json does not have one finite number per task"),
        (setting(weights={"cars": 1, "dtd": 0, "svhn": "x"}), "one finite number per task"),
        (
            setting(weights=None, config=CONFIG | {"svd_weighting": "cluster"}),
            "weights.json is missing",
        ),
        (setting(config=CONFIG | {"tasks": []}, coefficients={}), "no file tells the tasks"),
    ],
)
def test_problems_of_the_whole_artifact(
    base: Path, change: Callable[[Legacy], None], text: str, capsys: pytest.CaptureFixture[str]
):
    legacy = original()
    change(legacy)
    assert convert(legacy, base) == 4
    assert text in problems(capsys)


def test_uniform_weights_need_no_file(base: Path):
    legacy = original()
    legacy.weights = None
    assert convert(legacy, base) == 0
    thirds = Artifact.open(base.parent / "new").merges["merged"]
    assert thirds == {task: pytest.approx(1 / 3) for task in TASKS}


def test_the_revision_that_lost_the_mean_is_refused(base: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(original(project_raw=True), base) == 4
    seen = problems(capsys)
    assert "(a revision that lost the mean)" in seen
    assert "'block/proj.weight'" in seen


def test_everything_missing_is_in_one_list(base: Path, capsys: pytest.CaptureFixture[str]):
    legacy = original()
    masked(legacy)
    spoil_payload(scale=INF, zero_point=NAN)(legacy)
    del legacy.bases["logit_scale"]["masked"]["mean"]
    legacy.weights = {}
    legacy.config = {"tasks": TASKS}
    legacy.bases["other.tensor"] = {}
    assert convert(legacy, base) == 4
    seen = problems(capsys)
    for text in ("masks are needed", "NaN", "mean is missing", "weights", "'other.tensor.pt'"):
        assert text in seen
    assert seen.count("note: ") == 5
    assert "for 5 reasons" in seen


def test_another_base_is_noticed(base: Path, capsys: pytest.CaptureFixture[str]):
    legacy = original()
    legacy.diagnostics = {"per_parameter": {"block/proj.weight": {"original_shape": [4, 9]}}}
    assert convert(legacy, base) == 4
    assert "another shape than the artifact's" in problems(capsys)
    other = base.parent / "other.safetensors"
    save_file({"block/proj.weight": torch.zeros(2, 2)}, other)
    (base.parent / "legacy" / "diagnostics.json").unlink()
    paths = ["--legacy-dir", str(base.parent / "legacy"), "--base-model-path", str(other)]
    assert svdh(["convert", *paths, "--artifact-dir", str(base.parent / "new")]) == 4
    seen = problems(capsys)
    assert "belong to no tensor of the base: 'block.ln.weight.pt', 'logit_scale.pt'" in seen
    assert "another shape" in seen


def test_names_that_collide_are_refused(base: Path, capsys: pytest.CaptureFixture[str]):
    save_file(load_file(base) | {"block_proj.weight": torch.zeros(9, 4)}, base)
    assert convert(original(), base) == 4
    text = "may belong to 'block/proj.weight' and 'block_proj.weight': their names collide"
    assert text in problems(capsys)


def test_a_parameter_of_the_diagnostics_without_files(
    base: Path, capsys: pytest.CaptureFixture[str]
):
    legacy = original()
    legacy.diagnostics = {"per_parameter": {"frozen": {"original_shape": [3, 4]}}}
    assert convert(legacy, base) == 4
    assert "basis and coefficients are missing: 'frozen'" in problems(capsys)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("folder", ["basis", "coeffs"])
def test_code_in_a_file_never_runs(here: Path, base: Path, folder: str, capsys: Any):
    legacy = original()
    legacy.write(base.parent / "legacy")
    bomb = base.parent / "legacy" / folder / "block.ln.weight.pt"
    torch.save({"masked": Bomb()}, bomb)
    assert convert(legacy, base) == 9
    assert "needs code to load" in problems(capsys)
    bomb.write_bytes(pickle.dumps(Bomb()))
    assert convert(legacy, base) == 9
    assert not (here / "exploded").exists()
    assert not (base.parent / "new").exists()


def test_damaged_files(base: Path, capsys: pytest.CaptureFixture[str]):
    legacy = original()
    folder = legacy.write(base.parent / "legacy")
    (folder / "basis" / "logit_scale.pt").write_bytes(b"PK\x03\x04 nothing")
    assert convert(legacy, base) == 4
    assert "logit_scale.pt" in problems(capsys)
    (folder / "config.json").write_text("{")
    assert convert(legacy, base) == 4
    assert "not valid JSON" in problems(capsys)


def test_wrong_directories(base: Path, capsys: pytest.CaptureFixture[str]):
    legacy = original()
    assert convert(legacy, base) == 0
    assert convert(legacy, base) == 8
    assert convert(legacy, base, "--overwrite") == 0
    new = str(base.parent / "new")
    capsys.readouterr()
    for folder, code, text in (
        (new, 4, "this is an svdh artifact already"),
        (str(base.parent), 4, "it has no basis or bases/"),
        ("nowhere", 8, "does not exist"),
    ):
        paths = ["--legacy-dir", folder, "--base-model-path", str(base), "--artifact-dir", "x"]
        assert svdh(["convert", *paths]) == code
        assert text in problems(capsys)
    assert svdh(["convert", "--legacy-dir", "a", "--artifact-dir", "b"]) == 2
    old = str(base.parent / "legacy")
    paths = ["--legacy-dir", old, "--base-model-path", str(base), "--artifact-dir", old]
    assert svdh(["convert", *paths, "--overwrite"]) == 2
    assert (base.parent / "legacy" / "basis").is_dir()


# The golden cases hold what the original program really stored.


def golden(case: str, bases: str | None = None) -> tuple[Legacy, dict[str, Any], Path]:
    """A legacy artifact of a golden case, the case's facts, and its base."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden vectors at {GOLDEN} (SVDH_GOLDEN)")
    folder = GOLDEN / "cases" / case
    facts = json.loads((folder / "case.json").read_text())
    stored = GOLDEN / "cases" / (bases or case)
    basis_files = load_file(stored / "bases.safetensors")
    coefficients = load_file(
        (folder if (folder / "coefficients.safetensors").is_file() else stored)
        / "coefficients.safetensors"
    )
    tasks = list(facts["weights"])
    legacy = Legacy({}, {}, facts["params"] | {"tasks": tasks}, facts["weights"])
    for key in basis_files:
        name, region, part = key.rsplit("/", 2)
        if part != "U_high":
            continue
        u_low = basis_files.get(f"{name}/{region}/U_low", basis_files[key][:, :0])
        values = basis_files[f"{name}/{region}/singular_values"]
        mean = basis_files.get(f"{name}/{region}/mean")
        record = basis_record(basis_files[key], u_low, mean, values, len(tasks))
        legacy.bases.setdefault(name, {})[region] = record
        spelling = {"masked": "masked", "noise": "unmasked"}[region]
        for index, task in enumerate(tasks):
            where = f"{name}/{spelling}"
            entry = {
                "c_high_fp16": coefficients[f"{where}/c_high"][index],
                "c_low_quant": {
                    "payloads": golden_payloads(coefficients, where, index, values),
                    "num_bits": facts["params"]["svd_low_bits"],
                    "num_stages": facts["params"]["svd_rtvq_stages"],
                    "original_shape": torch.Size([u_low.shape[1]]),
                    "original_dtype": "torch.float32",
                },
            }
            legacy.coefficients.setdefault(name, {}).setdefault(task, {})[spelling] = entry
    return legacy, facts, GOLDEN / "families" / facts["family"] / "base.safetensors"


def golden_payloads(
    coefficients: dict[str, Tensor], where: str, index: int, values: Tensor
) -> list[dict[str, Any]]:
    """The stages of one task; the norm, which these files leave out, is 0 for a frozen tensor."""
    norm = float(values.norm()) if bool(values.any()) else 0.0
    stages = sorted(
        {
            int(found[1])
            for key in coefficients
            if (found := re.match(rf"{re.escape(where)}/stage(\d+)/", key))
        }
    )
    return [
        {
            "stage": stage,
            "quantized": coefficients[f"{where}/stage{stage}/quantized"][index],
            "scale": coefficients[f"{where}/stage{stage}/scale"][index],
            "zero_point": coefficients[f"{where}/stage{stage}/zero_point"][index],
            "residual_norm": norm,
        }
        for stage in stages
    ]


def golden_masks(case: str, folder: Path) -> list[str]:
    """The case's task masks as the original's files; the arguments that name them."""
    path = GOLDEN / "cases" / case / "task_masks_packed.safetensors"
    if not path.is_file():
        return []
    family = json.loads((GOLDEN / "cases" / case / "case.json").read_text())["family"]
    base = load_file(GOLDEN / "families" / family / "base.safetensors")
    by_task: dict[str, dict[str, Tensor]] = {}
    for key, packed in load_file(path).items():
        task, name = key.split("/", 1)
        bits = np.unpackbits(packed.numpy())[: base[name].numel()].astype(bool)
        by_task.setdefault(task, {})[name] = torch.from_numpy(bits).reshape(base[name].shape)
    folder.mkdir()
    for task, masks in by_task.items():
        torch.save(masks, folder / f"{task}_mask.pt")
    return ["--mask-dir", str(folder)]


def convert_golden(legacy: Legacy, base: Path, tmp_path: Path, *more: str) -> int:
    legacy.write(tmp_path / "legacy")
    paths = ["--legacy-dir", str(tmp_path / "legacy"), "--base-model-path", str(base)]
    return svdh(["convert", *paths, "--artifact-dir", str(tmp_path / "new"), "-q", *more])


@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "bases"),
    [
        ("svdhybrid_meanfix_uniform__llama_t3", None),
        ("svdhybrid_head_uniform__vit_t8", None),
        ("svdhybrid_head_performance__vit_t8", "svdhybrid_head_uniform__vit_t8"),
        ("svdhybrid_head_nocenter__vit_t8", None),
        ("svdhybrid_head_mask_union__vit_t8", None),
        ("svdhybrid_head_noise_majority__vit_t8", None),
    ],
)
def test_golden_artifacts_merge_as_the_original_did(case: str, bases: str | None, tmp_path: Path):
    legacy, facts, base = golden(case, bases)
    masks = golden_masks(case, tmp_path / "masks")
    assert convert_golden(legacy, base, tmp_path, *masks) == 0
    assert not verify(tmp_path / "new", base).problems
    want = load_file(GOLDEN / "cases" / case / "merged_delta.safetensors")
    bound = facts["tolerance"]["merged_delta.safetensors"]["value"]
    skipped = facts.get("nonfinite_keys", {}).get("merged_delta.safetensors", [])
    got = dict(Artifact.open(tmp_path / "new").iter_tensors())
    for name, reference in want.items():
        if name in skipped:
            assert not got[name].any(), name  # the frozen tensor that the original made NaN
            continue
        size = float(reference.double().norm())
        error = float((got[name].double() - reference.double()).norm())
        assert error <= bound * (size if size > 1e-12 else 1.0), name
    for name in set(got) - set(want):
        assert not got[name].any(), name


@pytest.mark.golden
def test_golden_nan_payloads_without_norm_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    legacy, _, base = golden("svdhybrid_head_uniform__vit_t8")
    for record in legacy.coefficients["ln_final.bias"].values():
        for payload in record["masked"]["c_low_quant"]["payloads"]:
            payload["residual_norm"] = float("nan")
    assert convert_golden(legacy, base, tmp_path) == 4
    seen = problems(capsys)
    assert re.search(r"low coefficients are NaN .*: 'ln_final.bias'\n", seen)


@pytest.mark.golden
def test_golden_artifact_of_the_revision_without_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bases = "svdhybrid_meanfix_uniform__llama_t3"
    legacy, _, base = golden("svdhybrid_seed_uniform__llama_t3", bases)
    assert convert_golden(legacy, base, tmp_path) == 4
    assert "(a revision that lost the mean)" in problems(capsys)


def test_quantise_is_the_formula_of_the_original():
    record = quantise(torch.tensor([-0.55, -0.1, 0.0, 0.2, 0.45]), 2, 2)
    first, second = record["payloads"]
    assert first["quantized"].tolist() == [0, 2, 2, 3, 3]
    assert second["quantized"].tolist() == [3, 1, 2, 0, 3]
    assert float(second["scale"]) == pytest.approx(12)
