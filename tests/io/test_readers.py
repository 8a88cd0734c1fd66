"""Every container gives the same tensors; all else is refused by its name, and never run."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import threading
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from svd_hybrid.errors import FamilyError, StorageError, SvdhError, UnsafeError
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.io.tensors import TensorInfo
from tests.io.checkpoints import (
    EVERY_KIND,
    Detonator,
    poisoned,
    random_state,
    same,
    write,
    write_sharded,
)

LEGACY = {"_use_new_zipfile_serialization": False}


def read_all(path: Path) -> dict[str, torch.Tensor]:
    reader = open_checkpoint(path)
    return {name: reader.read(name) for name in reader.infos}


def assert_same_state(got, want) -> None:
    assert sorted(got) == sorted(want)
    for name, tensor in want.items():
        assert same(got[name], tensor), name
        assert got[name].is_contiguous(), name


@pytest.fixture(params=["safetensors", "pt", "pth", "bin", "legacy.pt"])
def every_container(request, tmp_path) -> Path:
    path = tmp_path / f"model.{request.param}"
    if request.param.startswith("legacy"):
        torch.save(EVERY_KIND, path, **LEGACY)
        return path
    return write(path, EVERY_KIND)


def test_every_container_gives_every_dtype_and_shape(every_container):
    assert_same_state(read_all(every_container), EVERY_KIND)


def test_headers_tell_dtype_and_shape(every_container):
    infos = open_checkpoint(every_container).infos
    assert infos["b16"] == TensorInfo("BF16", (2, 2))
    assert infos["scalar"] == TensorInfo("F32", ())
    assert infos["empty"] == TensorInfo("F32", (0, 3))
    assert infos["flag"] == TensorInfo("BOOL", (3,))
    assert infos["empty"].nbytes == 0
    assert infos["i64"].nbytes == 16
    assert not infos["i64"].is_float


def test_a_reader_knows_its_files(every_container):
    reader = open_checkpoint(every_container)
    assert reader.files == (every_container,)
    assert reader.path == every_container


@pytest.mark.parametrize(
    ("claimed", "actual"), [("m.pt", "x.safetensors"), ("m.safetensors", "x.pt"), ("m", "x.bin")]
)
def test_content_decides_and_not_the_suffix(tmp_path, claimed, actual):
    write(tmp_path / actual, EVERY_KIND).rename(tmp_path / claimed)
    assert_same_state(read_all(tmp_path / claimed), EVERY_KIND)


def test_a_header_length_that_looks_like_a_pickle_is_only_a_length(tmp_path):
    """One safetensors file in 32 begins with the byte that begins a pickle."""
    path = write(tmp_path / "m.safetensors", EVERY_KIND)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    size = 2**16 + 0x80
    path.write_bytes(size.to_bytes(8, "little") + whole[8:end].ljust(size) + whole[end:])
    assert path.read_bytes().startswith(b"\x80")
    assert_same_state(read_all(path), EVERY_KIND)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_nested_state_dicts_are_unwrapped(tmp_path, key, options):
    state = random_state(0, w=(3, 2))
    record = {"epoch": 3, key: state, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}
    torch.save(record, tmp_path / "m.pt", **options)
    assert_same_state(read_all(tmp_path / "m.pt"), state)


def test_a_tensor_named_model_is_no_nesting(tmp_path):
    state = random_state(0, model=(3, 2), state_dict=(2,))
    torch.save(state, tmp_path / "m.pt")
    assert_same_state(read_all(tmp_path / "m.pt"), state)


def test_the_state_dict_of_a_real_module_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    assert_same_state(read_all(tmp_path / "m.pt"), module.state_dict())
    torch.save(dict(module.named_parameters()), tmp_path / "p.pt")
    read = read_all(tmp_path / "p.pt")
    assert not any(tensor.requires_grad for tensor in read.values())


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_views_strides_and_shared_storage_come_back_as_values(tmp_path, options):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "whole": whole,
        "transposed": whole.T,
        "rows": whole[1:3],
        "column": whole[:, 2],
        "expanded": whole[0, :1].expand(5),
        "tied": whole,
    }
    torch.save(state, tmp_path / "m.pt", **options)
    assert_same_state(read_all(tmp_path / "m.pt"), state)


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_opening_reads_no_data(tmp_path, name):
    """The data may be wiped between opening and reading: it is only looked at then."""
    path = write(tmp_path / name, {"w": torch.ones(2**16)})
    reader = open_checkpoint(path)
    data = path.read_bytes()
    start = data.index(struct.pack("<f", 1.0) * 64)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(struct.pack("<f", 7.0) * 16)
    assert reader.read("w")[:16].tolist() == [7.0] * 16


def test_threads_may_read_one_file(tmp_path):
    state = random_state(0, **{f"t{i}": (64, 64) for i in range(8)})
    reader = open_checkpoint(write(tmp_path / "m.safetensors", state))
    wrong = []

    def check(name: str) -> None:
        if not same(reader.read(name), state[name]):
            wrong.append(name)

    threads = [threading.Thread(target=check, args=(name,)) for name in state]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file_name", ["model.safetensors", "pytorch_model.bin", "anything.safetensors"]
)
def test_a_folder_with_one_weight_file(tmp_path, file_name):
    write(tmp_path / "hf" / file_name, EVERY_KIND)
    (tmp_path / "hf" / "config.json").write_text("{}")
    reader = open_checkpoint(tmp_path / "hf")
    assert reader.path == tmp_path / "hf"
    assert reader.files == (tmp_path / "hf" / file_name,)
    assert_same_state(read_all(tmp_path / "hf"), EVERY_KIND)


SHARDS = {
    "model-00001-of-00002.safetensors": random_state(1, a=(2, 3), b=(4,)),
    "model-00002-of-00002.safetensors": random_state(2, c=(5,)),
}
STATE = {name: tensor for shard in SHARDS.values() for name, tensor in shard.items()}
TRUE_INDEX = {name: file_name for file_name, shard in SHARDS.items() for name in shard}
FIRST, SECOND = SHARDS


def test_a_sharded_folder_is_one_checkpoint(tmp_path):
    folder = write_sharded(tmp_path / "hf", SHARDS)
    assert_same_state(read_all(folder), STATE)
    assert sorted(open_checkpoint(folder).files) == [folder / FIRST, folder / SECOND]


def test_a_sharded_folder_of_torch_files(tmp_path):
    shards = {f"pytorch_model-{i}.bin": state for i, state in enumerate(SHARDS.values())}
    folder = write_sharded(tmp_path / "hf", shards, index_name="pytorch_model.bin.index.json")
    assert_same_state(read_all(folder), STATE)


def test_an_index_wins_over_a_whole_file(tmp_path):
    folder = write_sharded(tmp_path / "hf", SHARDS)
    write(folder / "pytorch_model.bin", random_state(9, other=(1,)))
    assert_same_state(read_all(folder), STATE)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        (TRUE_INDEX | {"ghost": FIRST}, "'ghost'"),
        ({name: file for name, file in TRUE_INDEX.items() if name != "b"}, "'b'"),
        (TRUE_INDEX | {"a": SECOND}, "'a'"),
    ],
    ids=["not in the shard", "not in the index", "in another shard"],
)
def test_index_and_shards_must_agree_both_ways(tmp_path, index, named):
    folder = write_sharded(tmp_path / "hf", SHARDS, index)
    with pytest.raises(FamilyError, match="index and shards disagree") as caught:
        open_checkpoint(folder)
    assert named in caught.value.what
    assert "index.json" in caught.value.where


def test_a_missing_shard_is_named(tmp_path):
    folder = write_sharded(tmp_path / "hf", SHARDS)
    (folder / SECOND).unlink()
    with pytest.raises(FamilyError, match=SECOND):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "escape", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", ""]
)
def test_an_index_may_not_leave_its_folder(tmp_path, escape):
    write(tmp_path / "outside.safetensors", random_state(3, w=(1,)))
    write(tmp_path / "hf" / "sub" / "x.safetensors", random_state(3, w=(1,)))
    folder = write_sharded(tmp_path / "hf", {}, {"w": escape})
    with pytest.raises(UnsafeError, match="outside its folder") as caught:
        open_checkpoint(folder)
    assert repr(escape) in caught.value.where


def test_an_index_that_points_at_a_folder_does_not_recurse(tmp_path):
    folder = write_sharded(tmp_path / "hf", {}, {"w": "loop"})
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    with pytest.raises(FamilyError, match="missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {}', "\xff"]
)
def test_a_damaged_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin1"))
    with pytest.raises(FamilyError, match="index is not a weight map"):
        open_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_says_what_it_needs(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(FamilyError, match="no checkpoint") as caught:
        open_checkpoint(tmp_path)
    assert "model.safetensors" in caught.value.fix


def test_a_folder_with_two_unnamed_checkpoints_is_refused(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        write(tmp_path / name, random_state(0, w=(1,)))
    with pytest.raises(FamilyError, match="no checkpoint svdh recognises"):
        open_checkpoint(tmp_path)


# --- what is refused -----------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    with pytest.raises(StorageError, match="does not exist") as caught:
        open_checkpoint(tmp_path / "nowhere.pt")
    assert "nowhere.pt" in caught.value.where


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="neither a file nor a folder"):
        open_checkpoint(tmp_path / "pipe")


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["beside", "nested", "instead"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path, options, where):
    mark = tmp_path / "it-ran"
    record = {
        "beside": poisoned(mark),
        "nested": {"state_dict": random_state(0, w=(2,)), "args": Detonator(mark)},
        "instead": Detonator(mark),
    }[where]
    torch.save(record, tmp_path / "m.pt", **options)
    with pytest.raises(UnsafeError, match="needs code to load") as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert not mark.exists(), "the pickle was run"
    assert "mkdir" in caught.value.what
    assert "save its state_dict()" in caught.value.fix


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_in_a_bare_pickle_is_never_run(tmp_path, protocol):
    mark = tmp_path / "it-ran"
    (tmp_path / "m.bin").write_bytes(pickle.dumps(Detonator(mark), protocol=protocol) * 3)
    with pytest.raises(SvdhError) as caught:
        open_checkpoint(tmp_path / "m.bin")
    assert isinstance(caught.value, UnsafeError | FamilyError)
    assert not mark.exists(), "the pickle was run"


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_a_pickled_module_is_refused_by_its_name(tmp_path, options):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt", **options)
    with pytest.raises(UnsafeError, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(tmp_path / "m.pt")


def test_arguments_beside_the_state_dict_are_named(tmp_path):
    torch.save({"state_dict": EVERY_KIND, "args": Namespace(lr=1)}, tmp_path / "m.pt")
    with pytest.raises(UnsafeError, match=r"argparse\.Namespace"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_refused_as_what_it_is(tmp_path):
    """OpenAI's CLIP checkpoints are of this kind."""
    script = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(script, tmp_path / "ViT-B-32.pt")
    with pytest.raises(UnsafeError, match="TorchScript"):
        open_checkpoint(tmp_path / "ViT-B-32.pt")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (torch.zeros(3), "holds Tensor"),
        ({}, "not a state dict"),
        ([torch.zeros(3)], "holds list"),
        ({"w": torch.zeros(2), "epoch": 3}, "'epoch'"),
        ({"w": {"x": torch.zeros(2)}}, "'w'"),
        ({0: torch.zeros(2)}, "'0'"),
        ({"w": torch.eye(3).to_sparse()}, "sparse"),
        ({"state_dict": {}}, "not a state dict"),
    ],
)
def test_torch_files_without_a_state_dict_say_what_they_hold(tmp_path, record, said):
    torch.save(record, tmp_path / "m.pt")
    with pytest.raises(FamilyError, match=said):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "content", [b"", b"P", b"PK", b"PK\x03\x04", b"\x80", b"\x80\x02", b"hello", b"{" * 100]
)
def test_files_that_are_no_checkpoint(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(FamilyError) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert "m.pt" in caught.value.where
    assert caught.value.fix


def test_a_truncated_file_is_refused_wherever_it_is_cut(every_container):
    whole = every_container.read_bytes()
    for size in sorted({*range(0, 64, 7), *range(64, len(whole), 97), len(whole) - 1}):
        every_container.write_bytes(whole[:size])
        with pytest.raises((FamilyError, UnsafeError)):
            open_checkpoint(every_container)


def test_damaged_files_never_fail_in_another_way(every_container):
    whole = every_container.read_bytes()
    draw = random.Random(0)
    refused = []
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2, 8])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        every_container.write_bytes(damaged)
        try:
            read_all(every_container)
        except (FamilyError, UnsafeError) as error:
            refused.append(str(error))
    assert refused, "no damage was noticed at all"
    assert max(map(len, refused)) < 500


def test_a_header_beyond_the_file_is_refused(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 20)
    with pytest.raises(FamilyError, match="neither safetensors nor"):
        open_checkpoint(path)
