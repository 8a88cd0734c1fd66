"""FORMAT.md against the code: fences conform, examples are true, nothing is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor

from svd_hybrid import limits
from svd_hybrid.artifact import layout
from svd_hybrid.artifact.parsing import manifest_from_json
from svd_hybrid.artifact.schema import load_schema, schema_path
from svd_hybrid.codec import CODECS, StreamCodec, codec_from_json, codec_to_json
from svd_hybrid.codec.entropy.alphabet import CLASSES
from svd_hybrid.codec.entropy.class_laws import ClassLaw, class_law
from svd_hybrid.codec.entropy.class_sources import EXPONENTS
from svd_hybrid.codec.entropy.lines import LAWS, law_frequencies
from svd_hybrid.codec.entropy.stream import MOST_LANES_LOG
from svd_hybrid.codec.entropy.trellis_laws import TrellisLaw
from svd_hybrid.codec.entropy.trellis_paths import NEXT
from svd_hybrid.codec.entropy.trellis_sources import trellis_law
from svd_hybrid.codec.half import LARGEST_EXPONENT
from svd_hybrid.codec.integers import MOST_SQUARES_LOG
from svd_hybrid.codec.residual import LARGEST_GROUP, MOST_STAGES
from svd_hybrid.delta.evaluate import ExactRows, Mix, evaluate
from svd_hybrid.delta.serial import DEEPEST, KNOWN_OPS, expr_from_json
from svd_hybrid.errors import ArtifactError, BaseMismatchError, UnsafeError, VersionError
from svd_hybrid.io.family import LARGEST_DELTA
from svd_hybrid.io.tensors import DTYPES, raw_bytes, tensor_digest
from svd_hybrid.numerics.bit_patterns import PATTERN_BLOCK
from svd_hybrid.numerics.hadamard import LARGEST_BLOCK, SEED
from svd_hybrid.numerics.reproducible import round_once
from tests.format import minimal_reader

TEXT = schema_path("FORMAT.md").read_text(encoding="utf-8")
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
EXAMPLES = ("fingerprint", "codec", "expression", "rounding")


@dataclass(frozen=True)
class Fence:
    line: int
    kind: str
    name: str
    body: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.kind} {self.name}"


def fences() -> Iterator[Fence]:
    for match in re.finditer(r"^```json(.*)\n((?:.*\n)*?)```$", TEXT, re.MULTILINE):
        line = TEXT.count("\n", 0, match.start()) + 1
        kind, _, name = match[1].strip().partition("=")
        yield Fence(line, kind, name, match[2])


def examples(name: str) -> list[Any]:
    """The example objects of one kind; a fence holds one or a list of them."""
    found: list[Any] = []
    for fence in fences():
        if (fence.kind, fence.name) == ("example", name):
            record = json.loads(fence.body)
            found += record if isinstance(record, list) else [record]
    assert found, f"no example of {name}"
    return found


def schemas() -> list[str]:
    files = schema_path("FORMAT.md").parent.glob("*.schema.json")
    return sorted(file.name.removesuffix(".schema.json") for file in files)


@pytest.mark.parametrize("fence", list(fences()), ids=str)
def test_every_json_fence_says_what_it_is_and_conforms(fence):
    record = json.loads(fence.body, object_pairs_hook=unique)
    if fence.kind == "example":
        assert fence.name in EXAMPLES
        return
    assert fence.kind == "schema"
    assert fence.name in schemas()
    jsonschema.Draft202012Validator(load_schema(fence.name)).validate(record)
    if fence.name == "manifest-v1":
        manifest = manifest_from_json(record, "FORMAT.md")
        for tensor in manifest.tensors:
            if tensor.task is not None:
                expr_from_json(tensor.task)
        for codec in manifest.codecs:
            assert codec_to_json(codec_from_json(codec)) == dict(codec)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a key appears twice"
    return dict(pairs)


@pytest.mark.parametrize("schema", schemas())
def test_every_schema_is_one_and_is_mentioned(schema):
    jsonschema.Draft202012Validator.check_schema(load_schema(schema))
    assert f"{schema}.schema.json" in TEXT


@pytest.mark.parametrize("example", examples("fingerprint"), ids=lambda e: e["dtype"])
def test_fingerprint_examples(example):
    data, shape = bytes.fromhex(example["data"]), tuple(example["shape"])
    entry = minimal_reader.Entry(example["dtype"], shape, data)
    assert minimal_reader.fingerprint(entry) == example["sha256"]
    tensor = torch.frombuffer(bytearray(data), dtype=DTYPES[example["dtype"]]).reshape(shape)
    assert tensor_digest(tensor) == example["sha256"]


@pytest.mark.parametrize("example", examples("codec"), ids=lambda e: e["codec"]["name"])
def test_codec_examples(example):
    if "string" in example:
        string, shape = bytes.fromhex(example["string"]), (example["rows"], example["columns"])
        codec = codec_from_json(example["codec"])
        assert isinstance(codec, StreamCodec)
        assert codec.decode_slice(string, shape).tolist() == example["values"]
        minimal_reader.check_codec(example["codec"])
        theirs = minimal_reader.decode_string(example["codec"], string, shape)
        assert theirs.tolist() == example["values"]
        return
    arrays = {
        name: torch.frombuffer(
            bytearray.fromhex(array["hex"]), dtype=DTYPES[array["dtype"]]
        ).reshape(array["shape"])
        for name, array in example["arrays"].items()
    }
    rows, columns = example["rows"], example["columns"]
    codec = codec_from_json(example["codec"])
    assert not isinstance(codec, StreamCodec)
    assert codec.decode(arrays, (1, rows, columns))[0].tolist() == example["values"]
    assert {n: tuple(a.shape) for n, a in arrays.items()} == codec.layout((1, rows, columns))
    minimal_reader.check_codec(example["codec"])
    theirs = minimal_reader.decode(example["codec"], lambda n: arrays[n][0].numpy(), rows, columns)
    assert theirs.tolist() == example["values"]


class Listed:
    """Parts written as lists: three levels are stacked, two are shared, truth values are masks."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = {name: np.array(values) for name, values in parts.items()}

    def is_stacked(self, part: str) -> bool:
        return self.parts[part].ndim == 3

    def shape(self, part: str) -> tuple[int, int]:
        rows, columns = self.parts[part].shape[-2:]
        return rows, columns

    def decode(self, part: str, task: int | None) -> Tensor:
        values = torch.from_numpy(self.parts[part] if task is None else self.parts[part][task])
        if values.dtype == torch.int64:  # of an exact F32 task
            return values.to(torch.int32)
        return values if values.dtype == torch.bool else values.to(torch.float32)

    @property
    def records(self) -> dict[str, Any]:
        return {name: self.record(name) for name in self.parts}

    def record(self, name: str) -> dict[str, Any]:
        rows, columns = self.shape(name)
        return {"rows": rows, "columns": columns, "stacked": self.is_stacked(name)}


