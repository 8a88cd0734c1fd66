"""Every golden case of a merge method, end to end: compress with our parameters, reload, compare.

The folder decides which cases there are; `elementwise_cases` and `spectral_cases` say what each
means in our parameters. Linear methods are stored with float32 factors here, so that what is
compared is the rule, not the default precision of the storage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svd_hybrid import Artifact, compress
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.compress.masks.build import tall_mask_bits
from tests.golden import elementwise_cases, spectral_cases
from tests.golden.compare import Case, golden_case, relative_error, unpack_mask
from tests.golden.conftest import GOLDEN

pytestmark = pytest.mark.golden

PRECISE = {"fp16": False, "energy_threshold": 1.0, "max_rank": 2**20, "eval_reconstruction": False}
NOT_METHODS = ("svd_hybrid", "rtvq", "tvq")
"""Cases of the storage; test_svd_hybrid and test_quantisers have them."""
INPUTS = ("keep_masks_packed", "layer_stats", "inputs")
INTENDED = ("_intended", "_own_stats")
"""Files with what the reference meant to compute, where what it computes is wrong."""
EXPECTED = {
    "tsvm_eigen": "the reference's float32 Gram loses half the digits; test_spectral_methods says "
    "by how much, and that ours agrees with the SVD route",
}
"""Cases of these methods must not come out as stored, and why."""


def family_cases() -> list[str]:
    """Names of the cases of a method on a family."""
    found = []
    for path in sorted((GOLDEN / "cases").glob("*/case.json")):
        facts = json.loads(path.read_text("utf-8"))
        if facts["family"] and facts["method"] not in NOT_METHODS:
            found.append(path.parent.name)
    return found


@dataclass(frozen=True)
class Setting:
    """A case in our parameters."""

    method: str
    params: Mapping[str, Any]
    weights: tuple[float, ...] = ()
    densities: tuple[float, ...] = ()
    tasks: tuple[str, ...] = ()
    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def setting_of(case: Case, file: str) -> Setting:
    """What gives a file of a case."""
    facts = case.facts
    tasks = tuple(f"task_{index}" for index in range(facts["n_tasks"]))
    if facts["method"] in elementwise_cases.KINDS:
        method, params, weights, densities = elementwise_cases.settings(facts)
        if method in ("tall-masks", "consensus"):
            params = params | {"lambdas": chosen_lambdas(case, tasks)}
        if facts["params"].get("task"):
            tasks, weights = (facts["params"]["task"],), (1.0,)
        return Setting(method, params, weights, densities, tasks=tasks)
    found = spectral_cases.settings(facts)
    if found is None:
        pytest.fail(f"nobody handles golden case {case.name} ({facts['method']})")
    method, params = found
    intended = file.endswith(INTENDED)
    if intended and facts["method"] == "iso_iasad":
        params = params | {"mode": "right"}
    return Setting(method, params, tasks=tasks, statistics=statistics_of(case, tasks, intended))


def statistics_of(
    case: Case, tasks: tuple[str, ...], intended: bool
) -> dict[str, dict[str, Tensor]]:
    """Task → matrix → second moments of its inputs; empty for cases without statistics."""
    found: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
    if not case.holds("layer_stats"):
        return {}
    stored = case.load("layer_stats")
    for name, tensor in case.base.items():
        if tensor.ndim == 2:
            moments = spectral_cases.statistics(
                case.facts, stored, name, tensor.shape[1], intended=intended
            )
            for task, moment in zip(tasks, moments, strict=True):
                found[task][name] = moment.clone()
    return found


def chosen_lambdas(case: Case, tasks: tuple[str, ...]) -> list[float]:
    """Per task, the one that validation chose; consensus names the case that says so."""
    facts = case.facts
    if "chosen_lambda" not in facts:
        named = re.search(r"case (\S+)", facts["params"]["masks"])
        assert named is not None
        facts = golden_case(case.root, named[1]).facts
    return [facts["chosen_lambda"][task] for task in tasks]


def run(case: Case, setting: Setting, folder: Path) -> Path:
    """Compress a case as its setting says; returns the artifact."""
    folder.mkdir(parents=True)
    more: dict[str, Any] = {}
    tasks = {task: case.family / f"{task}.safetensors" for task in setting.tasks}
    if setting.weights:
        more["weights"] = list(setting.weights)
    if setting.densities:
        more["overrides"] = [
            {"tensors": "*", "tasks": [task], "density": density}
            for task, density in zip(setting.tasks, setting.densities, strict=True)
        ]
    if case.holds("keep_masks_packed"):
        more["mask_dir"] = keep_masks(case, folder / "masks")
    if setting.statistics:
        more["statistics_dir"] = folder / "statistics"
        more["statistics_dir"].mkdir(parents=True)
        for task, tensors in setting.statistics.items():
            save_file(dict(tensors), more["statistics_dir"] / f"{task}.safetensors")
    base = case.family / "base.safetensors"
    params = PRECISE | {"method": setting.method} | dict(setting.params)
    return compress(base, tasks, folder / "artifact", **params, **more).artifact_dir


def keep_masks(case: Case, folder: Path) -> Path:
    folder.mkdir(parents=True)
    by_task: dict[str, dict[str, Tensor]] = {}
    for key, packed in case.load("keep_masks_packed").items():
        task, name = key.split("/", 1)
        by_task.setdefault(task, {})[name] = unpack_mask(packed, case.base[name].shape)
    for task, masks in by_task.items():
        save_file(masks, folder / f"{task}.safetensors")
    return folder


def scaling_of(artifact: Path) -> float:
    return next(iter(Artifact.open(artifact).scalings.values()))


def compare_tensors(case: Case, file: str, got: Mapping[str, Tensor]) -> None:
    skipped = set(case.nonfinite(file))
    arbitrary = arbitrary_scalars(case)
    for name, want in case.load(file).items():
        if name not in skipped:
            ours = got[name]
            if name in arbitrary:
                ours = torch.where(arbitrary[name], want.to(ours.dtype), ours)
            error = relative_error(ours, want)
            assert error <= case.tolerance(file), f"{file}: {name} is off by {error:.3g}"


def arbitrary_scalars(case: Case) -> Mapping[str, Tensor]:
    """Scalars on which an unstable sort of the reference decides, by tensor."""
    tasks = [f"task_{index}" for index in range(case.facts["n_tasks"])]
    states = [load_file(case.family / f"{task}.safetensors") for task in tasks]
    stacks = {
        name: torch.stack([state[name].float() - start.float() for state in states])
        for name, start in case.base.items()
        if start.is_floating_point()
    }
    return elementwise_cases.arbitrary(case.facts, stacks)


def stored_masks(artifact: Path, case: Case, task: int) -> dict[str, Tensor]:
    """One task's masks; none stored means that no delta is kept, so no bit is set."""
    reader = ArtifactReader.open(artifact)
    found = {}
    for record in reader.manifest.tensors:
        if not case.base[record.name].is_floating_point():
            continue
        owner = reader.owner(record)
        if "m0.mask" in owner.parts:
            mask = reader.parts(record).decode("m0.mask", task)
            found[record.name] = mask.reshape(record.shape)
        else:
            found[record.name] = torch.zeros(record.shape, dtype=torch.bool)
    return found


