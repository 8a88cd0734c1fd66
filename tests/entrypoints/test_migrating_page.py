"""docs/migrating.md says what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from svd_hybrid import hydra_entry
from svd_hybrid.cli.original import original
from svd_hybrid.errors import ArtifactError
from svd_hybrid.legacy import region
from svd_hybrid.legacy.files import Problems
from tests.entrypoints.conftest import ROOT

PAGE = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")


def test_every_flag_of_the_table_is_an_option():
    table = PAGE.partition("## Flags of")[2].partition("## Files")[0]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| `--")]
    flags = {f: row[2] for row in rows for f in re.findall(r"--[a-z0-9-]+", row[1])}
    options = {o for p in original.params for o in (*p.opts, *p.secondary_opts)}
    gone = {flag for flag, text in flags.items() if text.strip().startswith("gone")}
    assert set(flags) - gone <= options | {"--no-"}
    assert len(gone) == 5
    assert not gone & options


def test_the_hydra_example_runs(here: Path):
    pytest.importorskip("hydra")
    (here / "my_config.yaml").write_text(PAGE.partition("```yaml\n")[2].partition("```")[0])
    assert hydra_entry.main(["-cd", ".", "-cn", "my_config", "tasks=[Cars,DTD]", "-q"]) == 0
    assert (here / "output" / "merged_state_dict.pt").is_file()


def test_every_reason_to_refuse_is_on_the_page():
    for text in ("mean is missing", "low coefficients are NaN", "another meaning of scale"):
        assert text in PAGE
        kinds = [value for name, value in vars(region).items() if name.isupper()]
        assert any(text in str(kind) for kind in kinds)


def test_problems_are_reported_once_and_together():
    problems = Problems()
    problems.raise_if_any(Path("old"))
    problems.add("weights are missing")
    for number in range(12):
        problems.add("masks are needed", f"t{number}")
    with pytest.raises(ArtifactError) as caught:
        problems.raise_if_any(Path("old"))
    assert caught.value.what.endswith("for 2 reasons; the first: weights are missing")
    first, second = caught.value.__notes__
    assert first == "weights are missing"
    assert second.startswith("masks are needed: 't0', ")
    assert second.endswith("and 2 more")
