"""No NaN or infinity goes in unnoticed, and none comes out."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from svd_hybrid import Artifact
from tests.cli.project import TASKS
from tests.format.families import edit_arrays, read_record

PROFILES = ("auto", "hybrid", "fast", "exact", "bitdelta", "compeft")
BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_task_that_is_not_finite_is_refused_by_task_and_tensor(project, svdh, profile):
    values = torch.ones(20)
    values[7] = BAD[PROFILES.index(profile) % 3]
    project.edit_task("dtd", norm__weight=values)
    run = svdh(*project.compress("-q", "--profile", profile))
    assert run.code == 3
    assert "task 'dtd'" in run.err
    assert "'norm.weight'" in run.err


@pytest.mark.parametrize("profile", PROFILES)
def test_a_base_that_is_not_finite_is_refused_by_tensor(project, svdh, profile):
    base = project.edit_base(norm__weight=torch.full((20,), BAD[PROFILES.index(profile) % 3]))
    run = svdh(*project.compress("-q", "--profile", profile, base_model_path=base))
    assert run.code == 3
    assert "base holds NaN or infinity" in run.err
    assert "'norm.weight'" in run.err


def test_masks_and_statistics_that_are_not_finite_are_refused(project, svdh):
    for folder in ("masks", "stats"):
        (project.root / folder).mkdir()
    for task in TASKS:
        mask = {"norm.weight": torch.full((20,), float("nan"))}
        save_file(mask, project.root / "masks" / f"{task}_mask.safetensors")
        moments = {"blocks.0.fc.weight": torch.full((20,), float("inf"))}
        save_file(moments, project.root / "stats" / f"{task}.safetensors")
    run = svdh(*project.compress("-q", mask_dir=project.root / "masks"))
    assert (run.code, "'norm.weight'" in run.err) == (3, True)
    method = ("--method", "sparsegpt-ties")
    run = svdh(*project.compress("-q", *method, statistics_dir=project.root / "stats"))
    assert run.code == 3, run.err
    assert "'blocks.0.fc.weight'" in run.err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_merge_beyond_the_dtype_of_the_base_is_an_error_by_tensor(project, svdh, dtype):
    for path in (project.base, *project.ckpts.iterdir()):
        halves = {
            n: x.to(dtype) if x.is_floating_point() else x for n, x in load_file(path).items()
        }
        save_file(halves, path)
    argv = project.compress("-q", "--overwrite", "--profile", "fast", artifact_dir=project.art)
    assert svdh(*argv).code == 0
    big = 1e8 if dtype == torch.float16 else 1e38 * 1e3
    weights = project.file("w.json", dict.fromkeys(TASKS, big))
    run = svdh(*project.reload("--weights", weights))
    assert run.code in (2, 4)
    assert "does not fit" in run.err or "leaves float32" in run.err
    assert "tensor '" in run.err
    assert not (project.root / "merged.safetensors").exists()


@pytest.mark.parametrize("profile", ["hybrid", "exact", "fast"])
def test_deltas_of_any_size_stay_within_what_is_stored(project, svdh, profile):
    """1e9 and 1e-9 at once, beyond FP16 on both sides: scaled by powers of two, slice by slice.

    (`auto` has one water level for the whole model, below which 1e-9 would lie.)
    """
    base = load_file(project.base)
    generator = torch.Generator().manual_seed(1)
    zeros = {n: torch.zeros_like(x) if x.is_floating_point() else x for n, x in base.items()}
    save_file(zeros, project.base)
    sizes = dict(zip(("blocks.0.fc.weight", "norm.weight"), (1e9, 1e-9), strict=True))
    wanted = {}
    for task in TASKS:
        state = dict(zeros)
        for name, size in sizes.items():
            state[name] = torch.randn(base[name].shape, generator=generator) * size
        save_file(state, project.checkpoint(task))
        wanted[task] = state
    argv = project.compress("-q", "--profile", profile)
    assert svdh(*argv).code == 0
    opened = Artifact.open(project.root / "new")
    assert opened.verify(project.base, deep=True).problems == []
    for task in TASKS:
        for name, got in opened.iter_tensors(project.base, task=task):
            assert bool(torch.isfinite(got).all())
            if name in sizes:
                error = (got.double() - wanted[task][name].double()).norm()
                assert float(error / wanted[task][name].double().norm()) < 0.2, (name, task)
    if profile == "hybrid":  # what was scaled is on record: an exponent for every slice
        codecs = {codec["name"] for codec in read_record(project.root / "new")["codecs"]}
        assert codecs <= {"half", "residual-affine", "bitmask", "raw"}


def test_a_stored_infinity_is_found_although_every_digest_fits(project, svdh):
    argv = project.compress("-q", "--overwrite", "--profile", "hybrid", artifact_dir=project.art)
    assert svdh(*argv).code == 0

    def spoil(arrays: dict[str, torch.Tensor]) -> None:
        name = next(name for name in arrays if name.endswith("coeff_high.values"))
        arrays[name] = torch.full_like(arrays[name], float("inf"))

    edit_arrays(project.art, "coeffs", spoil)
    run = svdh("verify", "--deep", "--json", "--artifact-dir", project.art)
    assert run.code == 4
    assert "NaN or infinity" in json.loads(run.out)["problems"][0]["error"]
    assert svdh(*project.reload()).code == 4
