"""Artifacts and checkpoints made to harm: refused at once, in little memory, in one clear message.

Each case runs in a process of its own and is held against an honest run of the same command.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from faults.mutations import reseal
from safetensors.torch import save_file

from tests.cli.project import Project
from tests.faults.apart import Outcome, run_apart

MOST_SECONDS = 10
MOST_BYTES = 512 * 2**20
MOST_CHARACTERS = 500
Change = Callable[[Project], object]


def words(project: Project, command: str) -> list[object]:
    base = ["--base-model-path", project.base]
    return {
        "reload": project.reload(),
        "verify": ["verify", "--artifact-dir", project.art],
        "deep": ["verify", "--deep", "--artifact-dir", project.art],
        "deep with base": ["verify", "--deep", "--artifact-dir", project.art, *base],
        "inspect": ["inspect", "--artifact-dir", project.art],
        "compress": project.compress("-q", "--profile", "fast"),
    }[command]


@cache
def honest_peak() -> int:
    """Of a process that does nothing but start a command."""
    return run_apart(["methods"]).peak_bytes


def refused(project: Project, command: str, codes: tuple[int, ...]) -> Outcome:
    before = project.snapshot()
    outcome = run_apart(words(project, command))
    assert outcome.code in codes, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n  fix:   ") == 1
    assert "Traceback" not in outcome.err
    assert len(outcome.err) <= MOST_CHARACTERS
    assert all(char == "\n" or char.isprintable() for char in outcome.err + outcome.out)
    assert outcome.seconds < MOST_SECONDS
    assert outcome.peak_bytes - honest_peak() < MOST_BYTES
    assert project.snapshot() == before
    return outcome


def manifest(data: bytes) -> Change:
    return lambda project: (project.art / "manifest.json").write_bytes(data)


def facts(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda project: reseal(project.art, change)


def index(data: bytes) -> Change:
    """Any bytes as the index, with digests that fit."""

    def change(project: Project) -> None:
        (project.art / "index.json.zst").write_bytes(data)
        record = json.loads((project.art / "manifest.json").read_bytes())
        from svd_hybrid.artifact.jsonfile import canonical_json
        from svd_hybrid.artifact.manifest import sealed

        for file in record["files"]:
            if file["path"] == "index.json.zst":
                file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (project.art / "manifest.json").write_bytes(canonical_json(sealed(record)))

    return change


def shard(change: Callable[[bytes], bytes]) -> Change:
    """Another content for the first shard, with digests that fit."""

    def rewrite(project: Project) -> None:
        path = min(project.art.glob("*/*.safetensors"))
        data = change(path.read_bytes())
        digest = hashlib.sha256(data).hexdigest()
        path.unlink()
        path.with_name(f"{digest}.safetensors").write_bytes(data)
        new = {"path": f"{path.parent.name}/{digest}.safetensors", "bytes": len(data)}

        def relist(record: dict[str, Any]) -> None:
            for file in record["files"]:
                if file["path"].endswith(path.name):
                    file |= new | {"sha256": digest}

        reseal(project.art, relist)

    return rewrite


def header(text: bytes) -> Callable[[bytes], bytes]:
    return lambda data: (
        len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]
    )


def streams(shape: str, end: int) -> Callable[[bytes], bytes]:
    entry = f'{{"dtype":"U8","shape":{shape},"data_offsets":[0,{end}]}}'
    return header(f'{{"streams":{entry}}}'.encode())


def part_of(record: dict[str, Any]) -> dict[str, Any]:
    tensor = next(tensor for tensor in record["tensors"] if tensor.get("parts"))
    part: dict[str, Any] = next(iter(tensor["parts"].values()))
    return part


def all_parts(rows: int, columns: int, *, shapes: bool) -> Change:
    """Every part (and tensor) claims to be so large."""

    def change(record: dict[str, Any]) -> None:
        for tensor in record["tensors"]:
            for part in tensor.get("parts", {}).values():
                part |= {"rows": rows, "columns": columns}
            if shapes and tensor.get("parts"):
                tensor["shape"] = [rows, columns]

    return facts(change)


def many_terms(record: dict[str, Any]) -> None:
    tensor = next(tensor for tensor in record["tensors"] if tensor.get("task"))
    for _ in range(11):
        tensor["task"] = {"op": "sum", "terms": [tensor["task"]] * 2}


def add_file(path: str) -> Change:
    def change(record: dict[str, Any]) -> None:
        record["files"].append({"path": path, "bytes": 3, "sha256": "0" * 64})
        record["files"].sort(key=lambda file: file["path"])

    return facts(change)


def link(name: str, target: str) -> Change:
    def change(project: Project) -> None:
        (project.art / name).unlink()
        (project.art / name).symlink_to(target)

    return change


LEAST = b'{"format":"svdh-artifact","format_version":%b}'
PATHS = (
    *(
        "../../x",
        "/etc/passwd",
        "C:\\x",
        "coeffs/../manifest.json",
        "CON",
        "/dev/zero",
        "README.MD",
    ),
    *("manifest.json", "\x1b[31m", "coeffs/" + "A" * 64 + ".safetensors", "x" * 250),
)
MANIFESTS: dict[str, Change] = {
    "lists inside lists": manifest(b"[" * 10**6),
    "objects inside objects": manifest(b'{"a":' * 10**6),
    "a million objects": manifest(b"[" + b"{}," * 3 * 10**6 + b"{}]"),
    "many keys": manifest(b"{" + b",".join(b'"%d":1' % i for i in range(10**5 * 3)) + b"}"),
    "a file of spaces": manifest(b" " * (65 * 2**20)),
    "a key twice": manifest(b'{"format":1,"format":1}'),
    "not a number": manifest(LEAST % b"NaN"),
    "an endless integer": manifest(LEAST % (b"1" + b"0" * 10**5)),
    "a long integer": manifest(LEAST % (b"1" + b"0" * 4000)),
    "a long version": manifest(LEAST % (b'"' + b"v" * 10**5 + b'"')),
    "a version of escapes": manifest(LEAST % b'"\\u001b[31m\\u202e"'),
    "a lone surrogate": manifest(b'{"format":"svdh-artifact","format_version":1,"\\ud800":1}'),
    "a device": link("manifest.json", "/dev/zero"),
    "a link to itself": link("manifest.json", "manifest.json"),
    "100000 tasks": facts(lambda m: m.update(tasks=[f"t{i}" for i in range(10**5)])),
    "a task of escapes": facts(lambda m: m["tasks"].append("\x1b[31m")),
    "17 axes": facts(lambda m: m["tensors"][0].update(shape=[1] * 17)),
    "a negative size": facts(lambda m: m["tensors"][0].update(shape=[-1])),
    "a file of 2^63 bytes": facts(lambda m: m["files"][0].update(bytes=2**63)),
    "an unknown codec of escapes": facts(lambda m: m["codecs"][0].update(name="\x1b[31m" * 99)),
    "a huge codec version": facts(lambda m: m["codecs"][0].update(version=10**300)),
    "a codec with a huge key": facts(lambda m: m["codecs"][0].update(zzz="x" * 10**5)),
    "an expression of 2^11 terms": facts(many_terms),
    "a part of 2^32 columns": facts(lambda m: part_of(m).update(columns=2**32 - 1)),
    "a part of 2^31 rows": facts(lambda m: part_of(m).update(rows=2**31)),
    "a rank above the size": facts(lambda m: part_of(m).update(rows=1000)),
    "an index that is a bomb": index(zstandard.compress(b" " * 2**29)),
    "an index that states 2^40 bytes": index(
        b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + b"\x01\x00\x00"
    ),
    "an index of depth": index(zstandard.compress(b"[" * 10**6)),
    "an index of objects": index(zstandard.compress(b'{"tensors":[' + b"{}," * 10**6 + b"{}]}")),
    "an index of noise": index(b"noise"),
} | {f"the path {path[:24]!r}": add_file(path) for path in PATHS}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_with(project, case):
    MANIFESTS[case](project)
    for command in ("reload", "verify"):
        refused(project, command, (4, 6, 9))


@pytest.mark.parametrize("case", ["many keys", "an index that is a bomb", "a task of escapes"])
def test_every_command_refuses_a_manifest_with(project, case):
    MANIFESTS[case](project)
    for command in ("inspect", "deep", "deep with base"):
        refused(project, command, (4, 6, 9))


SHARDS: dict[str, Change] = {
    "a header of 2^62 bytes": shard(lambda data: (2**62).to_bytes(8, "little") + data[8:]),
    "lists inside lists": shard(header(b"[" * 10**6)),
    "a negative size": shard(streams("[-1]", -1)),
    "a size with a point": shard(streams("[1.0]", 1)),
    "a terabyte": shard(streams("[1099511627776]", 2**40)),
    "a size of 4000 digits": shard(streams("[1" + "0" * 4000 + "]", 1)),
    "100000 axes": shard(streams(str([1] * 10**5), 1)),
    "offsets that overlap": shard(
        header(
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            b'"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}'
        )
    ),
    "a key twice": shard(header(b'{"a":1,"a":2}')),
    "escapes in a name": shard(
        header(b'{"\\u001b[31m":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}}')
    ),
}


@pytest.mark.parametrize("case", SHARDS)
def test_a_shard_with(project, case):
    SHARDS[case](project)
    for command in ("reload", "deep"):
        refused(project, command, (4, 9))


@pytest.mark.parametrize("shapes", [False, True])
@pytest.mark.parametrize("size", [(2**32 - 1, 2**32 - 1), (1, 2**28)])
@pytest.mark.parametrize("profile", ["auto", "fast", "exact"])
def test_parts_that_claim_to_be_huge(project, svdh, profile, size, shapes):
    argv = project.compress("-q", "--overwrite", "--profile", profile, artifact_dir=project.art)
    assert svdh(*argv).code == 0
    all_parts(*size, shapes=shapes)(project)
    refused(project, "deep", (4,))
    refused(project, "reload", (4, 5) if shapes else (4,))


def compressed_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**29))
        archive.writestr("a/version", "3")


def tensors_file(text: bytes, length: int | None = None) -> Callable[[Path], object]:
    size = len(text) if length is None else length
    return lambda path: path.write_bytes(size.to_bytes(8, "little") + text + b"1234")


def entry(shape: str, offsets: str) -> bytes:
    return f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'.encode()


NAMES = [f"layer.{i}." + "n" * 300 for i in range(1000)]
CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a header of 2^62 bytes": (tensors_file(b"{" + b" " * 99, 2**62), ""),
    "a terabyte": (tensors_file(entry("[1099511627776]", "[0,4398046511104]")), ""),
    "sizes that overflow": (tensors_file(entry("[4294967296,4294967296]", "[0,4]")), ""),
    "a negative size": (tensors_file(entry("[-1]", "[0,4]")), ""),
    "lists inside lists": (tensors_file(b'{"a":' * 10**5), ""),
    "a git-lfs pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "web page"),
    "a gzip archive": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(99)), "gzip"),
    "a tar archive": (lambda path: path.write_bytes(b"x".ljust(257, b"\0") + b"ustar"), "tar"),
    "a compressed pickle": (compressed_pickle, "compressed"),
    "a view of a terabyte": (
        lambda path: torch.save({"w": torch.zeros(1).expand(10**12)}, path),
        "",
    ),
    "a thousand long names": (
        lambda path: save_file({name: torch.zeros(1) for name in NAMES}, path),
        "",
    ),
    "names of escapes": (lambda path: save_file({"\x1b]0;x\x07\u202e": torch.zeros(1)}, path), ""),
    "a link to itself": (lambda path: path.symlink_to(path), ""),
    "a device": (lambda path: path.symlink_to("/dev/zero"), ""),
    "a pipe": (os.mkfifo, ""),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_that_is(project, case, suffix):
    make, said = CHECKPOINTS[case]
    project.checkpoint("cars").unlink()
    make(project.checkpoint("cars").with_suffix(suffix))
    assert said in refused(project, "compress", (3, 8, 9)).err


def test_names_that_look_like_paths_are_only_names(project, svdh):
    names = {"../../x": 3.0, "CON": 2.0, "/abs": 1.0, "a\nb": 4.0, "": 5.0}
    for number, path in enumerate([project.base, *sorted(project.ckpts.iterdir())]):
        state = {name: torch.full((3,), value + number) for name, value in names.items()}
        save_file(state, path)
    before = set(project.root.parent.iterdir())
    assert svdh(*project.compress("-q", "--profile", "exact")).code == 0
    made = {"artifact_dir": project.root / "new", "output_path": project.root / "folder"}
    assert svdh(*project.reload("--task", "cars", "--max-shard-size", "12", **made)).code == 0
    assert set(project.root.parent.iterdir()) == before
    files = sorted(path.name for path in (project.root / "folder").iterdir())
    assert len([name for name in files if name.startswith("model-0000")]) == 5
    from svd_hybrid.io.reader import open_checkpoint

    back = open_checkpoint(project.root / "folder")
    assert {name: float(back.read(name)[0]) for name in back.infos} == {
        name: value + 1 for name, value in names.items()
    }