@pytest.mark.parametrize("example", examples("expression"), ids=lambda e: e["expression"]["op"])
def test_expression_examples(example):
    parts = Listed(example["parts"])
    weights = {t: w for t, w in enumerate(example["weights"]) if w is not None}
    shared = example.get("shared")
    shape = (example["shape"][0], example["shape"][1])
    expression = expr_from_json(example["expression"])
    data = bytes.fromhex(example.get("base", ""))
    base = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape) if data else None
    rows = evaluate(expression, parts, Mix(weights, shared), shape, base)
    assert rows.rows(0, shape[0]).tolist() == example["delta"]
    if "task" in example:
        assert isinstance(rows, ExactRows)
        assert raw_bytes(rows.tuned(0, shape[0])).hex() == example["task"]

    def read(part: str, task: int) -> Any:
        return parts.decode(part, task if parts.is_stacked(part) else None).numpy()

    entry = minimal_reader.Entry("F32", shape, data)
    theirs = minimal_reader.Parts(parts.records, read, weights, shared, entry)
    if "task" in example:
        part, dtype = example["expression"]["part"], example["expression"]["dtype"]
        assert theirs.exact(part, dtype, next(iter(weights)), shape).data.hex() == example["task"]
    delta = minimal_reader.evaluate(example["expression"], theirs, shape)
    assert delta.tolist() == example["delta"]


@pytest.mark.parametrize("example", examples("rounding"), ids=str)
def test_rounding_examples(example):
    dtype = DTYPES[example["dtype"]]
    base = torch.tensor([example["base"]], dtype=dtype).double()
    delta = torch.tensor([example["delta"]], dtype=torch.float64)
    total = torch.where(delta == 0, base, base + delta)
    assert round_once(total, dtype).view(torch.uint8).numpy().tobytes().hex() == example["result"]
    data = minimal_reader.last_step(base.numpy(), delta.numpy(), example["dtype"], variance=False)
    assert data.hex() == example["result"]


