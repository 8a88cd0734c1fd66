"""Parts in strings: where they lie, who opens what, missing slices, and what is refused of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file
from torch import Tensor

from svd_hybrid import Artifact
from svd_hybrid.artifact import writer
from svd_hybrid.artifact.jsonfile import canonical_json
from svd_hybrid.artifact.manifest import Manifest, TensorRecord, sealed
from svd_hybrid.artifact.merges import LinearMerge
from svd_hybrid.artifact.reader import ArtifactReader
from svd_hybrid.artifact.writer import ArtifactWriter, EncodedPart
from svd_hybrid.codec import BitmaskCodec, HalfCodec, RawCodec, ZstdPlanesCodec
from svd_hybrid.compress.profiles.base import EncodedParts, encode_part, join_slices
from svd_hybrid.delta.evaluate import Mix, evaluate
from svd_hybrid.delta.expr import Dense, Sum
from svd_hybrid.delta.serial import expr_to_json
from svd_hybrid.errors import ArtifactError, SvdhError, VersionError
from svd_hybrid.io.tensors import tensor_digest
from tests.format import minimal_reader
from tests.format.families import edit_manifest, random_delta

TASKS = ["ant", "bee", "cat"]
SHAPE = (5, 7)
NAMES = ("w0", "w1", "w2", "w3")
EXPR = Sum((Dense("coeff"), Dense("fixed"), Dense("mean")))
Parts = dict[str, EncodedPart]


def cut(part: EncodedPart, slices: int) -> EncodedPart:
    arrays = {name: array[:slices] for name, array in part.arrays.items()}
    return replace(part, arrays=arrays, strings=part.strings[:slices])


def parts_of(index: int) -> Parts:
    """A stacked and a shared part in strings, and a stacked one in arrays."""
    stack = random_delta((3, *SHAPE), index).float()
    if index == 1:
        stack[1] = stack[0]  # two tasks of equal content
    if index == 2:
        stack[0] = 0
    if index == 3:
        stack = random_delta((3, *SHAPE), 0).float()  # as in the first tensor
    parts = {
        "fixed": encode_part(RawCodec(), random_delta((3, *SHAPE), 10 + index).float()),
        "mean": encode_part(ZstdPlanesCodec(), random_delta(SHAPE, 20).float()),
        "coeff": encode_part(ZstdPlanesCodec(), stack),
    }
    if index == 0:
        parts["fixed"] = cut(parts["fixed"], 2)
    if index == 1:
        parts["coeff"] = cut(parts["coeff"], 1)
    return parts


def write(folder: Path) -> Manifest:
    """`base.safetensors` and `artifact` in a folder."""
    base = {name: random_delta(SHAPE, 30 + i).float() for i, name in enumerate(NAMES)}
    save_file(base, folder / "base.safetensors")
    (folder / "artifact").mkdir()
    made = ArtifactWriter(folder / "artifact", "test", TASKS)
    for index, name in enumerate(NAMES):
        record = TensorRecord(name, "F32", SHAPE, tensor_digest(base[name]), {})
        made.add_tensor(record, parts_of(index), task=expr_to_json(EXPR))
    merge = LinearMerge("test", 1, (1.0, -0.5, 0.25), 1.0)
    return made.finish({"merged": merge}, "merged", {}, lambda _: b"{}\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write(folder)
    return folder


@pytest.fixture
def family(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "family"))


def rebuilt(family: Path, **selection: Any) -> dict[str, Tensor]:
    return dict(
        Artifact.open(family / "artifact").iter_tensors(family / "base.safetensors", **selection)
    )


def wanted(family: Path, mix: Mix) -> dict[str, Tensor]:
    base = load_file(family / "base.safetensors")
    return {
        name: (
            base[name].double()
            + evaluate(EXPR, EncodedParts(parts_of(index)), mix, SHAPE).rows(0, SHAPE[0])
        ).float()
        for index, name in enumerate(NAMES)
    }


def same(x: dict[str, Tensor], y: dict[str, Tensor]) -> bool:
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def check_everything(family: Path) -> None:
    """Both readers give what the encoder decodes, and the verifier finds nothing."""
    assert Artifact.open(family / "artifact").verify(family / "base.safetensors").problems == []
    theirs = minimal_reader.Artifact(family / "artifact")
    base = minimal_reader.read_safetensors((family / "base.safetensors").read_bytes())
    for selection, mix in (
        *(({"task": task}, Mix({index: 1.0})) for index, task in enumerate(TASKS)),
        ({}, Mix({0: 1.0, 1: -0.5, 2: 0.25})),
    ):
        ours = rebuilt(family, **selection)
        assert same(ours, wanted(family, mix)), selection
        chosen = minimal_reader.select(theirs.manifest, **selection)
        for name, entry in theirs.rebuild(base, chosen):
            assert entry.data == ours[name].numpy().tobytes(), (name, selection)


@pytest.mark.parametrize("shard_bytes", [1, 300, 2**25])
def test_every_slice_comes_back_however_shards_are_cut(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(writer, "SHARD_BYTES", shard_bytes)
    manifest = write(tmp_path)
    check_everything(tmp_path)
    names = [file.path for file in manifest.files if file.path.endswith(".safetensors")]
    assert len(names) == len(set(names)) >= (15 if shard_bytes == 1 else 4)
    assert not list(tmp_path.rglob("draft*"))


def test_missing_slices_are_zeros(family):
    opened = ArtifactReader.open(family / "artifact")
    first, second = (opened.parts(record) for record in opened.manifest.tensors[:2])
    assert not first.decode("fixed", 2).any()
    assert first.decode("fixed", 1).any()
    assert not second.decode("coeff", 1).any()
    assert second.decode("coeff", 0).any()
    mask = EncodedPart(BitmaskCodec(), 1, 3, True, {"bits": torch.ones(1, 1, 1).byte()})
    missing = EncodedParts({"mask": mask}).decode("mask", 1)
    assert missing.dtype == torch.bool
    assert missing.tolist() == [[False, False, False]]


def test_carried_parts_are_stored_again_as_they_were(family):
    opened = ArtifactReader.open(family / "artifact")
    for index, record in enumerate(opened.manifest.tensors):
        carried, first = opened.parts(record).encoded(), parts_of(index)
        assert carried.keys() == first.keys()
        for name, part in carried.items():
            assert part.strings == first[name].strings
            assert part.slices == first[name].slices
            assert part.nbytes == first[name].nbytes
            assert all(torch.equal(part.arrays[key], x) for key, x in first[name].arrays.items())


def test_a_task_opens_the_shared_shards_and_its_own(family):
    artifact = family / "artifact"
    manifest = Artifact.open(artifact)._reader.manifest
    spans = manifest.tensors[0].parts["coeff"].spans
    assert spans is not None
    paths = [artifact / manifest.files[span.file].path for span in spans]
    assert len(set(paths)) == 3
    before = rebuilt(family, task="ant")
    for path in paths[1:]:
        path.unlink()
    assert same(rebuilt(family, task="ant"), before)
    for selection in ({"task": "bee"}, {}):
        with pytest.raises(ArtifactError, match="missing"):
            rebuilt(family, **selection)


def test_every_flipped_byte_of_a_shard_is_noticed_where_it_is_read(family):
    artifact = family / "artifact"
    for path in sorted(artifact.glob("*/*.safetensors")):
        whole = path.read_bytes()
        for at in range(0, len(whole), 17):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            with pytest.raises(ArtifactError, match="not what was written"):
                rebuilt(family)
        path.write_bytes(whole)
    check_everything(family)


def coeff(manifest: dict[str, Any], tensor: int = 0) -> dict[str, Any]:
    part: dict[str, Any] = manifest["tensors"][tensor]["parts"]["coeff"]
    return part


def move(part: dict[str, Any], slice_: int, by: int) -> None:
    part["lengths"][slice_] += by


def swap(manifest: dict[str, Any]) -> None:
    part = coeff(manifest)
    part["shards"][0], part["shards"][1] = part["shards"][1], part["shards"][0]


def index_of(manifest: dict[str, Any], path: str) -> int:
    return next(i for i, file in enumerate(manifest["files"]) if file["path"].startswith(path))


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a length without a shard": lambda m: coeff(m)["shards"].pop(),
    "lengths without shards": lambda m: coeff(m).pop("shards"),
    "a negative length": lambda m: move(coeff(m), 0, -10_000),
    "a length beyond the file": lambda m: move(coeff(m), 0, 10_000),
    "a shard that is not listed": lambda m: coeff(m)["shards"].__setitem__(0, 99),
    "a document as shard": lambda m: coeff(m)["shards"].__setitem__(
        0, index_of(m, "diagnostics.json")
    ),
    "a shard of another folder": lambda m: coeff(m)["shards"].__setitem__(0, index_of(m, "basis")),
    "a shard for an empty string": lambda m: coeff(m, 2)["shards"].__setitem__(0, 1),
    "more slices than tasks": lambda m: (
        coeff(m)["shards"].append(0),
        coeff(m)["lengths"].append(0),
    ),
    "slices beside lengths": lambda m: coeff(m).update(slices=2),
    "strings of a codec of arrays": lambda m: m["tensors"][0]["parts"]["fixed"].update(
        shards=[0, 0], lengths=[0, 0]
    ),
    "arrays of a codec of strings": lambda m: [coeff(m).pop(k) for k in ("shards", "lengths")],
    "fewer slices than are stored": lambda m: m["tensors"][0]["parts"]["fixed"].pop("slices"),
    "a slice of nothing": lambda m: m["tensors"][1]["parts"]["fixed"].update(slices=0),
    "slices of a shared part": lambda m: m["tensors"][0]["parts"]["mean"].update(slices=1),
    "a string of another length": lambda m: (move(coeff(m), 0, -1), move(coeff(m, 3), 0, 1)),
    "another number of columns": lambda m: coeff(m).update(columns=8),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_manifest_that_misplaces_slices_is_refused(family, case):
    edit_manifest(family / "artifact", REFUSED[case])
    with pytest.raises(ArtifactError):
        rebuilt(family)


VERIFIED: dict[str, Callable[[dict[str, Any]], object]] = {
    "bytes that no slice has": lambda m: move(coeff(m, 3), 0, -1),
    "a string nobody names": lambda m: (
        m["tensors"][3]["parts"].pop("coeff")
        and m["tensors"][3].update(task={"op": "dense", "part": "fixed"})
    ),
    "slices of two tasks in one shard": swap,
}


@pytest.mark.parametrize("case", VERIFIED)
def test_the_verifier_accounts_for_every_byte_of_a_shard(family, case):
    assert Artifact.open(family / "artifact").verify().problems == []
    edit_manifest(family / "artifact", VERIFIED[case])
    problems = Artifact.open(family / "artifact").verify().problems
    assert problems, "the verifier is broken"
    assert all("string" in str(problem) for problem in problems)
    with pytest.raises(minimal_reader.DamagedError):
        minimal_reader.Artifact(family / "artifact")


def test_a_shard_of_a_task_holds_nothing_else(family):
    artifact = family / "artifact"
    reader = ArtifactReader.open(artifact)
    spans = reader.manifest.tensors[0].parts["coeff"].spans
    assert spans is not None
    path = artifact / reader.manifest.files[spans[0].file].path
    arrays = load_file(path) | {"t00000.other.values": torch.zeros(1)}
    save_file(arrays, path)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    path.rename(path.with_name(f"{digest}.safetensors"))

    def relist(manifest: dict[str, Any]) -> None:
        order = [file["path"] for file in manifest["files"]]
        file = manifest["files"][spans[0].file]
        file |= {"path": f"coeffs/{digest}.safetensors", "bytes": len(data), "sha256": digest}
        moved = {id(file): old for old, file in enumerate(manifest["files"])}
        manifest["files"].sort(key=lambda file: file["path"])
        new = {moved[id(file)]: index for index, file in enumerate(manifest["files"])}
        assert len(order) == len(new)
        for tensor in manifest["tensors"]:
            for part in tensor["parts"].values():
                if "lengths" in part:
                    pairs = zip(part["shards"], part["lengths"], strict=True)
                    part["shards"] = [new[shard] if length else 0 for shard, length in pairs]

    edit_manifest(artifact, relist)
    (problem,) = Artifact.open(artifact).verify().problems
    assert "other arrays" in str(problem)


# --- writing -------------------------------------------------------------------------------------


def test_slices_that_were_encoded_one_by_one_are_joined():
    x = random_delta((3, *SHAPE), 1).float()
    x[1] = 0
    for codec in (ZstdPlanesCodec(), HalfCodec()):
        joined = join_slices([encode_part(codec, x[i : i + 1]) for i in range(3)])
        whole = encode_part(codec, x)
        assert joined.strings == whole.strings
        assert all(torch.equal(joined.arrays[key], whole.arrays[key]) for key in whole.arrays)
    assert encode_part(ZstdPlanesCodec(), x).strings[1] == b""


@pytest.mark.parametrize("slices", [0, 4])
def test_a_part_with_the_wrong_number_of_slices_is_our_mistake(tmp_path, slices):
    made = ArtifactWriter(tmp_path, "test", TASKS)
    part = EncodedPart(ZstdPlanesCodec(), 1, 1, stacked=True, strings=(b"x",) * slices)
    with pytest.raises(ValueError, match="slices"):
        made.add_tensor(TensorRecord("w", "F32", (1, 1), "0" * 64, {}), {"coeff": part})


# --- the codec -----------------------------------------------------------------------------------

NUMBERS = {
    "F32": [0.0, -0.0, 1.0, -2.5, 1e-45, 3e38],
    "I16": [0, -1, 1, 2**15 - 1, -(2**15), 300],
    "I32": [0, -1, 1, 2**31 - 1, -(2**31), 70_000],
    "I64": [0, -1, 1, 2**63 - 1, -(2**63), 2**40],
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("shape", [(1, 6), (3, 2), (6, 1)])
def test_planes_come_back_bit_for_bit(number, shape):
    codec = ZstdPlanesCodec(number)
    x = torch.tensor(NUMBERS[number], dtype=codec.dtype).reshape(shape)
    back = codec.decode_slice(codec.encode_slice(x), shape)
    assert back.dtype == codec.dtype
    assert torch.equal(back.view(torch.uint8), x.view(torch.uint8))
    transposed = codec.encode_slice(x.T.contiguous().T)
    assert transposed == codec.encode_slice(x)


@pytest.mark.parametrize("damage", ["cut", "longer", "another shape", "noise"])
def test_damaged_planes_are_refused(damage):
    codec = ZstdPlanesCodec()
    data = codec.encode_slice(random_delta(SHAPE, 0).float())
    shape = (5, 8) if damage == "another shape" else SHAPE
    damaged = {"cut": data[:-1], "longer": data + b"\0", "noise": b"\xff" * len(data)}
    with pytest.raises(ArtifactError):
        codec.decode_slice(damaged.get(damage, data), shape)


@pytest.mark.parametrize(
    "config", [{}, {"number": "F64"}, {"number": 1}, {"number": "F32", "x": 1}]
)
def test_illegal_parameters_of_the_planes_are_refused(config):
    with pytest.raises(ArtifactError, match="zstd-planes"):
        ZstdPlanesCodec.from_config(config)


def test_a_codec_of_strings_that_is_not_known_is_named(family):
    edit_manifest(
        family / "artifact",
        lambda m: next(c for c in m["codecs"] if c["name"] == "zstd-planes").update(version=2),
    )
    with pytest.raises(VersionError, match="zstd-planes"):
        rebuilt(family)


# --- the index -----------------------------------------------------------------------------------


def put_index(artifact: Path, data: bytes) -> None:
    """Replace the index; manifest and checksum follow."""
    (artifact / "index.json.zst").write_bytes(data)
    record = json.loads((artifact / "manifest.json").read_bytes())
    for file in record["files"]:
        if file["path"] == "index.json.zst":
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (artifact / "manifest.json").write_bytes(canonical_json(sealed(record)))


zip_up = zstandard.compress
INDEXES: dict[str, Callable[[bytes], bytes]] = {
    "no frame": lambda content: content,
    "a frame cut short": lambda content: zip_up(content)[:-3],
    "more behind the frame": lambda content: zip_up(content) + b"\0",
    "two frames": lambda content: zip_up(content) + zip_up(b"{}"),
    "no size": zstandard.ZstdCompressor(write_content_size=False).compress,
    "too much": lambda _: zip_up(bytes(2**28 + 1)),
    "no JSON": lambda _: zip_up(b"{"),
    "no object": lambda _: zip_up(b"[]\n"),
    "another key": lambda content: zip_up(content.replace(b'{"tensors"', b'{"a":1,"tensors"')),
    "no tensors": lambda _: zip_up(b'{"tensors":[]}\n'),
    "other spaces": lambda content: zip_up(content.replace(b":", b": ", 1)),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_is_not_as_the_format_says_is_refused(family, case):
    artifact = family / "artifact"
    content = zstandard.decompress((artifact / "index.json.zst").read_bytes())
    put_index(artifact, zip_up(content))
    assert Artifact.open(artifact).verify().problems == []
    put_index(artifact, INDEXES[case](content))
    with pytest.raises(ArtifactError):
        Artifact.open(artifact)
    if case not in ("other spaces", "no tensors"):  # which only a verifier must refuse
        with pytest.raises(minimal_reader.DamagedError):
            minimal_reader.Artifact(artifact)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(tensors=[]),
        lambda m: m["files"].pop(index_of(m, "index.json.zst")),
    ],
)
def test_tensors_are_in_one_place(family, change):
    path = family / "artifact" / "manifest.json"
    record = json.loads(path.read_bytes())
    change(record)
    path.write_bytes(canonical_json(sealed(record)))
    with pytest.raises(SvdhError):
        Artifact.open(family / "artifact")


def test_a_missing_or_damaged_index_is_named(family):
    path = family / "artifact" / "index.json.zst"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"index\.json\.zst"):
        Artifact.open(family / "artifact")
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        Artifact.open(family / "artifact")
