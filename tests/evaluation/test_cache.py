"""Kept results: found again only when nothing they depend on has changed, and never half."""

from __future__ import annotations

import json
import threading

import pytest

from svd_hybrid import cache as module
from svd_hybrid.cache import ResultsCache, code_digest, default_folder
from svd_hybrid.errors import StorageError

KEY = {"model": {"tensors": "aa"}, "task": "cars", "evaluation": {"data": "bb", "window": 4}}
ABOUT = {"model": "base", "task": "cars", "part": "all", "evaluator": "vision"}


@pytest.fixture
def kept(tmp_path):
    found = ResultsCache(tmp_path / "kept")
    found.put(KEY, {"scores": {"accuracy": 81.5}}, ABOUT)
    return found


def the_file(kept):
    (entry,) = kept.entries()
    return entry.path


def test_what_was_put_is_found(kept):
    assert kept.get(KEY) == {"scores": {"accuracy": 81.5}}
    (entry,) = kept.entries()
    assert (dict(entry.about), entry.nbytes) == (ABOUT, entry.path.stat().st_size)
    assert kept.damaged() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"tensors": "ab"}},
        {"task": "dtd"},
        {"evaluation": {"data": "bc", "window": 4}},
        {"evaluation": {"data": "bb", "window": 5}},
        {"more": 1},
    ],
)
def test_any_other_key_is_a_miss(kept, change):
    assert kept.get({**KEY, **change}) is None


def test_other_code_or_libraries_are_a_miss(kept, monkeypatch):
    monkeypatch.setattr(module, "code_digest", lambda: "other")
    assert kept.get(KEY) is None
    monkeypatch.undo()
    monkeypatch.setattr(module, "library_versions", lambda: {"torch": "0"})
    assert kept.get(KEY) is None
    monkeypatch.undo()
    assert kept.get(KEY) is not None


def test_the_code_digest_sees_every_source_file(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "cache.py").write_text("a")
    (tmp_path / "sub" / "b.py").write_text("b")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "cache.py"))
    digests = [code_digest.__wrapped__()]
    (tmp_path / "sub" / "b.py").write_text("c")
    digests.append(code_digest.__wrapped__())
    (tmp_path / "sub" / "b.py").rename(tmp_path / "sub" / "d.py")
    digests.append(code_digest.__wrapped__())
    assert len(set(digests)) == 3


def test_a_damaged_entry_counts_as_absent_and_is_written_anew(kept):
    path = the_file(kept)
    whole = path.read_bytes()
    other = json.loads(whole)
    other["value"]["scores"]["accuracy"] = 99.0
    damages = [
        whole[: len(whole) // 2],
        b"",
        b"[]",
        b"\x00\xff",
        json.dumps(other).encode(),
        whole.replace(b"81.5", b"NaN"),
    ]
    for data in damages:
        path.write_bytes(data)
        assert kept.get(KEY) is None
        assert kept.damaged() == 1
        kept.put(KEY, {"scores": {"accuracy": 81.5}}, ABOUT)
        assert kept.get(KEY) == {"scores": {"accuracy": 81.5}}


def test_an_entry_in_the_place_of_another_counts_as_absent(kept):
    other = {**KEY, "task": "dtd"}
    kept.put(other, {"scores": {"accuracy": 1.0}}, ABOUT)
    first, second = (entry.path for entry in kept.entries())
    second.write_bytes(first.read_bytes())
    assert {kept.get(KEY) is None, kept.get(other) is None} == {True, False}


def test_writers_at_the_same_time(tmp_path):
    kept = ResultsCache(tmp_path)

    def write(writer: int) -> None:
        for number in range(20):
            kept.put({"n": number}, {"scores": {"s": float(number)}}, {"writer": str(writer)})

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [kept.get({"n": n}) for n in range(20)] == [
        {"scores": {"s": float(n)}} for n in range(20)
    ]
    assert len(list(kept.entries())) == 20
    assert kept.damaged() == 0


def test_clear_deletes_results_and_leftovers_and_nothing_else(kept):
    path = the_file(kept)
    leftover = path.parent / f".{path.stem}.x1.part"
    leftover.write_bytes(b"half")
    foreign = path.parent / "thesis.json"
    foreign.write_text("mine")
    assert kept.damaged() == 1
    assert kept.clear()[0] == 2
    assert foreign.read_text() == "mine"
    assert kept.get(KEY) is None


def test_a_writer_that_fails_leaves_nothing(kept, monkeypatch):
    monkeypatch.setattr(module.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(StorageError, match="results cache"):
        kept.put({"n": 1}, {"scores": {}}, ABOUT)
    monkeypatch.undo()
    assert [p for p in kept.folder.rglob("*") if p.is_file()] == [the_file(kept)]


def test_where_results_lie(monkeypatch, tmp_path):
    assert default_folder() == tmp_path / "cache"
    monkeypatch.delenv("SVDH_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x" / "svdh"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "svdh"