@pytest.mark.parametrize("name", list(CODECS))
def test_every_codec_has_its_section(name):
    assert re.search(rf"^### 8\.\d+ {name}, version {CODECS[name].version}$", TEXT, re.MULTILINE)
    assert any(example["codec"]["name"] == name for example in examples("codec"))


def test_the_frequencies_listed_are_those_of_the_coder():
    rows = re.findall(r"^ {1,2}(\d+) {4}([\d ]*\d) {3,}(\d+) {4}(\d)$", TEXT, re.MULTILINE)
    listed = {int(k): ClassLaw(tuple(map(int, f.split())), int(g), int(d)) for k, f, g, d in rows}
    assert list(listed) == list(range(1, 21))
    for k in range(1, CLASSES):
        assert class_law(k) == listed[k if k <= 20 else 19 + (k - 21) % 2]
    (exponents,) = re.findall(r"^\*Exponents\*.*: ([\d ]+), and 24 times 16\.$", TEXT, re.MULTILINE)
    assert EXPONENTS.single.freqs.tolist() == [*map(int, exponents.split()), *[16] * 24]


def test_the_trellis_listed_is_that_of_the_coder():
    pattern = r"^ *(?:1 … )?(\d+) +(\d+) +(\d)   f0: ([\d ]+)\n +f1: ([\d ]+)$"
    listed = {
        int(k): TrellisLaw(tuple(map(int, f0.split())), tuple(map(int, f1.split())), int(g), int(d))
        for k, g, d, f0, f1 in re.findall(pattern, TEXT, re.MULTILINE)
    }
    assert list(listed) == list(range(9, 21))
    for c in range(1, CLASSES):
        assert trellis_law(c) == listed[min(max(c, 9), 20)]
    states = re.findall(r"^magnitude (?:even|odd) +([\d ]+)$", TEXT, re.MULTILINE)
    assert [list(map(int, row.split())) for row in states] == NEXT.T.tolist()


@pytest.mark.parametrize("law", range(LAWS))
def test_laws_of_the_reader_are_those_of_the_coder(law):
    slots = minimal_reader.law_source(law).single
    assert len(slots) == 4096
    counts = np.bincount([symbol for (symbol,), _, _ in slots], minlength=86)
    assert counts.tolist() == law_frequencies(law).tolist()


@pytest.mark.parametrize("op", KNOWN_OPS)
def test_every_operation_has_its_row_and_an_example(op):
    assert re.search(rf"^\| `{op}` \|", TEXT, re.MULTILINE)
    assert any(f'"op": "{op}"' in json.dumps(example) for example in examples("expression"))


FILES = [layout.MANIFEST, layout.INDEX, *layout.DOCUMENTS, *layout.SHARD_FOLDERS]


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_described(path):
    assert path in TEXT


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_dtype_is_listed(dtype):
    assert re.search(rf"\b{dtype}\b", TEXT)


def test_every_field_of_the_manifest_is_described():
    definitions = load_schema("manifest-v1")["$defs"]
    fields = set(load_schema("manifest-v1")["properties"])
    for name in ("linear_merge", "tensor", "part", "file"):
        fields |= set(definitions[name]["properties"])
    assert {field for field in fields if f"`{field}`" not in TEXT} == set()


