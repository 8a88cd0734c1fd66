"""Every mistake a new user makes: one clear error, its exit code, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svd_hybrid.io.storage import Storage, using
from tests.cli.project import SVDH, TASKS, Project, snapshot
from tests.faults.faulty_storage import FaultyStorage

MOST_CHARACTERS = 500


@pytest.fixture
def mistake(project, svdh):
    """Run a command that must fail with `code`, say all of `said`, and change nothing."""

    def run(argv: list[str], code: int, *said: str) -> str:
        before = project.snapshot()
        result = svdh(*argv)
        assert result.code == code, result.err
        assert result.out == ""
        first, *others = result.err.splitlines()
        assert first.startswith("error: ")
        assert all(line.startswith(("  where: ", "  fix:   ")) for line in others), result.err
        assert "Traceback" not in result.err
        assert len(result.err) <= MOST_CHARACTERS, result.err
        for fragment in said:
            assert fragment in result.err, result.err
        assert project.snapshot() == before, "something was left behind or changed"
        return result.err

    return run


# --- compress: inputs ----------------------------------------------------------------------------


def test_a_wrong_base_path(mistake, project):
    argv = project.compress(base_model_path=project.root / "bse.safetensors")
    mistake(argv, 8, "checkpoint does not exist", "bse.safetensors", "check the path")


def test_a_wrong_checkpoint_folder(mistake, project):
    argv = project.compress(checkpoint_dir=project.root / "ckpt")
    mistake(argv, 8, "checkpoint folder does not exist", str(project.root / "ckpt"))


def test_a_misspelt_task(mistake, project):
    argv = project.compress(tasks=["cars", "eurost"])
    mistake(argv, 3, "no checkpoint for task 'eurost'", "did you mean 'eurosat'?")


def test_a_task_that_resembles_none(mistake, project):
    mistake(project.compress(tasks=["zzz"]), 3, "'zzz'", "known: cars, dtd, eurosat")


def test_a_task_twice(mistake, project):
    mistake(project.compress(tasks=["cars", "dtd", "cars"]), 2, "task 'cars' is given twice")
    again = f"cars={project.checkpoint('dtd')}"
    mistake(project.compress("--task", again), 2, "task 'cars' is given twice")


def test_two_tasks_that_differ_only_in_case(mistake, project):
    argv = project.compress(tasks=["cars", "Cars"])
    mistake(argv, 2, "'cars' and 'Cars' differ only in case", "--task NAME=PATH")


@pytest.mark.parametrize("word", ["cars", "cars=", "=cars.pt"])
def test_a_task_without_its_path(mistake, project, word):
    mistake(project.compress("--task", word), 2, repr(word), "--task cars=cars.pt")


def test_a_task_path_that_is_wrong(mistake, project):
    argv = project.compress("--task", "sun=nowhere.pt")
    mistake(argv, 8, "checkpoint does not exist", "nowhere.pt")


def test_nothing_to_do(mistake, project):
    mistake(project.compress(tasks=None), 2, "no task given", "--tasks NAME")
    mistake(project.compress(base_model_path=None), 2, "no base given", "--base-model-path")
    mistake(project.compress(artifact_dir=None), 2, "no artifact directory", "--artifact-dir")
    mistake(project.compress(checkpoint_dir=None), 2, "--tasks needs --checkpoint-dir")
    mistake(["compress", "--tasks"], 2, "--tasks needs at least one word", "svdh compress --help")


def test_a_tensor_missing_extra_reshaped_or_recast_in_a_task(mistake, project):
    project.edit_task("cars", norm__weight=None)
    project.edit_task("dtd", probe=torch.zeros(2))
    project.edit_task("eurosat", blocks__0__fc__weight=torch.zeros(20, 12))
    said = ("task 'cars' lacks 'norm.weight'", "task 'dtd' has 'probe'", "task 'eurosat'")
    mistake(project.compress(), 3, *said, "--on-missing")


def test_another_model_altogether(mistake, project):
    names = [f"vision_model.encoder.layers.{i}.self_attn.k_proj.weight" for i in range(60)]
    save_file({name: torch.zeros(2, 2) for name in names}, project.checkpoint("cars"))
    mistake(project.compress(), 3, "task 'cars' lacks 'blocks.0.fc.bias'")
    state = {name: torch.zeros(2, 2) for name in names}
    save_file(state, project.root / "other.safetensors")
    argv = project.compress(base_model_path=project.root / "other.safetensors")
    mistake(argv, 3, f"task 'dtd' lacks {names[0]!r}", "more")


def test_nan_in_a_task(mistake, project):
    project.edit_task("dtd", norm__weight=torch.full((20,), float("nan")))
    said = ("task 'dtd' holds 20 NaN", "'norm.weight'", "--nonfinite zero")
    mistake(project.compress(), 3, *said)


def test_a_checkpoint_that_is_none(mistake, project):
    project.checkpoint("dtd").write_text("<html>404 not found</html>")
    mistake(project.compress(), 3, "dtd.safetensors", "file is a web page, not a checkpoint")
    project.checkpoint("dtd").write_text("404 not found")
    mistake(project.compress(), 3, "dtd.safetensors", "neither safetensors nor")


def test_a_download_that_was_cut(mistake, project):
    path = project.checkpoint("dtd")
    path.write_bytes(path.read_bytes()[:-9])
    mistake(project.compress(), 3, "dtd.safetensors")


def test_a_pickled_module(mistake, project):
    project.checkpoint("cars").unlink()
    torch.save(torch.nn.Linear(2, 2), project.ckpts / "cars.pt")
    mistake(project.compress(), 9, "needs code to load", "cars.pt", "state_dict()")


# --- compress: masks and weights -----------------------------------------------------------------


def test_a_mask_folder_that_is_missing_or_empty(mistake, project):
    masks = project.root / "masks"
    mistake(project.compress(mask_dir=masks), 8, "mask folder does not exist", str(masks))
    masks.mkdir()
    mistake(project.compress(mask_dir=masks), 3, "no mask for task 'cars'", "<task>_mask.pt")
    save_file({"norm.weight": torch.ones(20)}, masks / "cars_mask.safetensors")
    said = ("no mask for task 'dtd', 'eurosat'", "--missing-mask ones or ignore")
    mistake(project.compress(mask_dir=masks), 3, *said)


def test_performance_weighting_without_a_file(mistake, project):
    argv = project.compress(weighting="performance")
    mistake(argv, 2, "needs a performance file", "--performance-file")
    argv = project.compress(weighting="cluster", cluster_across="performance")
    mistake(argv, 2, "needs a performance file")


GOOD = {"cars": 0.8, "dtd": 0.6, "eurosat": 0.9}
PERFORMANCE = {
    "a missing task": ({"cars": 0.8, "dtd": 0.6}, "no accuracy for task 'eurosat'"),
    "percentages": (GOOD | {"dtd": 60}, "accuracy of task 'dtd' is 60, outside [0, 1]"),
    "text": (GOOD | {"dtd": "0.6"}, "accuracy of task 'dtd' is '0.6'"),
    "truth": (GOOD | {"dtd": True}, "accuracy of task 'dtd' is True"),
    "NaN": ('{"cars": NaN, "dtd": 0, "eurosat": 0}', "NaN"),
    "no JSON": ("cars: 0.8", "not valid JSON"),
    "no object": ([0.8, 0.6, 0.9], "not an object"),
    "a task twice": ('{"cars": 0.1, "cars": 0.2, "dtd": 0, "eurosat": 0}', "appears twice"),
}


@pytest.mark.parametrize("case", PERFORMANCE)
def test_a_performance_file_with(mistake, project, case):
    content, said = PERFORMANCE[case]
    path = project.file("perf.json", content)
    argv = project.compress(weighting="performance", performance_file=path)
    err = mistake(argv, 3, said, str(path))
    if case == "percentages":
        assert "0.85, not 85" in err


def test_a_performance_file_that_is_missing(mistake, project):
    argv = project.compress(weighting="performance", performance_file=project.root / "p.json")
    mistake(argv, 8, "performance file cannot be read", "p.json")


def test_a_performance_file_that_nothing_uses_is_noted(project, svdh):
    run = svdh(*project.compress("-q", performance_file=project.file("p.json", GOOD)))
    assert run.code == 0
    assert "performance file is not used: weighting is uniform" in run.err


# --- compress: configuration ---------------------------------------------------------------------


VALUES = {
    "energy_threshold": [("0", "outside (0, 1]"), ("1.5", "outside (0, 1]"), ("nan", "outside")],
    "low_bits": [("0", "outside 1..8"), ("9", "outside 1..8"), ("4.5", "integer")],
    "rtvq_stages": [("0", "outside 1..16"), ("17", "outside 1..16")],
    "max_rank": [("0", "outside 1.."), ("-3", "outside 1..")],
    "group_size": [("-1", "outside 0..")],
    "temperature": [("0", "must be > 0"), ("-1", "must be > 0"), ("inf", "must be > 0")],
    "cluster_k": [("0", "1 or more")],
    "noise_shrink": [("1.5", "outside [0, 1]")],
    "majority_threshold": [("0", "outside (0, 1]")],
    "min_mask_size": [("-1", "below 0")],
    "scaling": [("inf", "finite"), ("much", "much")],
    "weighting": [("best", "uniform")],
    "center": [("maybe", "true or false")],
    "method": [("svd_hybrd", "did you mean 'svd-hybrid'?")],
    "profile": [("hybird", "did you mean 'hybrid'?")],
}
BAD_VALUES = [(key, value, said) for key, cases in VALUES.items() for value, said in cases]


@pytest.mark.parametrize(("key", "value", "said"), BAD_VALUES)
def test_a_bad_value(mistake, project, key, value, said):
    named = key if key not in ("method", "profile") else value
    mistake(project.compress("--set", f"{key}={value}"), 2, named, said)
    path = project.file("c.yaml", f"{key}: {value}\n")
    mistake(project.compress(config=path), 2, named, said)
    if key != "center":
        flag = "--" + key.replace("_", "-")
        mistake(project.compress(flag, value), 2, said if key != "weighting" else "'uniform'")


def test_more_clusters_than_tasks(mistake, project):
    argv = project.compress(weighting="cluster", cluster_k=4)
    mistake(argv, 2, "cluster_k is 4, but there are only 3 tasks")


def test_an_unknown_key(mistake, project):
    argv = project.compress("--set", "energy_treshold=0.9")
    mistake(argv, 2, "unknown key 'energy_treshold'", "did you mean 'energy_threshold' or")
    path = project.file("c.yaml", "svd_low_bit: 3\n")
    mistake(project.compress(config=path), 2, "unknown key", str(path), "'low_bits'")
    mistake(project.compress("--set", "zzz=1"), 2, "unknown key 'zzz'", "known: ")


@pytest.mark.parametrize(
    ("given", "target"),
    [
        (["--low-bits", "3", "--target-bits", "2"], "target_bits goes with profile auto, low_bits"),
        (["--no-center", "--set", "target-error=0.1"], "target_error goes with profile auto"),
        (["--max-rank", "4", "--target-size", "9000"], "max_rank with hybrid when none is named"),
    ],
)
def test_a_parameter_of_hybrid_beside_a_target(mistake, project, given, target):
    mistake(project.compress(*given), 2, target, "drop one of the two, or pass --profile auto")


def test_a_parameter_of_another_profile(mistake, project):
    argv = project.compress("--profile", "auto", "--low-bits", "3")
    mistake(argv, 2, "this profile has no parameter 'low_bits'", "it belongs to profile hybrid")
    argv = project.compress("--profile", "hybrid", "--target-bits", "2")
    mistake(argv, 2, "this profile has no parameter 'target_bits'", "it belongs to profile auto")


@pytest.mark.parametrize("option", ["--target-error", "--max-rank"])
def test_an_optional_number_that_is_none_of_both(mistake, project, option):
    mistake(project.compress(option, "nine"), 2, option, "'nine' is not a valid")


def test_an_option_that_does_not_exist(mistake, project):
    argv = project.compress("--enrgy-threshold", 1)
    mistake(argv, 2, "--energy-threshold", "svdh compress --help")


def test_set_without_a_value(mistake, project):
    mistake(project.compress("--set", "low_bits"), 2, "has no '='", "--set KEY=VALUE")


FILES = {
    "a key twice": ("low_bits: 3\nlow_bits: 4\n", "a key appears twice"),
    "a section twice": ("method: {name: svd-hybrid}\nmethod: {name: x}\n", "appears twice"),
    "two spellings of a key": ("svd_low_bits: 3\nlow_bits: 4\n", "'low_bits' is given twice"),
    "a syntax error": ("low_bits: [3\n", "cannot be parsed"),
    "a tab": ("a:\n\tlow_bits: 3\n", "cannot be parsed"),
    "code": ('low_bits: !!python/object/apply:os.system ["true"]\n', "cannot be parsed"),
    "a list": ("- low_bits\n", "not a mapping"),
    "tasks as text": ("tasks: cars\n", "'tasks' is not a list"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_configuration_file_with(mistake, project, case):
    content, said = FILES[case]
    path = project.file("c.yaml", content)
    mistake(project.compress(config=path, tasks=None), 2, said, str(path))


def test_a_configuration_file_that_is_missing_or_no_json(mistake, project):
    argv = project.compress(config=project.root / "c.yaml")
    mistake(argv, 8, "configuration cannot be read", "c.yaml")
    mistake(project.compress(config=project.file("c.json", "{")), 2, "cannot be parsed", "c.json")


UNREADABLE = {
    "a list as key": b"[low_bits]: 3\n{[a]: 3}\n",
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "brackets without end": b"[" * 3000,
    "a number as key": b"3: 4\n",
    "an endless number": b"low_bits: 1" + b"0" * 5000,
    "a date": b"model: 2020-01-01\n",
    "a list as path, though given": b"base_model_path: [1, 2]\n",
    "a number as path, though given": b"artifact_dir: 0\n",
    "a list as task, though given": b"tasks: [[x]]\n",
    "a number as overrides": b"overrides: 3\n",
    "a list as statistics": b"statistics_dir: [1]\n",
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_configuration_file_that_is(mistake, project, case):
    path = project.root / "c.yaml"
    path.write_bytes(UNREADABLE[case])
    mistake(project.compress(config=path), 2, str(path))


# --- outputs -------------------------------------------------------------------------------------


def test_an_artifact_in_the_way(mistake, project, svdh):
    mistake(project.compress(artifact_dir=project.art), 8, "output exists", "--overwrite")
    argv = project.compress("-q", "--overwrite", artifact_dir=project.art)
    (project.art / "stray").write_text("x")
    mistake(argv, 8, "holds files svdh did not write: 'stray'", "move them elsewhere")
    (project.art / "stray").unlink()
    assert svdh(*argv).code == 0
    assert svdh("verify", "--artifact-dir", project.art).code == 0


@pytest.mark.parametrize("name", ["merged", "merged.safetensors", "merged.pt"])
def test_a_model_in_the_way(mistake, project, svdh, name):
    output = project.root / name
    assert svdh(*project.reload(output_path=output)).code == 0
    mistake(project.reload(output_path=output), 8, "output exists", str(output), "--overwrite")
    assert svdh(*project.reload("--overwrite", output_path=output)).code == 0


def test_overwriting_fails_late_and_the_old_artifact_stays(mistake, project):
    project.edit_task("eurosat", norm__weight=torch.full((20,), float("inf")))
    argv = project.compress("--overwrite", artifact_dir=project.art)
    mistake(argv, 3, "task 'eurosat' holds 20 NaN or infinite")


@pytest.mark.parametrize("verb", ["compress", "reload"])
def test_a_parent_folder_that_is_missing(mistake, project, verb):
    target = project.root / "no" / "such"
    argv = (
        project.compress(artifact_dir=target)
        if verb == "compress"
        else project.reload(output_path=target)
    )
    mistake(argv, 8, "folder of the output does not exist", str(target.parent), "create it first")


def test_an_output_that_would_replace_an_input(mistake, project):
    said = "would replace an input"
    mistake(project.compress("--overwrite", artifact_dir=project.ckpts), 2, said)
    mistake(project.compress("--overwrite", artifact_dir=project.root), 2, said)
    mistake(project.reload("--overwrite", output_path=project.base), 2, said)
    mistake(project.reload("--overwrite", output_path=project.art), 2, said)
    mistake(project.reload(output_path=project.art / "merged"), 2, "inside the artifact")


@pytest.mark.parametrize("profile", ["auto", "hybrid"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_space_while_compressing(mistake, project, svdh, profile, overwrite):
    """At any write: of arrays, strings, documents; auto also writes attempts that it gives up."""
    found = project.root / "found"
    with using(FaultyStorage()) as disk:
        assert svdh(*project.compress("--profile", profile, artifact_dir=found)).code == 0
    writes = [number for number, call in enumerate(disk.calls) if call == "write"]
    assert len(writes) > 8
    target = project.art if overwrite else project.root / "new"
    argv = project.compress("--profile", profile, artifact_dir=target)
    for at in writes[:: max(1, len(writes) // 12)]:
        more = ["--overwrite"] * overwrite
        with using(FaultyStorage(at, "ENOSPC")):
            mistake([*argv, *more], 8, "no space left on the disk", "nothing was left half-written")


@pytest.mark.parametrize("name", ["merged", "merged.safetensors", "merged.pt"])
def test_no_space_while_reloading(mistake, project, name):
    argv = project.reload(output_path=project.root / name)
    with using(FaultyStorage(6, "ENOSPC")) as disk:
        mistake(argv, 8, "no space left on the disk", "nothing was left half-written")
    assert "write" in disk.calls[6:]


def test_no_permission(mistake, project):
    with using(Forbidding()):
        mistake(project.compress(), 8, "cannot write: Permission denied", str(project.root / "new"))
        mistake(project.reload(), 8, "cannot write: Permission denied", "merged.safetensors")


class Forbidding(Storage):
    """A parent folder in which nothing may be made."""

    def create(self, path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.fixture
def mounted(tmp_path_factory):
    """Mounts a tmpfs; skips where that is not allowed."""
    points: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path_factory.mktemp("mount")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip("mounting a tmpfs needs root: " + done.stderr.decode().strip()[:80])
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.parametrize("name", ["merged", "merged.safetensors", "merged.pt"])
def test_a_disk_that_is_really_full(mistake, project, mounted, name):
    small = mounted("size=64k")
    state = load_file(project.base) | {"large": torch.zeros(64, 512)}
    save_file(state, project.base)
    argv = project.reload(output_path=small / name)
    mistake(argv, 5)  # the base was changed: compress again
    for task in TASKS:
        path = project.checkpoint(task)
        save_file(load_file(path) | {"large": torch.randn(64, 512)}, path)
    said = ("no space left", "nothing was left half-written")
    fine = project.compress("--target-error", "0.01", artifact_dir=small / "art")
    mistake(fine, 8, "no space left")
    assert snapshot(small) == {}
    from svd_hybrid.cli.app import main

    assert main(project.compress("-q", "--overwrite", artifact_dir=project.art)) == 0
    mistake(argv, 8, "nothing was left half-written", *([said[0]] if "pt" not in name else []))
    assert snapshot(small) == {}


def test_a_target_that_is_really_read_only(mistake, project, mounted):
    frozen = mounted("size=64k,ro")
    said = "cannot write: Read-only file system"
    mistake(project.compress(artifact_dir=frozen / "art"), 8, said, str(frozen))
    mistake(project.reload(output_path=frozen / "merged"), 8, said, str(frozen))


# --- reload --------------------------------------------------------------------------------------


def test_an_unknown_task_or_merge(mistake, project):
    mistake(project.reload("--task", "car"), 2, "no task 'car'", "did you mean 'cars'?")
    mistake(project.reload("--merge", "mergd"), 2, "no merge 'mergd'", "did you mean 'merged'?")
    both = project.reload("--task", "cars", "--merge", "merged")
    mistake(both, 2, "does not hold single tasks", "drop --merge")
    mistake(project.reload(base_model_path=None), 2, "no base given")
    mistake(project.reload(output_path=None), 2, "--output-path", "svdh reload --help")


ONE = {"cars": 1, "dtd": 1, "eurosat": 1}
WEIGHTS = {
    "a missing task": ({"cars": 1, "dtd": 1}, "no weight for task 'eurosat'"),
    "an unknown task": (ONE | {"eurosta": 1}, "no task 'eurosta'"),
    "NaN": ('{"cars": NaN, "dtd": 1, "eurosat": 1}', "NaN"),
    "infinity": ('{"cars": 1e999, "dtd": 1, "eurosat": 1}', "'cars' is inf"),
    "a huge integer": ('{"cars": 1' + "0" * 400 + ', "dtd": 1, "eurosat": 1}', "'cars' is inf"),
    "huge numbers": (dict.fromkeys(ONE, 1e308), "too large"),
    "truth": (ONE | {"cars": True}, "'cars' is True"),
    "text": (ONE | {"cars": "1"}, "'cars' is '1'"),
    "a task twice": ('{"cars": 1, "cars": 2, "dtd": 1, "eurosat": 1}', "appears twice"),
    "two spellings": (ONE | {"Cars": 2}, "'cars' has two weights"),
    "no object": ([1, 1, 1], "not an object"),
    "no JSON": ("cars=1", "not valid JSON"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_weights_file_with(mistake, project, case):
    content, said = WEIGHTS[case]
    mistake(project.reload("--weights", project.file("w.json", content)), 2, said)


def test_a_weights_file_that_is_missing(mistake, project):
    argv = project.reload("--weights", project.root / "w.json")
    mistake(argv, 8, "weights file cannot be read", "w.json")


def test_weights_that_overflow_the_dtype_asked_for(mistake, project):
    path = project.file("w.json", dict.fromkeys(ONE, 1e9))
    argv = project.reload("--weights", path, "--dtype", "F16")
    mistake(argv, 2, "does not fit torch.float16", "--dtype F32")


def test_one_bit_of_one_tensor_of_the_base(mistake, project, svdh):
    weight = load_file(project.base)["blocks.0.fc.weight"]
    weight.view(torch.int32)[5, 7] ^= 1
    other = project.edit_base(blocks__0__fc__weight=weight)
    said = ("not the one the artifact was made from", "'blocks.0.fc.weight'")
    mistake(project.reload(base_model_path=other), 5, *said)
    mistake(project.reload(base_model_path=other, output_path=project.root / "folder"), 5, *said)
    mistake(project.reload(base_model_path=other, output_path=project.root / "x.pt"), 5, *said)
    checked = svdh("verify", "--artifact-dir", project.art, "--base", other)
    assert checked.code == 5
    assert "'blocks.0.fc.weight'" in checked.err


BASES = {
    "missing": ({"norm__weight": None}, "lacks 'norm.weight'"),
    "extra": ({"norm__bias": torch.zeros(2)}, "has 'norm.bias' besides"),
    "reshaped": ({"norm__weight": torch.ones(4, 5)}, "'norm.weight' is F32 [4, 5]"),
    "recast": ({"norm__weight": torch.ones(20).half()}, "'norm.weight' is F16 [20]"),
    "an integer": ({"steps": torch.tensor([4])}, "'steps'"),
}


@pytest.mark.parametrize("case", BASES)
def test_a_base_with_a_tensor(mistake, project, case):
    tensors, said = BASES[case]
    mistake(project.reload(base_model_path=project.edit_base(**tensors)), 5, said)


def test_another_base_altogether(mistake, project):
    names = [f"vision_model.encoder.layers.{i}.self_attn.k_proj.weight" for i in range(60)]
    save_file({name: torch.zeros(2, 2) for name in names}, project.root / "o.safetensors")
    argv = project.reload(base_model_path=project.root / "o.safetensors")
    mistake(argv, 5, "lacks 'blocks.0.fc.bias'", "and 58 more besides")


# --- artifacts -----------------------------------------------------------------------------------


def test_no_artifact(mistake, project):
    for argv in (
        project.reload(artifact_dir=project.root / "nowhere"),
        ["verify", "--artifact-dir", project.root / "nowhere"],
        ["inspect", "--artifact-dir", project.root / "nowhere"],
    ):
        mistake(argv, 8, "artifact does not exist", "nowhere")
    mistake(project.reload(artifact_dir=project.base), 8, "artifact is not a directory")
    for argv in (
        project.reload(artifact_dir=project.ckpts),
        ["verify", "--artifact-dir", project.ckpts],
        ["inspect", "--artifact-dir", project.ckpts],
    ):
        mistake(argv, 4, "no manifest.json", "svdh compress")


def files_of(artifact: Path) -> list[str]:
    return sorted(str(p.relative_to(artifact)) for p in artifact.rglob("*") if p.is_file())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_in_each_file(mistake, project, svdh):
    assert svdh(*project.reload(output_path=project.root / "right.safetensors")).code == 0
    names = files_of(project.art)
    assert len(names) >= 7, names
    for name in names:
        path = project.art / name
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            flip(path, at)
            checked = svdh("verify", "--artifact-dir", project.art)
            assert checked.code == 4, name
            assert str(path) in checked.err
            if name in ("manifest.json", "index.json.zst"):
                mistake(project.reload(), 4, name)
            elif name.endswith(".safetensors"):
                mistake(project.reload(), 4, "file content is not what was written", name)
                mistake(project.reload(output_path=project.root / "x"), 4, name)
            else:  # documents for people, which reload never opens
                output = project.root / "again.safetensors"
                assert svdh(*project.reload(output_path=output)).code == 0
                right = (project.root / "right.safetensors").read_bytes()
                assert output.read_bytes() == right
                output.unlink()
            path.write_bytes(whole)
    assert svdh("verify", "--artifact-dir", project.art).code == 0


def test_a_file_cut_short_or_missing(mistake, project, svdh):
    shard = next(project.art.glob("coeffs/*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    mistake(project.reload(), 4, f"file has {len(whole) - 1} bytes", shard.name)
    shard.unlink()
    mistake(project.reload(), 4, "file is missing", shard.name, "copy the artifact again")
    checked = svdh("verify", "--artifact-dir", project.art)
    assert checked.code == 4
    assert shard.name in checked.err


@pytest.mark.parametrize("folder", [".", "coeffs", "basis", "mine"])
def test_a_foreign_file_is_reported_by_verify(project, svdh, folder):
    folder = project.art / folder
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("mine")
    checked = svdh("verify", "--artifact-dir", project.art)
    assert checked.code == 4
    assert "file is not part of the artifact" in checked.err
    assert "notes.txt" in checked.err


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda m: m.update(format_version=2), 6, "format version 2"),
        (lambda m: m["codecs"][0].update(name="neural"), 6, "unknown codec 'neural'"),
        (lambda m: m["codecs"][0].update(version=2), 6, "version 2"),
        (lambda m: m["tensors"][0]["task"].update(op="warp"), 6, "unknown expression 'warp'"),
        (lambda m: m.update(format="zip"), 4, "not an svdh manifest"),
        (lambda m: m.update(extra=1), 4, "extra"),
    ],
)
def test_a_manifest_from_elsewhere(mistake, project, change, code, said):
    project.edit_manifest(change)
    mistake(project.reload(), code, said)


@pytest.mark.parametrize(
    "path", ["../base.safetensors", "/etc/passwd", "..", "DIAGNOSTICS.pt", "/dev/stdin"]
)
def test_a_manifest_that_names_a_path_outside(mistake, project, path):
    project.edit_manifest(lambda m: m["files"][0].update(path=path))
    said = "names a path the format does not know"
    mistake(project.reload(), 9, said, path)
    mistake(["verify", "--artifact-dir", project.art], 9, said, path)
    mistake(["inspect", "--artifact-dir", project.art], 9, said, path)


# --- how errors are printed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["reload", "--artifact-dir", "no", "--base", "no", "--output-path", "x", "--json"], 8),
        (["verify", "--json", "--artifact-dir", "no"], 8),
        (["compress", "--json", "--base", "b"], 2),
        (["compress", "--json", "--low-bits", "x"], 2),
        (["inspect", "--json"], 2),
        (["methods", "nope", "--json"], 2),
        (["nope", "--json"], 2),
    ],
)
def test_with_json_an_error_is_one_object_on_stderr(svdh, argv, code):
    run = svdh(*argv)
    assert run.code == code
    assert run.out == ""
    document = json.loads(run.err)
    assert sorted(document) == ["code", "error", "fix", "where"]
    assert document["code"] == code
    assert run.err.count("\n") == 1


def test_debug_adds_the_traceback(svdh):
    run = svdh("verify", "--debug", "--artifact-dir", "nowhere")
    assert run.code == 8
    assert "Traceback" in run.err
    assert "error: artifact does not exist" in run.err


def test_our_own_bug_is_exit_code_1_and_says_so(project, svdh, monkeypatch):
    monkeypatch.setattr("svd_hybrid.artifact.verify.verify", lambda *_: 1 / 0)
    run = svdh("verify", "--artifact-dir", project.art)
    assert run.code == 1
    assert "internal error: ZeroDivisionError" in run.err
    assert "Traceback" not in run.err


def test_a_process_ends_with_the_same_code_and_text(project):
    argv = [*SVDH, *project.compress(base_model_path="nowhere")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 8
    assert done.stdout == ""
    assert done.stderr.startswith("error: checkpoint does not exist\n")


# --- signals -------------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path) -> Project:
    """A family that takes seconds: sixteen matrices of 512 x 512, four tasks."""
    project = Project(tmp_path)
    project.ckpts.mkdir()
    base = {f"w{i:02}": torch.randn(512, 512) for i in range(16)}
    save_file(base, project.base)
    for task in ("a", "b", "c", "d"):
        tuned = {name: tensor + 0.01 * torch.randn(512, 512) for name, tensor in base.items()}
        save_file(tuned, project.checkpoint(task))
    return project


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_signals_end_a_run_at_once_and_leave_nothing(slow, sent, code, said):
    before = slow.snapshot()
    argv = [*SVDH, *slow.compress(tasks=["a", "b", "c", "d"])]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(slow.root.glob(".new.staging-*")) and time.monotonic() < deadline:
        assert child.poll() is None, "it ended before it could be stopped"
        time.sleep(0.02)
    time.sleep(0.2)
    assert child.poll() is None, "it ended before it could be stopped"
    start = time.monotonic()
    child.send_signal(sent)
    out, err = child.communicate(timeout=30)
    assert time.monotonic() - start < 5
    assert child.returncode == code
    assert out == ""
    assert err.lstrip("\n") == f"error: {said}; nothing was left half-written\n"
    assert slow.snapshot() == before
