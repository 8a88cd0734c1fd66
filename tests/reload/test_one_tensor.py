"""One tensor from an artifact: what else lies in it is neither read nor trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.fuzz import golden_pairs
from torch import Tensor

from svd_hybrid import Artifact
from svd_hybrid.artifact import checked_file, layout
from svd_hybrid.artifact.files import directory_bytes, read_manifest
from svd_hybrid.artifact.layout import SHARD_PATTERN, STREAMS, array_name
from svd_hybrid.artifact.manifest import Manifest, TensorRecord
from svd_hybrid.artifact.shards import header_bytes, read_header
from svd_hybrid.errors import (
    ArtifactError,
    BaseMismatchError,
    LockedError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from tests.families import SHAPES, FamilyFiles, load_state, pack, write_family, write_states
from tests.format import minimal_reader
from tests.format.families import edit_manifest

TASKS = ("ant", "bee", "cat")
SMALL_BLOCKS = 128
LARGE = {"deep.weight": (60, 80), "wide.weight": (40, 90)}
PROFILES = ("auto", "hybrid", "exact")
Ranges = dict[str, set[int]]
"""Path of a shard → bytes of it."""


def same(one: Tensor, other: Tensor) -> bool:
    bits = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


# --- it is the tensor that iter_tensors gives -----------------------------------------------------


@pytest.mark.parametrize(("golden", "base"), golden_pairs(), ids=lambda path: path.name)
def test_every_tensor_of_every_golden_artifact(golden, base):
    artifact = Artifact.open(golden)
    asked: list[dict[str, Any]] = [{}, {"task": artifact.tasks[-1]}, {"dtype": "F16"}]
    asked += [{"merge": name} for name in artifact.merges]
    asked.append({"weights": dict.fromkeys(artifact.tasks, 0.25)})
    for selection in asked:
        afresh = Artifact.open(golden)
        for name, tensor in artifact.iter_tensors(base, **selection):
            assert same(afresh.tensor(name, base, **selection), tensor)
    if golden.name == "golden-v1-exact":
        with pytest.raises(UsageError, match="a base that was not given"):
            artifact.tensor("proj.weight", task="alpha")
        return
    for name, delta in artifact.iter_tensors(task=artifact.tasks[0]):
        assert same(artifact.tensor(name, task=artifact.tasks[0]), delta)


def test_a_name_that_is_not_there():
    golden, base = golden_pairs()[0]
    artifact = Artifact.open(golden)
    with pytest.raises(UnknownNameError, match=r"no tensor 'mlp.weigth'") as caught:
        artifact.tensor("mlp.weigth", base)
    assert "mlp.weight" in caught.value.fix
    with pytest.raises(UsageError, match="dtype is 'F8'"):
        artifact.tensor("mlp.weight", base, dtype="F8")
    with pytest.raises(UnknownNameError, match="no task 'alhpa'"):
        artifact.tensor("mlp.weight", base, task="alhpa")


# --- only its bytes are read ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    folder = tmp_path_factory.mktemp("family")
    plain = write_family(folder / "plain", {**SHAPES, **LARGE}, TASKS, seed=5)
    base, *states = (load_state(path) for path in (plain.base, *plain.tasks.values()))
    for state in (base, *states):
        state["twin"] = state["embed.weight"].clone()
        state["steps"] = torch.tensor([1, 2])
    return write_states(folder / "family", base, dict(zip(TASKS, states, strict=True)))


@pytest.fixture(scope="module", params=PROFILES)
def made(request, family, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("packed") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_BYTES", SMALL_BLOCKS)
        return pack(family, folder, profile=request.param).path


@pytest.fixture
def packed(made, family, monkeypatch) -> tuple[Path, FamilyFiles]:
    """An artifact with blocks so small that most tensors have some of their own."""
    monkeypatch.setattr(layout, "BLOCK_BYTES", SMALL_BLOCKS)
    return made, family


def own_bytes(folder: Path, manifest: Manifest, record: TensorRecord, task: int) -> Ranges:
    """Where the arrays and strings of one task's tensor lie."""
    name = record.alias or record.name
    ordinal = [tensor.name for tensor in manifest.tensors].index(name)
    headers = {
        file.path: read_header(folder / file.path)
        for file in manifest.files
        if SHARD_PATTERN.fullmatch(file.path)
    }
    found: Ranges = {}
    for part_name, part in manifest.tensors[ordinal].parts.items():
        if part.spans is not None:
            span = part.spans[task if part.stacked else 0]
            if span.length:
                path = manifest.files[span.file].path
                begin = headers[path][STREAMS].begin + span.offset
                found.setdefault(path, set()).update(range(begin, begin + span.length))
            continue
        for path, arrays in headers.items():
            for array, info in arrays.items():
                if array.startswith(array_name(ordinal, part_name, "")):
                    size = info.nbytes // info.shape[0]
                    begin = info.begin + (task * size if part.stacked else 0)
                    found.setdefault(path, set()).update(range(begin, begin + size))
    return found


