"""What commands print and where, how configuration is put together, and how fast they start."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svd_hybrid.cli.app import COMMANDS
from svd_hybrid.compress.config import CompressConfig, resolve_config
from svd_hybrid.compress.profiles.params import DEFAULT_ERROR, SIGNAL_ERROR, HybridParams
from tests.cli.project import SVDH, TASKS, Project


def config_of(artifact: Path) -> dict[str, object]:
    return json.loads((artifact / "config.json").read_text("utf-8"))


# --- stdout is the result, everything else is stderr ---------------------------------------------


def test_compress_prints_the_directory_on_stdout_and_a_summary_on_stderr(project, svdh):
    run = svdh(*project.compress())
    assert run.code == 0
    assert run.out == f"{project.root / 'new'}\n"
    for word in (*TASKS, "weight", "relative error", "artifact", "bits per parameter"):
        assert word in run.err
    assert "\x1b" not in run.err, "colours where nobody sees them"


def test_reload_prints_the_path_on_stdout_and_a_line_on_stderr(project, svdh):
    output = project.root / "merged.safetensors"
    run = svdh(*project.reload("--task", "dtd"))
    assert (run.code, run.out) == (0, f"{output}\n")
    assert run.err.startswith("task dtd: 4 tensors, ")
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_leaves_the_result_alone(project, svdh, flag):
    run = svdh(*project.compress(flag))
    assert (run.code, run.out, run.err) == (0, f"{project.root / 'new'}\n", "")
    run = svdh(*project.reload(flag))
    assert (run.code, run.out, run.err) == (0, f"{project.root / 'merged.safetensors'}\n", "")


def test_notes_are_for_the_user_even_when_quiet(project, svdh):
    run = svdh(
        *project.compress("-q", weighting="performance", performance_file=performance(project))
    )
    assert run.code == 0
    assert run.err.startswith("note: performance weights are uniform to within 2%")
    assert run.err.count("\n") == 1


def performance(project: Project) -> Path:
    return project.file("perf.json", {"Cars": 0.85, "DTD": 0.81, "euro-sat": 0.92})


def test_json_is_exactly_one_document(project, svdh):
    run = svdh(*project.compress("--json"))
    document = json.loads(run.out)
    assert run.code == 0
    assert run.err == ""
    assert document["artifact_dir"] == str(project.root / "new")
    assert document["weights"] == dict.fromkeys(TASKS, 1 / 3)
    on_disk = sum(p.stat().st_size for p in (project.root / "new").rglob("*") if p.is_file())
    assert document["bytes"]["bytes_artifact"] == on_disk
    run = svdh(*project.reload("--json", "--task", "cars"))
    document = json.loads(run.out)
    assert run.err == ""
    assert document["output_path"] == str(project.root / "merged.safetensors")
    assert document["bytes_written"] == (project.root / "merged.safetensors").stat().st_size
    assert document["tensors"] == 4


def test_verify(project, svdh):
    run = svdh("verify", "--artifact-dir", project.art, "--base-model-path", project.base)
    files = sum(p.is_file() for p in project.art.rglob("*"))
    assert run.code == 0
    assert run.out.startswith(f"ok: {files} files, base of 4 tensors, id ")
    assert run.err == ""
    document = json.loads(svdh("verify", "--json", "--artifact-dir", project.art).out)
    assert document["ok"] is True
    assert document["problems"] == []
    assert document["base_tensors_checked"] == 0


def test_verify_lists_every_problem_and_json_says_the_same(project, svdh):
    shards = sorted(project.art.rglob("*.safetensors"))
    for shard in shards:
        shard.write_bytes(b"x" + shard.read_bytes()[1:])
    run = svdh("verify", "--artifact-dir", project.art)
    assert run.code == 4
    assert [line.split(": ")[1] for line in run.out.splitlines()] == [str(s) for s in shards]
    assert run.err.startswith(f"error: {len(shards)} problems, the first: file content is not")
    assert len(run.err) <= 500
    run = svdh("verify", "--json", "--artifact-dir", project.art)
    document = json.loads(run.out)
    assert (run.code, json.loads(run.err)["code"], document["ok"]) == (4, 4, False)
    assert [problem["where"] for problem in document["problems"]] == [str(s) for s in shards]


def test_inspect(project, svdh):
    run = svdh("inspect", "--artifact-dir", project.art)
    assert (run.code, run.err) == (0, "")
    for word in (*TASKS, "merged", "svd-hybrid", "profile", "0.3333"):
        assert word in run.out
    assert "blocks.0.fc.weight" not in run.out
    run = svdh("inspect", "--tensors", "--artifact-dir", project.art)
    for word in ("blocks.0.fc.weight", "12x20", "steps", "I64", "left"):
        assert word in run.out
    run = svdh("inspect", "--json", "--artifact-dir", project.art)
    document = json.loads(run.out)
    assert run.err == ""
    assert list(document["tasks"]) == list(TASKS)
    assert document["parameters"] == 12 + 240 + 20 + 1
    assert document["tensors"]["blocks.0.fc.weight"]["shape"] == [12, 20]
    on_disk = sum(p.stat().st_size for p in project.art.rglob("*") if p.is_file())
    assert document["bytes_artifact"] == on_disk


def test_inspect_works_without_diagnostics(project, svdh):
    project.edit_manifest(
        lambda m: m.update(files=[f for f in m["files"] if f["path"] != "diagnostics.json"])
    )
    (project.art / "diagnostics.json").unlink()
    assert svdh("inspect", "--tensors", "--artifact-dir", project.art).code == 0
    assert svdh("verify", "--artifact-dir", project.art).code == 0


def test_methods(svdh):
    run = svdh("methods")
    assert (run.code, run.err) == (0, "")
    assert "svd-hybrid" in run.out
    run = svdh("methods", "svd_hybrid")
    for word in ("scaling", "mask_strategy", "1.0", "source:"):
        assert word in run.out
    document = json.loads(svdh("methods", "--json", "svd-hybrid").out)
    (method,) = document["methods"]
    assert method["name"] == "svd-hybrid"
    assert {p["name"]: p["default"] for p in method["parameters"]}["scaling"] == 1.0


# --- saying what to compress ---------------------------------------------------------------------


def manifest(artifact: Path) -> dict[str, object]:
    return json.loads((artifact / "manifest.json").read_bytes())


def test_tasks_as_words_or_repeated_and_their_order_is_kept(project, svdh):
    new = project.root / "new"
    assert svdh(*project.compress("-q", tasks=["eurosat", "cars"])).code == 0
    assert manifest(new)["tasks"] == ["eurosat", "cars"]
    argv = project.compress("-q", "--overwrite", "--tasks", "cars", tasks=["eurosat"])
    assert svdh(*argv).code == 0
    assert manifest(new)["tasks"] == ["eurosat", "cars"]


def test_task_with_its_path_alone_or_beside_words(project, svdh):
    new = project.root / "new"
    pair = f"Stanford Cars={project.checkpoint('cars')}"
    argv = project.compress("-q", "--task", pair, tasks=None, checkpoint_dir=None)
    assert svdh(*argv).code == 0
    assert manifest(new)["tasks"] == ["Stanford Cars"]
    argv = project.compress("-q", "--overwrite", "--task", pair, tasks=["dtd"])
    assert svdh(*argv).code == 0
    assert manifest(new)["tasks"] == ["dtd", "Stanford Cars"]


def test_a_path_may_hold_an_equals_sign(project, svdh):
    path = project.root / "lr=0.1.safetensors"
    path.write_bytes(project.checkpoint("cars").read_bytes())
    assert svdh(*project.compress("-q", "--task", f"cars={path}", tasks=None)).code == 0


def test_original_flags_and_their_alias(project, svdh):
    argv = project.compress("-q", "--base", project.base, base_model_path=None)
    assert svdh(*argv, "--model", "ViT-B-32", "--no-fp16", "--no-center").code == 0
    config = config_of(project.root / "new")
    assert config["model"] == "ViT-B-32"
    assert config["fp16"] is False
    assert config["center"] is False


def test_device_cuda_is_accepted_and_says_so(project, svdh):
    run = svdh(*project.compress("-q", "--device", "cuda"))
    assert run.code == 0
    assert "note: encoding runs on the CPU" in run.err


# --- configuration -------------------------------------------------------------------------------


def test_defaults(project, svdh):
    """Those of auto, with the step that the run found for the default target."""
    config = config_of(project.art)
    assert (config["profile"], config["objective"]) == ("auto", "quality")
    step = config.pop("step")
    assert isinstance(step, float)
    assert config | {"step": None} == CompressConfig().to_json() | {"tasks": list(TASKS)}
    found = json.loads(svdh("inspect", "--json", "--artifact-dir", project.art).out)
    assert 0.96 * DEFAULT_ERROR < found["relative_error"] <= DEFAULT_ERROR


def test_defaults_of_hybrid(project, svdh):
    assert svdh(*project.compress("-q", "--profile", "hybrid")).code == 0
    hybrid = resolve_config({"profile": "hybrid"}, "test")
    assert config_of(project.root / "new") == hybrid.to_json() | {"tasks": list(TASKS)}


@pytest.mark.parametrize(
    ("flags", "content"),
    [
        (["--low-bits", "3"], {}),
        (["--no-center"], {}),
        (["--max-rank", "4"], {}),
        (["--set", "rtvq-stages=1"], {}),
        ([], {"low_bits": 3}),
        ([], {"overrides": [{"tensors": "blocks.*", "low_bits": 2}]}),
    ],
    ids=["flag", "switch", "flag that auto has too", "set", "file", "overrides in a file"],
)
def test_a_parameter_of_hybrid_alone_selects_hybrid_and_says_so(project, svdh, flags, content):
    run = svdh(*project.compress("-q", *flags, config=project.file("c.yaml", content)))
    assert run.code == 0, run.err
    assert config_of(project.root / "new")["profile"] == "hybrid"
    assert "note: profile hybrid, because of its parameters; --profile chooses another" in run.err


def test_a_named_profile_is_not_changed_by_its_parameters(project, svdh):
    run = svdh(*project.compress("-q", "--profile", "auto", "--max-rank", "4"))
    assert (run.code, run.err) == (0, "")
    config = config_of(project.root / "new")
    assert (config["profile"], config["max_rank"]) == ("auto", 4)
    argv = project.compress("-q", "--overwrite", "--profile", "hybrid", "--low-bits", "3")
    assert svdh(*argv).err == ""


@pytest.mark.parametrize("value", ["none", "None"])
def test_an_optional_number_may_be_none(project, svdh, value):
    """It beats what a file says, as any option does."""
    path = project.file("c.yaml", "target_error: 0.2\n")
    assert svdh(*project.compress("-q", "--target-error", value, config=path)).code == 0
    step = config_of(project.root / "new")["step"]
    assert step == config_of(project.art)["step"], "the default target, not the file's"


def test_command_line_beats_set_beats_file_beats_default(project, svdh):
    path = project.file("c.yaml", "low_bits: 3\nmax_rank: 7\nrtvq_stages: 1\nscaling: 0.5\n")
    argv = project.compress("-q", "--set", "max_rank=9", "--set", "scaling=2", config=path)
    assert svdh(*argv, "--scaling", "3").code == 0
    config = config_of(project.root / "new")
    assert config["rtvq_stages"] == 1, "file beats default"
    assert config["low_bits"] == 3, "file beats default"
    assert config["max_rank"] == 9, "--set beats file"
    assert config["scaling"] == 3.0, "an option beats --set"
    assert config["energy_threshold"] == HybridParams().energy_threshold, "the default"


def test_a_default_given_on_the_command_line_still_beats_the_file(project, svdh):
    default = HybridParams().low_bits
    path = project.file("c.yaml", f"low_bits: {default - 1}\ncenter: false\n")
    argv = project.compress("-q", "--low-bits", default, "--center", config=path)
    assert svdh(*argv).code == 0
    assert config_of(project.root / "new")["low_bits"] == default
    assert config_of(project.root / "new")["center"] is True


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_alone_says_everything(project, svdh, suffix):
    record = {
        "base_model_path": str(project.base),
        "checkpoint_dir": str(project.ckpts),
        "artifact_dir": str(project.root / "new"),
        "tasks": ["dtd", "cars"],
        "low_bits": 2,
    }
    path = project.file(f"c.{suffix}", record)  # JSON is YAML
    assert svdh("compress", "-q", "--config", path).code == 0
    assert manifest(project.root / "new")["tasks"] == ["dtd", "cars"]
    assert config_of(project.root / "new")["low_bits"] == 2
    argv = ("compress", "-q", "--overwrite", "--config", path, "--tasks", "eurosat")
    assert svdh(*argv).code == 0
    assert manifest(project.root / "new")["tasks"] == ["eurosat"]


ORIGINAL = """
method:
  name: svd_hybrid
  svd_energy_threshold: 0.95
  svd_max_rank: 64
  svd_low_bits: 3
  svd_rtvq_stages: 1
  svd_mask_strategy: majority
  svd_weighting: performance
  svd_weighting_temperature: 0.1
  svd_center: false
  performance_file: {performance}
