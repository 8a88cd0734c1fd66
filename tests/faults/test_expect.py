"""An artifact pinned by its id, through every door."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import load_and_merge
from svd_hybrid import Artifact
from svd_hybrid.errors import ArtifactError, UsageError
from tests.cli.project import Project

OTHER = "0" * 64


def identity(project: Project) -> str:
    return hashlib.sha256((project.art / "manifest.json").read_bytes()).hexdigest()


def test_the_right_id_changes_nothing(project, svdh):
    id_ = identity(project)
    for number, spelling in enumerate((id_, f"sha256:{id_}", id_.upper())):
        out = project.root / f"{number}.safetensors"
        assert svdh(*project.reload("--expect", spelling, output_path=out)).code == 0
        words = ["verify", "--artifact-dir", project.art, "--expect", spelling]
        assert svdh(*words).code == 0
        assert svdh(*words, "--deep").code == 0


def test_another_id_is_refused_and_both_are_named(project, svdh):
    before = project.snapshot()
    for argv in (
        project.reload("--expect", f"sha256:{OTHER}"),
        ["verify", "--artifact-dir", project.art, "--expect", OTHER],
        ["verify", "--deep", "--artifact-dir", project.art, "--expect", OTHER],
    ):
        run = svdh(*argv)
        assert run.code == 4
        assert f"sha256:{identity(project)}" in run.err
        assert f"sha256:{OTHER}" in run.err
        assert len(run.err) <= 500
    assert project.snapshot() == before


def test_nothing_of_another_artifact_is_even_parsed(project, svdh):
    (project.art / "manifest.json").write_bytes(b"[" * 1000)
    assert "not the expected one" in svdh(*project.reload("--expect", OTHER)).err


@pytest.mark.parametrize("text", ["", "sha256:", "md5:" + OTHER, OTHER[1:], "sha256:" + "g" * 64])
def test_what_is_no_id_is_a_mistake_of_the_caller(project, svdh, text):
    run = svdh(*project.reload("--expect", text))
    assert run.code == 2
    assert "--expect" in run.err


def test_the_library_pins_too(project):
    right = f"sha256:{identity(project)}"
    opened = Artifact.open(project.art, expect=right)
    assert opened.verify().problems == []
    assert load_and_merge.load_merged(project.art, project.base, expect=right)
    with pytest.raises(ArtifactError, match="not the expected one"):
        Artifact.open(project.art, expect=OTHER)
    with pytest.raises(ArtifactError, match="not the expected one"):
        load_and_merge.load_task(project.art, project.base, "cars", expect=OTHER)
    with pytest.raises(UsageError):
        Artifact.open(project.art, expect="latest")


def test_an_opened_artifact_is_verified_as_the_one_that_was_opened(project):
    opened = Artifact.open(project.art)
    project.edit_manifest(lambda m: m["merges"]["merged"].update(scaling=2.0))
    with pytest.raises(ArtifactError, match="not the expected one"):
        opened.verify()


def test_every_command_prints_the_id(project, svdh):
    import json

    id_ = identity(project)
    assert id_ in svdh("verify", "--artifact-dir", project.art).out
    assert f"sha256:{id_}" in svdh("inspect", "--artifact-dir", project.art).out
    out = Path(project.root / "x.safetensors")
    assert json.loads(svdh(*project.reload("--json", output_path=out)).out)["artifact_id"] == id_
    new = json.loads(svdh(*project.compress("--json", "--profile", "fast")).out)
    assert new["artifact_id"] in svdh("verify", "--artifact-dir", project.root / "new").out