def test_every_limit_is_the_one_in_the_code():
    mebibytes, power = limits.MOST_JSON_BYTES // 2**20, limits.MOST_JSON_VALUES.bit_length() - 1
    assert TEXT.count(f"at most {mebibytes} MiB") == 2
    values = f"2{str(power).translate(SUPERSCRIPT)}"
    sizes = f"| {mebibytes} MiB · {values} · {limits.MOST_JSON_DEPTH} |"
    assert f"| one JSON document: size · values · depth {sizes}" in TEXT
    many = (limits.MOST_TASKS, limits.MOST_MERGES, limits.MOST_CODECS)
    assert f"| tasks · merges · codecs | {' · '.join(map(str, many))} |" in TEXT
    texts = (limits.MOST_LABEL_CHARACTERS, limits.MOST_NAME_CHARACTERS, limits.MOST_PATH_CHARACTERS)
    assert f"file paths | {' · '.join(map(str, texts))} characters |" in TEXT
    assert f"| {limits.MOST_AXES} · 2⁵³ - 1 |" in TEXT
    assert f"| {limits.MOST_PARTS} · 2³² - 1 |" in TEXT
    assert (limits.LARGEST_SIZE, limits.LARGEST_SIDE) == (2**53 - 1, 2**32 - 1)
    assert f"holds {layout.SHARD_BYTES // 2**20} MiB or more" in TEXT
    assert TEXT.count(f"more than {layout.BLOCK_BYTES} bytes") == 2
    assert f"the first {layout.BLOCK_DIGITS} digits of the SHA-256" in TEXT
    power = str(layout.MOST_BLOCKS.bit_length() - 1).translate(SUPERSCRIPT)
    assert f"until it has listed 2{power} of them" in TEXT
    assert f"blocks of {PATTERN_BLOCK} scalars" in TEXT
    assert f"operations of one | {DEEPEST} · {limits.MOST_EXPRESSION_NODES} |" in TEXT
    assert f"more than {DEEPEST} levels below the outermost" in TEXT
    assert f"outside -{LARGEST_EXPONENT} … {LARGEST_EXPONENT}" in TEXT
    assert f"| `stages` | integer 1 … {MOST_STAGES} |" in TEXT
    assert f"| `group_size` | integer 0 … {LARGEST_GROUP} |" in TEXT
    assert f"| 2³¹ · 2{str(MOST_SQUARES_LOG).translate(SUPERSCRIPT)} - 1 |" in TEXT
    assert f"2{str(MOST_SQUARES_LOG).translate(SUPERSCRIPT)} when" in TEXT.replace("\n", " ")
    assert f"(integers) | {LARGEST_BLOCK} · {1 << MOST_LANES_LOG} |" in TEXT
    assert f"7 … {MOST_LANES_LOG}: 2^L lanes" in TEXT
    assert f"`{SEED.decode()}`" in TEXT
    assert LARGEST_DELTA == 2.0**100
    assert "2¹⁰⁰" in TEXT
    versions = (layout.OLDEST_READABLE, layout.WRITTEN, layout.NEWEST_READABLE)
    assert versions == (1, 1, 1)


def test_every_limit_is_in_the_schema():
    schema = load_schema("manifest-v1")
    fields, kinds = schema["properties"], schema["$defs"]
    part, tensor = kinds["part"]["properties"], kinds["tensor"]["properties"]
    assert fields["tasks"]["maxItems"] == limits.MOST_TASKS
    assert fields["merges"]["maxProperties"] == limits.MOST_MERGES
    assert fields["codecs"]["maxItems"] == limits.MOST_CODECS
    assert tensor["parts"]["maxProperties"] == limits.MOST_PARTS
    assert tensor["merges"]["maxProperties"] == limits.MOST_MERGES
    assert tensor["shape"]["maxItems"] == limits.MOST_AXES
    assert tensor["name"]["maxLength"] == tensor["alias"]["maxLength"]
    assert tensor["name"]["maxLength"] == limits.MOST_NAME_CHARACTERS
    assert kinds["label"]["maxLength"] == limits.MOST_LABEL_CHARACTERS
    assert kinds["file"]["properties"]["path"]["maxLength"] == limits.MOST_PATH_CHARACTERS
    assert kinds["size"]["maximum"] == limits.LARGEST_SIZE
    assert part["rows"]["maximum"] == part["columns"]["maximum"] == limits.LARGEST_SIDE
    assert part["slices"]["maximum"] == limits.MOST_TASKS - 1
    assert part["shards"]["maxItems"] == part["lengths"]["maxItems"] == limits.MOST_TASKS


def test_faults_have_the_exit_codes_of_the_command_line():
    kinds = {
        "damaged": ArtifactError,
        "wrong base": BaseMismatchError,
        "unknown": VersionError,
        "unsafe": UnsafeError,
    }
    for fault, kind in kinds.items():
        assert re.search(rf"^\| {fault} \|.*\| {kind.exit_code} \|$", TEXT, re.MULTILINE), fault


def test_the_table_of_contents_is_complete():
    def anchor(title: str) -> str:
        return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")

    sections = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    links = re.findall(r"\]\(#([^)]*)\)", TEXT)
    assert links == [anchor(title) for title in sections]
