"""What we write is what other libraries read."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from svd_hybrid.errors import StorageError, UsageError
from svd_hybrid.io import new_file
from svd_hybrid.io.model_writer import MODEL, plan_shards, write_model
from svd_hybrid.io.outputs import check_free, protect_inputs
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.io.safetensors_writer import SafetensorsWriter, write_order
from svd_hybrid.io.storage import using
from svd_hybrid.io.tensors import DTYPES, TensorInfo, info_of, raw_bytes, tensor_digest
from tests.faults.faulty_storage import FaultyStorage
from tests.io.checkpoints import EVERY_KIND, random_state, same, write

INFOS = {name: info_of(tensor) for name, tensor in EVERY_KIND.items()}


def write_all(path: Path, state: dict[str, Tensor], metadata=None) -> None:
    infos = {name: info_of(tensor) for name, tensor in state.items()}
    with SafetensorsWriter(path, infos, metadata) as writer:
        for name in writer.order:
            writer.write(name, state[name])


def assert_same_state(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert sorted(got) == sorted(want)
    for name, tensor in want.items():
        assert same(got[name], tensor), name


# --- one safetensors file ------------------------------------------------------------------------


def test_the_library_reads_what_we_stream(tmp_path):
    write_all(tmp_path / "m.safetensors", EVERY_KIND)
    assert_same_state(load_file(tmp_path / "m.safetensors"), EVERY_KIND)


def test_views_and_strides_are_written_as_values(tmp_path):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"t": whole.T, "rows": whole[1:3], "column": whole[:, 2], "wide": whole[:1, :1]}
    write_all(tmp_path / "m.safetensors", state)
    assert_same_state(load_file(tmp_path / "m.safetensors"), state)


def test_every_tensor_is_aligned_to_its_item_size(tmp_path):
    odd = {f"{dtype.lower()}_{n}": (dtype, n) for n in (1, 3, 5) for dtype in DTYPES}
    state = {name: torch.zeros(n, dtype=DTYPES[dtype]) for name, (dtype, n) in odd.items()}
    write_all(tmp_path / "m.safetensors", state)
    data = (tmp_path / "m.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0
    position = 0
    for name in write_order({n: info_of(t) for n, t in state.items()}):
        start, end = header[name]["data_offsets"]
        assert start == position, "data has a gap"
        assert start % state[name].element_size() == 0, name
        position = end
    assert len(data) == 8 + size + position


def test_equal_tensors_give_equal_bytes_and_metadata_is_sorted(tmp_path):
    for name, metadata in (("a", {"x": "1", "b": "2"}), ("b", {"b": "2", "x": "1"})):
        write_all(tmp_path / name, EVERY_KIND, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata() == {"b": "2", "x": "1"}


def test_names_are_data(tmp_path):
    names = ["", "a/b", "../up", 'quo"te', "schicht.größe", "层.0.weight", "a b\tc", "\\"]
    state = {name: torch.tensor([float(i)]) for i, name in enumerate(names)}
    write_all(tmp_path / "m.safetensors", state)
    assert_same_state(load_file(tmp_path / "m.safetensors"), state)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_file_without_tensors_is_valid(tmp_path):
    write_all(tmp_path / "m.safetensors", {})
    assert load_file(tmp_path / "m.safetensors") == {}


def test_the_writer_holds_the_caller_to_what_was_announced(tmp_path):
    infos = {"a": TensorInfo("F32", (2,)), "b": TensorInfo("F32", (3,))}

    def attempt(number: int, *tensors: tuple[str, Tensor]) -> None:
        with SafetensorsWriter(tmp_path / str(number), infos) as writer:
            for name, tensor in tensors:
                writer.write(name, tensor)

    a, b = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match="'b' is not the next"):
        attempt(1, ("b", b))
    with pytest.raises(ValueError, match="announced as"):
        attempt(2, ("a", torch.zeros(3)))
    with pytest.raises(ValueError, match="announced as"):
        attempt(3, ("a", a.double()))
    with pytest.raises(ValueError, match="'b' was never written"):
        attempt(4, ("a", a))
    with pytest.raises(ValueError, match="not the next"):
        attempt(5, ("a", a), ("b", b), ("b", b))
    with pytest.raises(FileExistsError):
        attempt(5, ("a", a), ("b", b))


def test_digests_are_of_dtype_shape_and_data():
    x = torch.arange(6, dtype=torch.float32)
    assert tensor_digest(x) == tensor_digest(x.clone())
    assert tensor_digest(x) != tensor_digest(x.reshape(2, 3))
    assert tensor_digest(x) != tensor_digest(x.view(torch.int32))
    assert tensor_digest(x.reshape(2, 3).T) == tensor_digest(x.reshape(2, 3).T.contiguous())
    assert tensor_digest(torch.tensor(0.0)) != tensor_digest(torch.tensor(-0.0))
    assert bytes(raw_bytes(torch.tensor([1, 256], dtype=torch.int16))) == b"\1\0\0\1"


# --- models --------------------------------------------------------------------------------------


class Source:
    """Gives tensors in the order asked for and remembers it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.asked: list[str] = []

    def __call__(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            self.asked.append(name)
            yield name, self.state[name]


def model(path: Path, state: dict[str, Tensor], base: Path | None = None, **options) -> Source:
    source = Source(state)
    infos = {name: info_of(tensor) for name, tensor in state.items()}
    write_model(path, infos, source, base=base or path.parent / "base.safetensors", **options)
    return source


def test_a_safetensors_target_is_one_file_that_says_pt(tmp_path):
    model(tmp_path / "out.safetensors", EVERY_KIND)
    assert_same_state(load_file(tmp_path / "out.safetensors"), EVERY_KIND)
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_torch_target_loads_weights_only(tmp_path, suffix):
    model(tmp_path / f"out{suffix}", EVERY_KIND)
    assert_same_state(torch.load(tmp_path / f"out{suffix}", weights_only=True), EVERY_KIND)


def test_equal_models_give_equal_torch_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        model(tmp_path / folder / "out.pt", EVERY_KIND)
    assert (tmp_path / "a/out.pt").read_bytes() == (tmp_path / "b/out.pt").read_bytes()


def test_a_small_model_is_a_folder_with_one_file(tmp_path):
    model(tmp_path / "out", EVERY_KIND)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert_same_state(load_file(tmp_path / "out" / "model.safetensors"), EVERY_KIND)


def test_a_large_model_is_shards_and_an_index_that_the_library_follows(tmp_path):
    state = random_state(0, a=(10,), b=(10,), c=(25,), d=(4,), e=(4,))
    model(tmp_path / "out", state, max_shard_bytes=80)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names[0] == "model-00001-of-00003.safetensors"
    assert names[-1] == "model.safetensors.index.json"
    index = json.loads((tmp_path / "out" / names[-1]).read_text("utf-8"))
    assert index["metadata"]["total_size"] == 4 * sum(t.numel() for t in state.values())
    got = {}
    for name, file_name in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file_name, framework="pt") as file:
            got[name] = file.get_tensor(name)
    assert_same_state(got, state)
    reader = open_checkpoint(tmp_path / "out")
    assert_same_state({name: reader.read(name) for name in reader.infos}, state)


