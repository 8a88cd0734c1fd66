"""A small run of the release bench: damage to every file of every golden artifact."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from faults.fuzz import PROMISES, Bench, golden_pairs, run
from faults.mutations import DAMAGES, Mutation, damage, files_of, forge, reseal

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.files import read_manifest
from tests.families import SHAPES, pack, write_family

PAIRS = golden_pairs()
AUTO = next(pair for pair in PAIRS if pair[0].name == "golden-v1-auto")


def test_no_damage_is_silent_and_verify_names_the_file():
    said: list[str] = []
    figures = run(130, seed=1, tell=said.append)
    assert {promise: figures[promise] for promise in PROMISES} == dict.fromkeys(PROMISES, 0), said
    assert figures["files"] == sum(len(files_of(artifact)) for artifact, _ in PAIRS)
    assert figures["damaged"] > 50
    assert figures["forged_found_by_deep"] > 0
    assert figures["slowest_s"] < 10


def test_no_damage_to_shards_of_many_blocks_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK_BYTES", 128)
    family = write_family(tmp_path / "family", SHAPES)
    pairs = [(pack(family, tmp_path / p, profile=p).path, family.base) for p in ("hybrid", "fast")]
    for artifact, _ in pairs:
        assert any(len(file.blocks) > 300 for file in read_manifest(artifact).files)
    said: list[str] = []
    figures = run(70, seed=2, pairs=pairs, tell=said.append)
    assert {promise: figures[promise] for promise in PROMISES} == dict.fromkeys(PROMISES, 0), said
    assert figures["damaged"] > 30


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_kind_of_damage_changes_something(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("faults.mutations.DAMAGES", {kind: DAMAGES[kind]})
    copy = Path(shutil.copytree(AUTO[0], tmp_path / "artifact"))
    before = {path: (copy / path).read_bytes() for path in files_of(copy)}
    damage(copy, "config.json", PAIRS[-1][0], random.Random(3))
    assert {path: (copy / path).read_bytes() for path in files_of(copy)} != before


def bench(tmp_path: Path, said: list[str]) -> Bench:
    (tmp_path / "scratch").mkdir()
    return Bench(*AUTO, tmp_path / "scratch", random.Random(0), said.append)


def test_the_bench_notices_a_reload_that_gives_other_bits(tmp_path):
    """As if reload did not check digests: a forged artifact passed off as a damaged one."""
    said: list[str] = []
    judge = bench(tmp_path, said)
    copy = Path(shutil.copytree(AUTO[0], tmp_path / "scratch" / "artifact"))
    reseal(copy, lambda record: record["merges"]["merged"].update(scaling=2.0))
    judge._rebuild(copy, Mutation("none", ("manifest.json",)))
    assert judge.figures["silent"] == 1
    assert said


def test_the_bench_notices_a_verify_that_finds_nothing(tmp_path):
    judge = bench(tmp_path, [])
    copy = Path(shutil.copytree(AUTO[0], tmp_path / "scratch" / "artifact"))
    judge._judge_damaged(copy, Mutation("none", ("manifest.json",)))
    assert judge.figures["missed"] == 1


def test_the_bench_notices_a_crash_and_left_overs(tmp_path, monkeypatch):
    judge = bench(tmp_path, [])
    judge._judge(1, "error: internal error", Mutation("none", ()))
    judge._judge(3, "x" * 501, Mutation("none", ()))
    (tmp_path / "scratch" / ".out.staging-1").touch()
    judge._judge(4, "", Mutation("none", ()))
    assert [judge.figures[name] for name in PROMISES[2:6]] == [1, 1, 1, 1]


class Chosen(random.Random):
    """Forges one bit of the first shard it is shown."""

    def __init__(self, shard: str, byte: int, bit: int) -> None:
        super().__init__(0)
        self.shard, self.places = shard, [byte, bit]

    def random(self) -> float:
        return 0.0

    def choice(self, _shards: object) -> str:  # type: ignore[override]
        return self.shard

    def randrange(self, *_: int) -> int:  # type: ignore[override]
        return self.places.pop(0)


@pytest.mark.parametrize(
    ("bit", "verified", "promise"),
    [(6, False, "forged_rounding"), (7, False, "forged_found_by_deep"), (7, True, "hidden")],
)
def test_the_bench_tells_what_has_a_digest_from_what_has_none(
    tmp_path, monkeypatch, bit, verified, promise
):
    """A changed magnitude that a task's dtype rounds away, and one that it does not.

    The merge of the tasks shows both. Where `verified`, verify is made to find nothing.
    """
    artifact, base = next(pair for pair in PAIRS if pair[0].name == "golden-v1-compeft")
    shard = read_manifest(artifact).tensor("embed.weight").parts["coeff"].spans[0]
    path = read_manifest(artifact).files[shard.file].path
    (tmp_path / "scratch").mkdir()
    judge = Bench(artifact, base, tmp_path / "scratch", random.Random(0), lambda _: None)
    copy = Path(shutil.copytree(artifact, tmp_path / "scratch" / "artifact"))
    mutation = forge(copy, Chosen(path, 120, bit))
    run_command = judge._run
    if verified:
        monkeypatch.setattr(
            judge, "_run", lambda *argv: (0, "", "") if "verify" in argv else run_command(*argv)
        )
    judge._judge_forged(copy, mutation)
    found = {
        name: judge.figures[name] for name in ("forged_rounding", "forged_found_by_deep", "hidden")
    }
    assert found == {name: int(name == promise) for name in found}


def test_forged_artifacts_are_sealed(tmp_path):
    for seed in range(12):
        copy = Path(shutil.copytree(AUTO[0], tmp_path / f"artifact{seed}"))
        forge(copy, random.Random(seed))
        manifest = json.loads((copy / "manifest.json").read_bytes())
        listed = manifest.get("files")
        if isinstance(listed, list) and all(isinstance(file, dict) for file in listed):
            assert manifest["checksum"]
