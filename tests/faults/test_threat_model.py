"""docs/threat-model.md names tests that exist and limits that are true."""

from __future__ import annotations

import re
from pathlib import Path

from svd_hybrid import limits

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


def test_every_promise_names_a_test_that_exists():
    rows = re.findall(r"^\d+\. .*\n(?:   .*\n)*", TEXT, re.MULTILINE)
    assert len(rows) == 12
    for row in rows:
        paths = re.findall(r"`(tests/[^`]+)`", row)
        assert paths, row
        for path in paths:
            assert "def test_" in (ROOT / path).read_text(encoding="utf-8"), path


def power(number: int) -> str:
    assert number & (number - 1) == 0
    return "2" + str(number.bit_length() - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def test_the_limits_are_those_of_the_code():
    mebibytes = f"{limits.MOST_JSON_BYTES >> 20} MiB"
    rows = (
        f"{mebibytes}, {power(limits.MOST_JSON_VALUES)}, {limits.MOST_JSON_DEPTH}",
        f"{limits.MOST_TASKS}, {limits.MOST_MERGES}, {limits.MOST_CODECS}, {limits.MOST_PARTS}",
        f"{limits.MOST_EXPRESSION_NODES}, 16",
        f"{limits.UNVOUCHED_BYTES >> 20} MiB, or {power(limits.UNVOUCHED_RATIO)} for each",
        f"{limits.MOST_CONFIG_BYTES >> 10} KiB, {limits.MOST_DIGITS}",
        f"{power(limits.MOST_OPCODES)}, {limits.MOST_PICKLE_BYTES >> 20} MiB, "
        f"{power(limits.MOST_MEMBERS)}, {limits.DEEPEST_MODULE}",
    )
    for row in rows:
        assert f"| {row}" in TEXT, row


def test_the_page_is_short():
    assert len(TEXT.splitlines()) < 120