def needed_bytes(folder: Path, manifest: Manifest, own: Ranges) -> Ranges:
    """Those, the headers that say where arrays are, and what shares a block with them."""
    of_tasks = {
        manifest.files[span.file].path
        for tensor in manifest.tensors
        for part in tensor.parts.values()
        for span in part.spans or ()
        if part.stacked and span.length
    }
    found: Ranges = {}
    for file in manifest.files:
        if not SHARD_PATTERN.fullmatch(file.path):
            continue
        wanted = set(own.get(file.path, ()))
        if wanted or file.path not in of_tasks:
            wanted.update(range(header_bytes(folder / file.path)))
        size = layout.BLOCK_BYTES if file.blocks else file.bytes
        found[file.path] = {
            byte
            for block in {byte // size for byte in wanted}
            for byte in range(block * size, min((block + 1) * size, file.bytes))
        }
    return found


def damage_all_but(folder: Path, manifest: Manifest, kept: Ranges) -> float:
    """Turn every other byte of the artifact around; the share of the shards that those are."""
    damaged = total = 0
    for file in manifest.files:
        if file.path == layout.INDEX:
            continue
        data = bytearray((folder / file.path).read_bytes())
        others = set(range(len(data))) - kept.get(file.path, set())
        for byte in others:
            data[byte] ^= 0xFF
        (folder / file.path).write_bytes(data)
        if SHARD_PATTERN.fullmatch(file.path):
            damaged, total = damaged + len(others), total + len(data)
    return damaged / total


def test_every_other_byte_may_be_damaged(packed, tmp_path):
    folder, family = packed
    manifest = read_manifest(folder)
    for index, task in enumerate(TASKS[:2]):
        whole = dict(Artifact.open(folder).iter_tensors(family.base, task=task))
        for record in manifest.tensors:
            copy = Path(shutil.copytree(folder, tmp_path / f"{record.name}-{task}"))
            own = own_bytes(folder, manifest, record, index)
            damaged = damage_all_but(copy, manifest, needed_bytes(folder, manifest, own))
            artifact = Artifact.open(copy)
            assert same(artifact.tensor(record.name, family.base, task=task), whole[record.name])
            assert damaged > 0.3
            with pytest.raises(ArtifactError):
                list(artifact.iter_tensors(family.base, task=task))


def test_no_byte_of_its_own_may_be_damaged(packed, tmp_path):
    folder, family = packed
    manifest = read_manifest(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name in LARGE:
        own = own_bytes(folder, manifest, manifest.tensor(name), 1)
        places = [(path, byte) for path, found in own.items() for byte in sorted(found)]
        assert len(places) > 20
        for path, byte in places[:: max(1, len(places) // 25)]:
            data = bytearray((folder / path).read_bytes())
            data[byte] ^= 1 << byte % 8
            (copy / path).write_bytes(data)
            with pytest.raises(ArtifactError, match=r"file content .* in bytes") as caught:
                Artifact.open(copy).tensor(name, family.base, task="bee")
            assert path in caught.value.where
            with pytest.raises(ArtifactError):
                Artifact.open(copy).tensor(name, family.base)  # the merge has its bytes too
            shutil.copy(folder / path, copy / path)
    assert Artifact.open(copy).verify().problems == []


def test_a_changed_header_or_length_is_refused(packed, tmp_path):
    folder, family = packed
    manifest = read_manifest(folder)
    own = own_bytes(folder, manifest, manifest.tensor("deep.weight"), 0)
    for number, path in enumerate(own):
        copy = Path(shutil.copytree(folder, tmp_path / str(number)))
        data = (folder / path).read_bytes()
        for changed in (b"\xff" + data[1:], data[:9] + b"~" + data[10:], data[:-1], data + b"\0"):
            (copy / path).write_bytes(changed)
            with pytest.raises(ArtifactError):
                Artifact.open(copy).tensor("deep.weight", family.base, task="ant")


def with_arrays_swapped(data: bytes) -> bytes:
    """A shard of as many bytes whose header gives every array the place of one of its size."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    alike: dict[str, list[str]] = {}
    for name, entry in header.items():
        alike.setdefault(f"{entry['dtype']} {entry['shape']}", []).append(name)
    offsets = {name: entry["data_offsets"] for name, entry in header.items()}
    for names in alike.values():
        for name, other in zip(names, reversed(names), strict=True):
            header[name]["data_offsets"] = offsets[other]
    text = json.dumps(header, separators=(",", ":")).encode()
    return data[:8] + text.ljust(end - 8) + data[end:]


def test_a_header_that_says_something_else_is_refused(packed, tmp_path):
    folder, family = packed
    for path in (path.relative_to(folder) for path in folder.rglob("*.safetensors")):
        data = (folder / path).read_bytes()
        changed = with_arrays_swapped(data)
        assert len(changed) == len(data)
        if changed == data:
            assert STREAMS.encode() in data  # nothing to swap
            continue
        copy = Path(shutil.copytree(folder, tmp_path / path.stem))
        (copy / path).write_bytes(changed)
        with pytest.raises(ArtifactError, match="not what was written"):
            Artifact.open(copy).tensor("deep.weight", family.base, task="ant")


def test_an_artifact_that_is_replaced_in_between(packed, tmp_path):
    folder, family = packed
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    artifact = Artifact.open(copy)
    first = artifact.tensor("block.bias", family.base, task="ant")
    copy.rename(tmp_path / "old")
    pack(family, copy, profile="fast")
    with pytest.raises(LockedError, match="replaced by another run"):
        artifact.tensor("wide.weight", family.base, task="ant")
    (tmp_path / "other").mkdir()
    copy.rename(tmp_path / "other" / "new")
    (tmp_path / "old").rename(copy)
    assert same(artifact.tensor("block.bias", family.base, task="ant"), first)


def test_a_disk_that_fails_is_named(packed, monkeypatch):
    folder, family = packed

    def fail(_: bytes) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checked_file, "block_digest", fail)
    with pytest.raises(StorageError, match="Input/output error") as caught:
        Artifact.open(folder).tensor("wide.weight", family.base, task="ant")
    assert ".safetensors" in caught.value.where


def test_of_the_base_only_that_tensor_is_read(packed, tmp_path):
    folder, family = packed
    states = load_state(family.base)
    changed = {**states, "conv.weight": states["conv.weight"] + 1}
    other = write_states(tmp_path / "other", changed, {})
    artifact = Artifact.open(folder)
    got = artifact.tensor("block.weight", other.base, task="ant")
    assert same(got, artifact.tensor("block.weight", family.base, task="ant"))
    with pytest.raises(BaseMismatchError, match="not the one"):
        artifact.tensor("conv.weight", other.base, task="ant")


# --- blocks as they are ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FamilyFiles]:
    """A task's shard of three blocks, by numbers that take three bytes each."""
    folder = tmp_path_factory.mktemp("large")
    shapes = dict.fromkeys(("a", "b", "c"), (120, 150))
    family = write_family(folder / "family", shapes, ("ant", "bee"))
    return pack(family, folder / "artifact", profile="exact").path, family


@pytest.fixture
def copy(large, tmp_path) -> tuple[Path, FamilyFiles]:
    return Path(shutil.copytree(large[0], tmp_path / "copy")), large[1]


def shard_of(folder: Path, task: int) -> str:
    manifest = read_manifest(folder)
    (part,) = manifest.tensor("a").parts.values()
    assert part.spans is not None
    return manifest.files[part.spans[task].file].path


def test_shards_of_more_than_one_block_list_them(large):
    folder, _ = large
    manifest = read_manifest(folder)
    for file in manifest.files:
        many = file.bytes > 65536 and SHARD_PATTERN.fullmatch(file.path)
        blocks = -(-file.bytes // 65536) if many else 0
        assert len(file.blocks) == 32 * blocks
    assert any(file.blocks for file in manifest.files)
    assert sum(manifest.breakdown.values()) == directory_bytes(folder)
    assert Artifact.open(folder).verify().problems == []


def test_a_block_of_another_tensor_may_be_damaged(copy):
    folder, family = copy
    path = folder / shard_of(folder, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    artifact = Artifact.open(folder)
    assert same(artifact.tensor("a", family.base, task="ant"), load_state(family.tasks["ant"])["a"])
    with pytest.raises(ArtifactError, match="in bytes 131072 to"):
        artifact.tensor("c", family.base, task="ant")
    assert [str(path)] == [problem.where for problem in artifact.verify().problems]


def test_without_digests_of_blocks_a_shard_is_compared_as_a_whole(copy):
    folder, family = copy

    def forget(record: dict[str, Any]) -> None:
        for file in record["files"]:
            file.pop("blocks", None)

    edit_manifest(folder, forget)
    want = load_state(family.tasks["ant"])["a"]
    assert same(Artifact.open(folder).tensor("a", family.base, task="ant"), want)
    path = folder / shard_of(folder, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"\x5a")
    with pytest.raises(ArtifactError, match="not what was written"):
        Artifact.open(folder).tensor("a", family.base, task="ant")
    other = Artifact.open(folder).tensor("a", family.base, task="bee")
    assert same(other, load_state(family.tasks["bee"])["a"])


def change_blocks(folder: Path, path: str, blocks: str) -> None:
    def change(record: dict[str, Any]) -> None:
        next(file for file in record["files"] if file["path"] == path)["blocks"] = blocks

    edit_manifest(folder, change)


def test_digests_of_other_blocks_are_found(copy):
    folder, family = copy
    path = shard_of(folder, 0)
    blocks = next(file.blocks for file in read_manifest(folder).files if file.path == path)
    change_blocks(folder, path, "0" * 32 + blocks[32:])
    (problem,) = Artifact.open(folder).verify().problems
    assert "other digests of its blocks" in problem.what
    with pytest.raises(ArtifactError, match="in bytes 0 to 65535"):
        Artifact.open(folder).tensor("a", family.base, task="ant")
    with pytest.raises(minimal_reader.DamagedError, match="blocks"):
        minimal_reader.Artifact(folder)


@pytest.mark.parametrize("change", ["one more", "one less", "of a document"])
def test_blocks_that_a_file_does_not_have(copy, change):
    folder, _ = copy
    path = shard_of(folder, 0)
    blocks = next(file.blocks for file in read_manifest(folder).files if file.path == path)
    changed = {"one more": blocks + "0" * 32, "one less": blocks[32:]}
    of_document = change == "of a document"
    change_blocks(folder, "config.json" if of_document else path, changed.get(change, blocks))
    with pytest.raises(ArtifactError, match="other blocks than its own"):
        Artifact.open(folder)


def test_the_writer_lists_no_more_than_a_manifest_may_hold(large, tmp_path, monkeypatch):
    _, family = large
    monkeypatch.setattr(layout, "MOST_BLOCKS", 3)
    artifact = pack(family, tmp_path / "artifact", profile="exact")
    listed = [file for file in read_manifest(artifact.path).files if file.blocks]
    assert len(listed) == 1
    assert artifact.verify(family.base, deep=True).problems == []