def compare_packed_masks(case: Case, setting: Setting) -> None:
    """TALL masks of every lambda, as `svdh masks build` packs them."""
    stored = case.load("masks_packed")
    lambdas = sorted({float(key.split("/")[0]) for key in stored})
    tasks = {task: case.family / f"{task}.safetensors" for task in setting.tasks}
    ours = tall_mask_bits(
        case.family / "base.safetensors", tasks, lambdas, setting.params.get("vector", "sum")
    )
    scalars = torch.Size(
        [sum(tensor.numel() for tensor in case.base.values() if tensor.is_floating_point())]
    )
    for key, packed in stored.items():
        factor, task = key.split("/")
        found, wanted = (unpack_mask(bits, scalars) for bits in (ours[factor][task], packed))
        assert float((found != wanted).double().mean()) <= case.tolerance("masks_packed"), key


def compare_masks(case: Case, setting: Setting, artifact: Path) -> None:
    differing = total = 0
    for key, want in case.load("masks").items():
        task, name = key.split("/", 1)
        ours = stored_masks(artifact, case, setting.tasks.index(task))[name]
        differing += int((ours != want.bool()).sum())
        total += want.numel()
    assert differing <= case.tolerance("masks") * total


def compare_singular_values(case: Case, setting: Setting, artifact: Path) -> None:
    for key, want in case.load("singular_values").items():
        task, name = key.split("/", 1)
        delta = dict(Artifact.open(artifact).iter_tensors(task=task))[name]
        found = torch.linalg.svdvals(delta.double())[: want.numel()]
        assert relative_error(found, want) <= case.tolerance("singular_values"), key


@pytest.mark.parametrize("name", family_cases())
def test_every_file_of_the_case_comes_out(golden, tmp_path, name):
    case = golden_case(golden, name)
    if case.facts["method"] in EXPECTED:
        pytest.skip(EXPECTED[case.facts["method"]])
    for path in case.facts["files"]:
        file = path.removesuffix(".safetensors")
        if file in INPUTS:
            continue
        setting = setting_of(case, file)
        artifact = run(case, setting, tmp_path / file)
        opened = Artifact.open(artifact)
        base = case.family / "base.safetensors"
        one_task = re.search(r"task_\d+$", file)
        if file.startswith("merged_tv"):
            scaling = scaling_of(artifact)
            deltas = {key: delta / scaling for key, delta in opened.iter_tensors()}
            compare_tensors(case, file, deltas)
        elif file.startswith("merged"):
            compare_tensors(case, file, dict(opened.iter_tensors(base)))
        elif file.startswith("pruned"):  # the method on one task: the merge is that task
            compare_tensors(case, file, dict(opened.iter_tensors()))
        elif file.startswith("reconstructed") and one_task:
            compare_tensors(case, file, dict(opened.iter_tensors(base, task=one_task[0])))
        elif one_task:
            compare_tensors(case, file, dict(opened.iter_tensors(task=one_task[0])))
        elif file == "masks_packed":
            compare_packed_masks(case, setting)
        elif file == "masks":
            compare_masks(case, setting, artifact)
        elif file == "singular_values":
            compare_singular_values(case, setting, artifact)
        else:
            pytest.fail(f"nobody compares {file} of golden case {name}")