def test_tensors_are_asked_for_once_and_one_at_a_time(tmp_path):
    source = model(tmp_path / "out", EVERY_KIND, max_shard_bytes=30)
    assert sorted(source.asked) == sorted(EVERY_KIND)


def f32(count: int) -> TensorInfo:
    return TensorInfo("F32", (count,))


@pytest.mark.parametrize(
    ("sizes", "most", "shards"),
    [
        ([1, 1, 1], 12, [["t0", "t1", "t2"]]),
        ([1, 1, 1], 11, [["t0", "t1"], ["t2"]]),
        ([9, 1, 9], 12, [["t0"], ["t1"], ["t2"]]),
        ([9, 9], 1, [["t0"], ["t1"]]),
        ([0, 0, 5, 0], 1, [["t0", "t1"], ["t2"], ["t3"]]),
        ([], 10, [[]]),
    ],
)
def test_shard_plans(sizes, most, shards):
    assert plan_shards({f"t{i}": f32(n) for i, n in enumerate(sizes)}, most) == shards


def test_companions_are_copied_but_no_weights(tmp_path):
    base = tmp_path / "base"
    companions = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "modeling_custom.py",
    ]
    weights = [
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.safetensors.index.json",
        "flax_model.msgpack",
        "tf_model.h5",
        "optimizer.pt",
        "training_args.bin",
        ".gitattributes",
    ]
    base.mkdir()
    for name in companions + weights:
        (base / name).write_text(name)
    (base / "tokenizer_files").mkdir()
    model(tmp_path / "out", random_state(0, w=(2,)), base)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {*companions, "model.safetensors"}
    assert (tmp_path / "out" / "config.json").read_text() == "config.json"
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].shape == (2,)


