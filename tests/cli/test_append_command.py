"""`svdh compress --append`: what it prints, and what it refuses."""

from __future__ import annotations

import json

import pytest

from tests.cli.project import command

NEW = "gtsrb"


@pytest.fixture
def grow(project):
    """A command line that adds a task; its checkpoint is a changed copy of another's."""
    (project.ckpts / f"{NEW}.safetensors").write_bytes(project.checkpoint("dtd").read_bytes())

    def line(*more: object, **replaced: object) -> list[str]:
        options = {
            "base-model-path": project.base,
            "from-artifact": project.art,
            "artifact-dir": project.root / "grown",
            "task": f"{NEW}={project.checkpoint(NEW)}",
        }
        options |= {key.replace("_", "-"): value for key, value in replaced.items()}
        return command("compress", options, ("--append", *more))

    return line


def test_append(project, svdh, grow):
    run = svdh(*grow())
    assert (run.code, run.out) == (0, f"{project.root / 'grown'}\n")
    for word in ("appended by profile", NEW, "counts all tasks alike", "cars"):
        assert word in run.err
    checked = svdh(
        "verify",
        "--deep",
        "--artifact-dir",
        project.root / "grown",
        "--base-model-path",
        project.base,
    )
    assert checked.code == 0
    run = svdh(*grow("--json", "--overwrite", "--profile", "fast", "--set", "bits=6"))
    document = json.loads(run.out)
    assert list(document["weights"]) == ["cars", "dtd", "eurosat", NEW]
    assert document["task_errors"][NEW] < 0.1
    assert any("bits=6" in note for note in document["notes"])


def test_append_by_name_and_from_a_file(project, svdh, grow):
    assert svdh(*grow(task=None, tasks=NEW, checkpoint_dir=project.ckpts)).code == 0
    config = {
        "base_model_path": str(project.base),
        "checkpoint_dir": str(project.ckpts),
        "from_artifact": str(project.art),
        "artifact_dir": str(project.root / "by-file"),
        "tasks": [NEW],
        "profile": "fast",
    }
    run = svdh("compress", "--append", "--config", project.file("append.json", config))
    assert (run.code, run.out) == (0, f"{project.root / 'by-file'}\n")
    assert (
        svdh(*grow("--overwrite", "--config", project.file("m.json", {"method": "ties"}))).code == 2
    )


@pytest.mark.parametrize(
    ("more", "replaced", "word"),
    [
        ((), {"task": "cars=x.safetensors"}, "x.safetensors"),
        ((), {"from_artifact": None}, "--from-artifact"),
        ((), {"base_model_path": None}, "--base-model-path"),
        ((), {"task": None}, "no task given"),
        (("--method", "ties"), {}, "method"),
        (("--mask-dir", "masks"), {}, "--mask-dir"),
        (("--profile", "exact"), {}, "bit for bit"),
        (("--set", "low_bits=3"), {}, "low_bits"),
    ],
)
def test_append_refuses(project, svdh, grow, more, replaced, word):
    run = svdh(*grow(*more, **replaced))
    assert run.code in (2, 3, 8)
    assert run.out == ""
    assert word in run.err
    assert not (project.root / "grown").exists()


def test_replace(project, svdh, grow):
    taken = f"dtd={project.checkpoint('cars')}"
    run = svdh(*grow(task=taken))
    assert (run.code, "already has a task 'dtd'" in run.err) == (2, True)
    run = svdh(*grow("--replace", task=taken))
    assert run.code == 0
    assert "replaced by profile" in run.err
    line = [word for word in grow("--replace", task=taken) if word != "--append"]
    run = svdh(*line)
    assert (run.code, "--replace without --append" in run.err) == (2, True)
