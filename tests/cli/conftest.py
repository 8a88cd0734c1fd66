"""Fixtures: a family with its artifact, and the command line in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from svd_hybrid.cli.app import main
from tests.cli.project import Project, Run, make_family


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Made once; tests copy it."""
    root = tmp_path_factory.mktemp("made")
    make_family(root)
    assert main(Project(root).compress("-q", artifact_dir=root / "art")) == 0
    return root


@pytest.fixture
def project(made, tmp_path) -> Project:
    """A user's folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path)


@pytest.fixture
def svdh(capsys) -> Callable[..., Run]:
    """Run one command line in this process."""

    def run(*argv: object) -> Run:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run