def test_a_base_file_has_no_companions(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    base = write(tmp_path / "base.safetensors", random_state(0, w=(2,)))
    model(tmp_path / "out", random_state(1, w=(2,)), base)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["out", "out.safetensors", "out.pt"])
def test_a_stream_that_fails_leaves_nothing(tmp_path, name):
    def failing(names: list[str]) -> Iterator[tuple[str, Tensor]]:
        yield names[0], EVERY_KIND[names[0]]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_model(tmp_path / name, INFOS, failing, base=tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "out.safetensors", "out.pt"])
def test_an_output_in_the_way_is_kept_without_overwrite(tmp_path, name):
    model(tmp_path / name, random_state(0, w=(2,)))
    source = Source(EVERY_KIND)
    with pytest.raises(StorageError, match="output exists") as caught:
        write_model(tmp_path / name, INFOS, source, base=tmp_path / "base")
    assert "--overwrite" in caught.value.fix
    assert source.asked == []
    model(tmp_path / name, EVERY_KIND, overwrite=True)
    reader = open_checkpoint(tmp_path / name)
    assert_same_state({n: reader.read(n) for n in reader.infos}, EVERY_KIND)


def test_what_waits_for_the_disk_is_bounded(tmp_path, monkeypatch):
    """A process in fsync cannot be ended, so that the last one must be short."""
    monkeypatch.setattr(new_file, "SYNC_BYTES", 1000)
    with using(FaultyStorage()) as disk, new_file.NewFile(tmp_path / "out") as file:
        for _ in range(25):
            file.write(bytes(100))
    assert disk.calls.count("sync") == 3
    assert disk.calls.index("sync") == 1 + 10


def test_check_free(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    check_free(tmp_path / "new", overwrite=False)
    check_free(tmp_path / "empty", overwrite=False, kind=MODEL)
    with pytest.raises(StorageError, match="output is a file, and a folder is in its place"):
        check_free(tmp_path / "empty", overwrite=True)
    with pytest.raises(StorageError, match="output exists"):
        check_free(tmp_path / "dangling", overwrite=False)
    with pytest.raises(StorageError, match="folder of the output does not exist") as caught:
        check_free(tmp_path / "no" / "out", overwrite=True)
    assert caught.value.where == str(tmp_path / "no")


def test_an_output_never_replaces_an_input(tmp_path):
    base = tmp_path / "family" / "base"
    base.mkdir(parents=True)
    (tmp_path / "link").symlink_to(base)
    for output in (base, base.parent, tmp_path, tmp_path / "link", base / ".." / "base"):
        with pytest.raises(UsageError, match="would replace an input") as caught:
            protect_inputs(output, [Path("/elsewhere"), base])
        assert str(base) in caught.value.where
    for output in (base / "out", tmp_path / "link" / "deep" / "out"):
        with pytest.raises(UsageError, match="lies inside an input"):
            protect_inputs(output, [base])
    for output in (tmp_path / "out", base.parent / "bas"):
        protect_inputs(output, [base])
