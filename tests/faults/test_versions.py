"""What a later release wrote is refused as such, and the message says what reads it."""

from __future__ import annotations

import pytest

from svd_hybrid import __version__
from tests.format.families import read_record


def first(manifest: dict, key: str) -> dict:
    return next(tensor for tensor in manifest["tensors"] if tensor.get(key))


LATER = {
    "a version that says what it needs": (
        lambda m: m.update(format_version=2, needs="0.4.0"),
        ("format version 2", "svdh 0.4.0"),
    ),
    "a version that does not": (
        lambda m: m.update(format_version=3),
        ("format version 3", f"newer than {__version__}"),
    ),
    "a version that needs escapes": (
        lambda m: m.update(format_version=2, needs="\x1b[31m" * 99),
        ("format version 2", "\\x1b[31m"),
    ),
    "an unknown codec": (
        lambda m: m["codecs"][0].update(name="neural"),
        ("unknown codec 'neural'", f"newer than {__version__}"),
    ),
    "a later codec": (
        lambda m: m["codecs"][0].update(version=7),
        ("has version 7", f"newer than {__version__}"),
    ),
    "an unknown operation": (
        lambda m: first(m, "task")["task"].update(op="spline"),
        ("unknown expression 'spline'", f"newer than {__version__}"),
    ),
}


@pytest.mark.parametrize("case", LATER)
def test_every_command_refuses_with_exit_code_6(project, svdh, case):
    change, said = LATER[case]
    project.edit_manifest(change)
    for argv in (
        project.reload(),
        ["verify", "--artifact-dir", project.art],
        ["verify", "--deep", "--artifact-dir", project.art],
        ["inspect", "--artifact-dir", project.art],
    ):
        run = svdh(*argv)
        assert run.code == 6, run.err
        assert all(text in run.err for text in said), run.err


def test_an_unknown_field_is_damage_and_no_extension(project, svdh):
    project.edit_manifest(lambda m: m.update(needs="0.4.0"))
    assert read_record(project.art)["format_version"] == 1
    assert svdh(*project.reload()).code == 4