base_model_path: {base}
svd_fp16: true
"""


def test_original_spellings_of_keys(project, svdh):
    text = ORIGINAL.format(performance=performance(project), base=project.base)
    path = project.file("original.yaml", text)
    assert svdh(*project.compress("-q", config=path, base_model_path=None)).code == 0
    config = config_of(project.root / "new")
    expected = {
        "method": "svd-hybrid",
        "energy_threshold": 0.95,
        "max_rank": 64,
        "low_bits": 3,
        "rtvq_stages": 1,
        "mask_strategy": "majority",
        "weighting": "performance",
        "temperature": 0.1,
        "center": False,
        "fp16": True,
    }
    assert {key: config[key] for key in expected} == expected
    weights = json.loads((project.root / "new" / "weights.json").read_text("utf-8"))
    assert weights["eurosat"] > weights["cars"] > weights["dtd"]


def test_hyphens_and_underscores_in_set(project, svdh):
    assert svdh(*project.compress("-q", "--set", "low-bits=2", "--set", "center=False")).code == 0
    assert config_of(project.root / "new")["low_bits"] == 2
    assert config_of(project.root / "new")["center"] is False


# --- reload --------------------------------------------------------------------------------------


def test_reload_layouts_hold_the_same_model(project, svdh):
    states = []
    for name in ("m.safetensors", "m.pt", "m.pth", "m.bin", "folder"):
        run = svdh(*project.reload("-q", output_path=project.root / name))
        assert run.code == 0, run.err
        path = project.root / name
        if name == "folder":
            path = path / "model.safetensors"
        states.append(
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True)
        )
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_reload_weights_file_and_named_merge(project, svdh):
    third = project.file("w.json", {"EuroSAT": 1 / 3, "cars": 1 / 3, "dtd": 1 / 3})
    names = {"a": ["--weights", third], "b": ["--merge", "merged"], "c": []}
    for name, more in names.items():
        argv = project.reload("-q", *more, output_path=project.root / f"{name}.safetensors")
        assert svdh(*argv).code == 0
    first, *others = [(project.root / f"{name}.safetensors").read_bytes() for name in names]
    assert all(other == first for other in others)


@pytest.mark.parametrize("dtype", ["F64", "f16", "BF16"])
def test_reload_dtype(project, svdh, dtype):
    assert svdh(*project.reload("-q", "--dtype", dtype)).code == 0
    state = load_file(project.root / "merged.safetensors")
    want = {"F64": torch.float64, "f16": torch.float16, "BF16": torch.bfloat16}[dtype]
    assert state["norm.weight"].dtype == want
    assert state["steps"].dtype == torch.int64


def test_reload_shards(project, svdh):
    argv = project.reload("-q", "--max-shard-size", "0.5KB", output_path=project.root / "m")
    assert svdh(*argv).code == 0
    names = {p.name for p in (project.root / "m").iterdir()}
    assert "model.safetensors.index.json" in names
    assert len(names) > 2


def test_reload_accepts_the_base_in_other_files(project, svdh):
    torch.save(load_file(project.base), project.root / "base.pt")
    assert svdh(*project.reload("-q", output_path=project.root / "a.safetensors")).code == 0
    argv = project.reload(
        "-q", base_model_path=project.root / "base.pt", output_path=project.root / "b.safetensors"
    )
    assert svdh(*argv).code == 0
    assert (project.root / "a.safetensors").read_bytes() == (
        project.root / "b.safetensors"
    ).read_bytes()


# --- help and start-up ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(svdh, command):
    run = svdh(command, "--help")
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith(f"Usage: svdh {command}")
    assert svdh(command, "-h").out == run.out


def test_svdh_alone_is_help_and_wrong_usage(svdh):
    run = svdh()
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("Usage: svdh ")
    assert all(command in run.err for command in COMMANDS)


def test_version(svdh):
    run = svdh("--version")
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("svdh, version ")


def test_compress_help_shows_every_default(svdh):
    text = " ".join(svdh("compress", "--help").out.split())
    for key, value in CompressConfig().to_json().items():
        if key == "overrides":
            continue  # rules for single tensors are only in files
        assert f"--{key.replace('_', '-')}" in text
        shown = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        assert shown in ("", [], None) or f"[default: {shown}]" in text, key
    assert f"without a target {DEFAULT_ERROR}, or {SIGNAL_ERROR}" in text, (
        "the default of the unset target"
    )


LISTS_TORCH = """
import sys
from svd_hybrid.cli.app import main
code = main(sys.argv[1:])
heavy = {"torch", "numpy", "safetensors", "sklearn"} & set(sys.modules)
print(code, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["compress", "--help"],
        ["reload", "--help"],
        ["verify", "--help"],
        ["methods"],
        ["verify", "--artifact-dir", "ART"],
        ["inspect", "--artifact-dir", "ART"],
        ["inspect", "--json", "--artifact-dir", "ART"],
    ],
    ids=" ".join,
)
def test_quick_commands_do_not_import_torch(project, argv):
    words = [str(project.art) if word == "ART" else word for word in argv]
    done = subprocess.run(
        [sys.executable, "-c", LISTS_TORCH, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "0 []"


def cpu_seconds(argv: list[str]) -> float:
    """User and system time of one child, best of three."""
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        best = min(best, spent)
    return best


@pytest.mark.parametrize("argv", [["--help"], ["verify", "--help"]], ids=" ".join)
def test_help_takes_less_than_a_third_of_a_second(argv):
    assert cpu_seconds([*SVDH, *argv]) < 0.3


def test_verify_and_inspect_start_quickly(project):
    for verb in ("verify", "inspect"):
        assert cpu_seconds([*SVDH, verb, "--artifact-dir", str(project.art)]) < 0.3


def test_a_closed_pipe_is_no_error(project):
    """`svdh inspect … | head -1` ends quietly."""
    argv = [*SVDH, "inspect", "--json", "--artifact-dir", str(project.art)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
