"""Whatever bytes a parser or a decoder is given, only errors of ours come out."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svd_hybrid.artifact.codec_table import READABLE, check_codecs
from svd_hybrid.artifact.files import read_manifest
from svd_hybrid.artifact.jsonfile import canonical_json, parse_json, read_json_object
from svd_hybrid.artifact.parsing import manifest_from_json
from svd_hybrid.artifact.shards import read_header
from svd_hybrid.cli.compress import build_request
from svd_hybrid.codec import CODECS, codec_from_json, codec_to_json
from svd_hybrid.codec.base import StreamCodec
from svd_hybrid.codec.streams import decode_slice, encode_slice
from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.config_file import read_config_file
from svd_hybrid.compress.recipe.read import read_recipe
from svd_hybrid.errors import ArtifactError, SvdhError, UsageError, VersionError
from svd_hybrid.io.masks import open_masks
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.limits import MOST_JSON_BYTES, MOST_JSON_DEPTH, MOST_JSON_VALUES
from tests.format.families import read_record

GOLDEN = Path(__file__).resolve().parents[2] / "artifacts"
FUZZED = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3)
)
RECORDS = [read_record(path) for path in sorted(GOLDEN.glob("golden-v1-*"))]
RECIPE = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "a", "parameters": {"weight": 1.0, "density": [0.5, {"value": 0.1}]}}],
    "parameters": {"lambda": 0.3},
    "dtype": "float32",
}
CONFIG = {
    "method": {"name": "ties", "density": 0.2},
    "svd_low_bits": 3,
    "tasks": ["a", "b"],
    "weights": {"a": 1, "b": 2},
    "overrides": [{"tensors": ["*.weight"], "density": 0.1}],
}


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    return [copied(entry) for entry in value] if isinstance(value, list) else value


def spoiled(data: st.DataObject, record: Any) -> Any:
    """A copy with up to three values replaced by any others, dropped or doubled."""
    record = copied(record)
    for _ in range(data.draw(st.integers(1, 3))):
        parent, here = None, record
        while (
            isinstance(here, dict | list) and here and (parent is None or data.draw(st.booleans()))
        ):
            keys = sorted(here, key=str) if isinstance(here, dict) else list(range(len(here)))
            parent, step = here, data.draw(st.sampled_from(keys))
            here = parent[step]
        if parent is None:
            return record
        if data.draw(st.integers(0, 4)) == 0:
            del parent[step]
        else:
            parent[step] = data.draw(values)
    return record


@settings(FUZZED, max_examples=15)
@given(data=st.data())
def test_manifests(data):
    record = spoiled(data, data.draw(st.sampled_from(RECORDS)))
    record.pop("checksum", None)
    record["files"] = [f for f in record.get("files") or [] if "index" not in str(f)]
    try:
        from svd_hybrid.artifact.manifest import sealed

        manifest_from_json(sealed(record), "here")
    except SvdhError:
        pass
    except ValueError:  # what no JSON can hold, so no file either
        with pytest.raises(ValueError):  # noqa: PT011
            canonical_json(record)


@FUZZED
@given(data=st.binary(max_size=60) | values.map(lambda v: json.dumps(v).encode()))
def test_json(data):
    try:
        parse_json(data, "here")
    except ArtifactError as error:
        assert error.where == "here"  # noqa: PT017


def test_json_bombs_are_refused_before_they_are_built():
    value, depth, size = MOST_JSON_VALUES, MOST_JSON_DEPTH, MOST_JSON_BYTES
    assert parse_json(b"[" * depth + b"]" * depth, "") is not None
    assert parse_json(b'["' + b"[{" * 500 + b'\\""]', "") == ["[{" * 500 + '"']
    assert len(parse_json(b"[" + b"1," * (value - 2) + b"1]", "")) == value - 1
    for bomb, said in (
        (b"[" * (depth + 1) + b"]" * (depth + 1), "nested deeper"),
        (b"[" * 10**6, "nested deeper"),
        (b'{"a":' * 10**5, "nested deeper"),
        (b"[" + b"1," * value + b"1]", "values"),
        (b"[" + b"{}," * value, "values"),
        (b'"' * (4 * value + 1), "values"),
        (b" " * (size + 1), "bytes"),
        (b"1" + b"0" * 5000, "digits"),
    ):
        with pytest.raises(ArtifactError, match=said):
            parse_json(bomb, "")


@FUZZED
@given(data=st.data())
def test_shard_headers(tmp_path_factory, data):
    entry = st.fixed_dictionaries(
        {"dtype": st.sampled_from(["U8", "F32", "F33", 3]), "shape": values, "data_offsets": values}
    )
    header = data.draw(
        st.binary(max_size=40)
        | values.map(lambda v: json.dumps(v).encode())
        | st.dictionaries(st.text(max_size=3), entry | values).map(lambda v: json.dumps(v).encode())
    )
    length = data.draw(st.just(len(header)) | st.integers(0, 2**64 - 1))
    path = tmp_path_factory.mktemp("shard") / "s.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + data.draw(st.binary(max_size=20)))
    for read in (read_header, open_checkpoint):
        with contextlib.suppress(SvdhError):
            read(path)


@FUZZED
@given(data=st.data())
def test_configurations_and_recipes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("config")
    record = spoiled(data, data.draw(st.sampled_from([CONFIG, RECIPE])))
    try:
        text = data.draw(st.sampled_from([yaml.safe_dump, json.dumps]))(record)
    except (yaml.YAMLError, TypeError):
        return
    text = data.draw(st.just(text) | st.text(max_size=30))
    path = folder / data.draw(st.sampled_from(["c.yaml", "c.json"]))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    base = dict.fromkeys(("tasks", "task_paths", "assignments"), ())
    unset = ("base", "artifact_dir", "from_artifact", "checkpoint_dir", "mask_dir")
    base |= dict.fromkeys((*unset, "performance_file", "statistics_dir"))
    try:
        parsed = read_config_file(path)
        if "merge_method" in parsed:
            read_recipe(parsed, str(path))
        else:
            build_request(base | {"config_file": path}, overwrite=False)
            resolve_config(parsed, str(path))
    except SvdhError:
        pass


@FUZZED
@given(data=st.binary(max_size=40) | values.map(lambda v: json.dumps(v).encode()))
def test_weights_files(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("weights") / "w.json"
    path.write_bytes(data)
    try:
        read_json_object(path, "weights file", UsageError)
    except UsageError as error:
        assert str(path) in error.where  # noqa: PT017


@FUZZED
@given(data=st.data())
def test_mask_files(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("masks")
    name = data.draw(st.sampled_from(["a_mask.pt", "a.safetensors", "TALL_mask_1task.npy"]))
    start = data.draw(st.sampled_from([b"", b"\x80\x02", b"\x93NUMPY\x01\x00", b"PK\x03\x04"]))
    (folder / name).write_bytes(start + data.draw(st.binary(max_size=40)))
    with contextlib.suppress(SvdhError):
        open_masks(folder, ["a"], {"w": TensorInfo("F32", (3,))})


def codec_records() -> list[dict[str, Any]]:
    """Every codec with every word, and both ends of every range, of its parameters."""
    found: list[dict[str, Any]] = []
    for name, row in READABLE.items():
        rows: list[dict[str, Any]] = [{"name": name, "version": row.version}]
        for key, allowed in row.parameters.items():
            choices = [allowed[0], allowed[-1]] if isinstance(allowed, range) else list(allowed)
            choices = [min(choice, 8) if isinstance(choice, int) else choice for choice in choices]
            rows = [record | {key: choice} for record in rows for choice in choices]
        found += rows
    return found


CODEC_RECORDS = codec_records()


def ids(record: dict[str, Any]) -> str:
    return "-".join(map(str, record.values()))


@pytest.mark.parametrize("record", CODEC_RECORDS, ids=ids)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_decoders(record, data):
    codec = codec_from_json(record)
    shape = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 20)))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    numbers = torch.randint(-9, 9, shape, generator=seed)
    if codec.dtype.is_floating_point:
        x = numbers * torch.tensor(0.37)
    else:
        x = (numbers > 0) if codec.dtype == torch.bool else numbers.to(codec.dtype)
    claimed = data.draw(st.just(shape) | st.tuples(*[st.integers(1, 300)] * 2))
    try:
        if isinstance(codec, StreamCodec):
            string = bytearray(encode_slice(codec, x))
            for _ in range(data.draw(st.integers(0, 3))):
                if string:
                    string[data.draw(st.integers(0, len(string) - 1))] = data.draw(
                        st.integers(0, 255)
                    )
            string = bytes(string[: data.draw(st.integers(0, len(string)))])
            string = data.draw(st.just(string) | st.binary(max_size=30))
            result = decode_slice(codec, string, claimed)
            wanted: tuple[int, ...] = claimed
        else:
            arrays = dict(codec.encode(x[None]))
            for name, array in arrays.items():
                octets = torch.randint(0, 256, (array.nbytes,), generator=seed, dtype=torch.uint8)
                if data.draw(st.booleans()) and array.numel():
                    arrays[name] = octets.view(array.dtype).reshape(array.shape)
            wanted = (1, *claimed)
            result = codec.decode(arrays, wanted)
    except ArtifactError:
        return
    assert tuple(result.shape) == wanted
    assert result.dtype == codec.dtype


def test_the_table_of_codecs_is_that_of_the_decoders():
    assert set(READABLE) == set(CODECS)
    for record in CODEC_RECORDS:
        assert codec_to_json(codec_from_json(record)) == record
        check_codecs([record], "")
    for name, row in READABLE.items():
        assert CODECS[name].version == row.version


@pytest.mark.parametrize("record", CODEC_RECORDS, ids=ids)
def test_the_table_of_codecs_refuses_what_the_decoders_refuse(record):
    others: list[Any] = [-1, 0, 9, 17, 2**20 + 1, True, 1.0, "F64", "Row", None, [], {}]
    for key in record:
        for value in others:
            changed = record | {key: value}
            if not isinstance(changed["name"], str):
                continue
            outcomes = []
            for check in (lambda r: check_codecs([r], ""), codec_from_json):
                try:
                    check(changed)
                    outcomes.append("read")
                except (ArtifactError, VersionError) as error:
                    outcomes.append(type(error).__name__)
            assert outcomes[0] == outcomes[1], changed
    for changed in (record | {"extra": 1}, {k: v for k, v in record.items() if k != "bits"}):
        if changed != record:
            with pytest.raises(ArtifactError):
                check_codecs([changed], "")


def test_manifests_of_the_golden_artifacts_are_read():
    for path in GOLDEN.glob("golden-v1-*"):
        assert math.prod(read_manifest(path).tensors[0].shape) >= 0
