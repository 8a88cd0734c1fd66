"""Masks in every layout that exists, combined as documented; none of their pickles is ever run."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from svd_hybrid.compress.config import resolve_config
from svd_hybrid.compress.masks.family import FamilyMasks
from svd_hybrid.compress.settings import FamilySettings
from svd_hybrid.compress.tensor import encode_tensor
from svd_hybrid.errors import FamilyError, StorageError, SvdhError, UnsafeError, UsageError
from svd_hybrid.io.array_pickle import load_byte_arrays
from svd_hybrid.io.family import FamilyPolicy, open_family
from svd_hybrid.io.masks import open_masks
from svd_hybrid.io.tensors import info_of
from tests.io.checkpoints import Detonator, random_state, same, write

BASE = random_state(0, bias=(3,), scale=(), weight=(3, 5)) | {"steps": torch.tensor([7])}
INFOS = {name: info_of(tensor) for name, tensor in BASE.items()}
FLOATS = ["bias", "scale", "weight"]
TASKS = ["cars", "dtd"]


def random_masks(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(BASE[n].shape, generator=generator) < 0.5 for n in FLOATS}


CARS, DTD = random_masks(1), random_masks(2)


def packed(masks: dict[str, Tensor]) -> np.ndarray:
    """Bits of the canonical flattening: names in ascending order, first scalar in the top bit."""
    return np.packbits(torch.cat([masks[n].reshape(-1) for n in FLOATS]).numpy())


PACKED = {"cars": packed(CARS), "dtd": packed(DTD)}


def assert_masks(found, task: str, want: dict[str, Tensor]) -> None:
    for name in FLOATS:
        assert same(found[task].read(name), want[name]), (task, name)
    assert found[task].read("steps") is None


# --- one file per task ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("pattern", ["{}_mask", "{}", "{}/mask"])
def test_every_layout_of_one_file_per_task(tmp_path, pattern, suffix):
    write(tmp_path / (pattern.format("cars") + suffix), CARS)
    write(tmp_path / (pattern.format("dtd") + suffix), DTD)
    found = open_masks(tmp_path, TASKS, INFOS)
    assert_masks(found, "cars", CARS)
    assert_masks(found, "dtd", DTD)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_masks_of_zeros_and_ones_in_any_dtype(tmp_path, dtype):
    write(tmp_path / "cars_mask.pt", {name: mask.to(dtype) for name, mask in CARS.items()})
    assert_masks(open_masks(tmp_path, ["cars"], INFOS), "cars", CARS)


def test_the_most_explicit_name_and_the_safest_container_win(tmp_path):
    for name in ("cars_mask.safetensors", "cars_mask.pt", "cars.pt", "cars/mask.pt"):
        write(tmp_path / name, CARS if name == "cars_mask.safetensors" else DTD)
    assert_masks(open_masks(tmp_path, ["cars"], INFOS), "cars", CARS)


def test_spelling_of_the_task_does_not_matter_where_one_file_fits(tmp_path):
    write(tmp_path / "Stanford-Cars_mask.pt", CARS)
    assert_masks(open_masks(tmp_path, ["stanford_cars"], INFOS), "stanford_cars", CARS)
    write(tmp_path / "StanfordCars_mask.pt", CARS)
    with pytest.raises(UsageError, match="ambiguous"):
        open_masks(tmp_path, ["stanford_cars"], INFOS)


def test_a_mask_may_cover_some_tensors_only(tmp_path):
    write(tmp_path / "cars.pt", {"weight": CARS["weight"]})
    found = open_masks(tmp_path, ["cars"], INFOS)
    assert found["cars"].read("bias") is None
    assert same(found["cars"].read("weight"), CARS["weight"])


def test_tasks_without_a_mask_are_absent(tmp_path):
    write(tmp_path / "dtd.pt", DTD)
    assert list(open_masks(tmp_path, TASKS, INFOS)) == ["dtd"]


def test_a_mask_folder_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="mask folder does not exist"):
        open_masks(tmp_path / "masks", TASKS, INFOS)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ({"ghost": torch.ones(2)}, "'ghost', which the base lacks"),
        ({"weight": torch.ones(5, 3)}, r"'weight' is \[5, 3\], the base has \[3, 5\]"),
        ({"weight": torch.ones(15)}, r"'weight' is \[15\]"),
    ],
)
def test_a_mask_that_does_not_fit_the_base(tmp_path, mask, said):
    path = write(tmp_path / "cars_mask.pt", mask)
    with pytest.raises(FamilyError, match=said) as caught:
        open_masks(tmp_path, ["cars"], INFOS)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("value", [2.0, 0.5, -1.0, float("nan")])
def test_values_other_than_zero_and_one(tmp_path, value):
    write(tmp_path / "cars_mask.pt", {"bias": torch.tensor([1.0, value, 0.0])})
    found = open_masks(tmp_path, ["cars"], INFOS)
    with pytest.raises(FamilyError, match="'bias' holds values other than 0 and 1"):
        found["cars"].read("bias")


def test_code_in_a_mask_file_is_never_run(tmp_path):
    torch.save({"bias": torch.ones(3), "x": Detonator(tmp_path / "ran")}, tmp_path / "cars_mask.pt")
    with pytest.raises(UnsafeError, match="needs code"):
        open_masks(tmp_path, ["cars"], INFOS)
    assert not (tmp_path / "ran").exists()


# --- one packed file for all tasks ---------------------------------------------------------------


def numpy_1_torch_file(path: Path) -> None:
    """As torch saved it when NumPy 1 was current, which is how the published masks were made."""
    torch.save(PACKED, path)
    with zipfile.ZipFile(path) as archive:
        content = {item.filename: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(b"numpy._core.", b"numpy.core."))


def numpy_1_object_array(path: Path) -> None:
    np.save(path, PACKED, allow_pickle=True)
    header, dot, pickled = path.read_bytes().partition(b"\n")
    old, new = b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray"
    assert old in pickled
    start = pickled.index(b"\x95")  # the frame's length no longer holds: leave the frame out
    pickled = pickled[:start] + pickled[start + 9 :]
    path.write_bytes(header + dot + pickled.replace(old, new))


PACKED_WRITERS = {
    "np.save": lambda path: np.save(path, PACKED, allow_pickle=True),
    "np.save by NumPy 1": numpy_1_object_array,
    "torch.save": lambda path: torch.save(PACKED, path),
    "torch.save by NumPy 1": numpy_1_torch_file,
    "torch.save of tensors": lambda path: torch.save(
        {task: torch.from_numpy(bits) for task, bits in PACKED.items()}, path
    ),
    "pickle": lambda path: path.write_bytes(pickle.dumps(PACKED, protocol=2)),
}


@pytest.mark.parametrize("name", ["TALL_mask_2task.npy", "tall_mask_2task.pt"])
@pytest.mark.parametrize("writer", PACKED_WRITERS)
def test_packed_masks_of_every_writer(tmp_path, writer, name):
    target = tmp_path / "made.npy"  # np.save would append its suffix
    PACKED_WRITERS[writer](target)
    target.rename(tmp_path / name)
    found = open_masks(tmp_path, TASKS, INFOS)
    assert_masks(found, "cars", CARS)
    assert_masks(found, "dtd", DTD)


def test_bits_are_most_significant_first_over_ascending_names(tmp_path):
    infos = {name: info_of(torch.zeros(size)) for name, size in (("b", 5), ("a", 6))}
    bits = np.array([177, 160], dtype=np.uint8)  # 1,0,1,1,0,0,0,1,1,0,1 (methods.md §26)
    np.save(tmp_path / "TALL_mask_1task.npy", {"t": bits}, allow_pickle=True)
    mask = open_masks(tmp_path, ["t"], infos)["t"]
    assert mask.read("a").int().tolist() == [1, 0, 1, 1, 0, 0]
    assert mask.read("b").int().tolist() == [0, 1, 1, 0, 1]


def test_the_published_layout_names_tasks_in_its_own_spelling(tmp_path):
    torch.save({"Cars": packed(CARS), "DTD": packed(DTD)}, tmp_path / "TALL_mask_2task.npy")
    found = open_masks(tmp_path, TASKS, INFOS)
    assert_masks(found, "cars", CARS)
    assert list(open_masks(tmp_path, ["cars", "sun397"], INFOS)) == ["cars"]


@pytest.mark.parametrize("extra", [-1, 1, 100])
def test_a_packed_mask_of_another_model(tmp_path, extra):
    bits = np.zeros(len(packed(CARS)) + extra, dtype=np.uint8)
    np.save(tmp_path / "TALL_mask_1task.npy", {"cars": bits}, allow_pickle=True)
    with pytest.raises(FamilyError, match="19 scalars need 3 bytes") as caught:
        open_masks(tmp_path, ["cars"], INFOS)
    assert "'cars'" in caught.value.what
    assert "another model" in caught.value.fix


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no dictionary"),
        ([1, 2], "no dictionary"),
        ({"cars": np.zeros(3, dtype=np.float32)}, "'cars' is no array of bytes"),
        ({"cars": [1, 2, 3]}, "'cars' is no array of bytes"),
        ({"cars": packed(CARS).reshape(1, 3)}, "need 3 bytes"),
    ],
)
def test_packed_files_with_something_else(tmp_path, content, said):
    torch.save(content, tmp_path / "TALL_mask_1task.npy")
    with pytest.raises(FamilyError, match=said):
        open_masks(tmp_path, ["cars"], INFOS)


def test_a_plain_array_is_no_packed_mask(tmp_path):
    np.save(tmp_path / "TALL_mask_1task.npy", np.zeros(3, dtype=np.uint8))
    with pytest.raises(FamilyError, match="plain array"):
        open_masks(tmp_path, ["cars"], INFOS)


def test_two_packed_files_are_one_too_many(tmp_path):
    for count in (2, 8):
        np.save(tmp_path / f"TALL_mask_{count}task.npy", PACKED, allow_pickle=True)
    with pytest.raises(FamilyError, match="several packed mask files"):
        open_masks(tmp_path, TASKS, INFOS)


def object_array(value: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(value, dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["np.save", "torch.save", "pickle"])
def test_code_in_a_packed_mask_is_never_run(tmp_path, container):
    mark, path = tmp_path / "it-ran", tmp_path / "TALL_mask_2task.npy"
    record = PACKED | {"evil": Detonator(mark)}
    if container == "np.save":
        path.write_bytes(object_array(record))
    elif container == "torch.save":
        torch.save(record, path)
    else:
        path.write_bytes(pickle.dumps(record))
    with pytest.raises(UnsafeError, match=r"import .*mkdir") as caught:
        open_masks(tmp_path, TASKS, INFOS)
    assert not mark.exists(), "the pickle was run"
    assert caught.value.where == str(path)


class Reduced:
    """Asks the unpickler for one call of its choice."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "true"),
        (eval, "1"),
        (getattr, "x", "upper"),
        (np.load, "x.npy"),
        (np.array, [1]),
        (torch.zeros, 1),
        (pickle.loads, b"N."),
    ],
    ids=lambda call: call[0].__name__,
)
def test_no_function_at_all_is_called(tmp_path, call):
    (tmp_path / "TALL_mask_1task.npy").write_bytes(object_array({"cars": Reduced(*call)}))
    with pytest.raises(UnsafeError, match="asks to import"):
        open_masks(tmp_path, ["cars"], INFOS)


@pytest.mark.parametrize("writer", PACKED_WRITERS)
def test_damaged_packed_files_never_fail_in_another_way(tmp_path, writer):
    path = tmp_path / "made.npy"
    PACKED_WRITERS[writer](path)
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for _ in range(min(len(damaged), draw.choice([1, 2, 8]))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            load_byte_arrays(path)
        except (ValueError, UnsafeError, FamilyError):
            refused += 1
    assert refused, "no damage was noticed at all"


# --- combination ---------------------------------------------------------------------------------


def family_masks(tmp_path: Path, masks: dict[str, dict[str, Tensor]], tasks: list[str], **config):
    base = write(tmp_path / "base.safetensors", BASE)
    paths = {task: write(tmp_path / f"{task}.safetensors", BASE) for task in tasks}
    folder = tmp_path / "masks"
    folder.mkdir()
    for task, mask in masks.items():
        write(folder / f"{task}_mask.safetensors", mask)
    family = open_family(base, paths, FamilyPolicy())
    return FamilyMasks.open(folder, family, resolve_config(config, "test"))


VOTES = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0]]).bool()
FOUR = ["a", "b", "c", "d"]
COMBINED = {
    "union": [1, 1, 1, 1, 0],
    "intersection": [1, 0, 0, 0, 0],
    "majority": [1, 1, 1, 0, 0],  # 2 of 4 count
}


@pytest.mark.parametrize("strategy", COMBINED)
def test_strategies_over_four_tasks(tmp_path, strategy):
    masks = {task: {"weight": VOTES[i].expand(3, 5)} for i, task in enumerate(FOUR)}
    combined = family_masks(tmp_path, masks, FOUR, mask_strategy=strategy).combined("weight")
    assert combined.int().tolist() == [COMBINED[strategy]] * 3


@pytest.mark.parametrize(
    ("threshold", "row"), [(0.51, [1, 0, 0, 0, 0]), (0.25, [1, 1, 1, 1, 0]), (1.0, [1, 0, 0, 0, 0])]
)
def test_the_threshold_of_a_majority_is_inclusive(tmp_path, threshold, row):
    masks = {task: {"weight": VOTES[i].expand(3, 5)} for i, task in enumerate(FOUR)}
    options = {"mask_strategy": "majority", "majority_threshold": threshold}
    combined = family_masks(tmp_path, masks, FOUR, **options).combined("weight")
    assert combined[0].int().tolist() == row


def test_union_is_the_default_and_no_folder_means_no_mask(tmp_path):
    masks = family_masks(tmp_path, {"cars": CARS, "dtd": DTD}, TASKS)
    assert same(masks.combined("weight"), CARS["weight"] | DTD["weight"])
    nothing = FamilyMasks.open(None, masks.source, masks.config)
    assert nothing.combined("weight") is None
    assert nothing.same("weight", "bias")


def test_a_task_without_a_mask_is_an_error_by_default(tmp_path):
    with pytest.raises(FamilyError, match="no mask for task 'dtd'") as caught:
        family_masks(tmp_path, {"cars": CARS}, TASKS)
    assert "--missing-mask ones or ignore" in caught.value.fix
    assert caught.value.where.endswith("masks")


@pytest.mark.parametrize("missing", ["error", "ones", "ignore"])
def test_a_folder_without_any_mask_is_always_an_error(tmp_path, missing):
    with pytest.raises(FamilyError, match="no mask for task 'cars', 'dtd'") as caught:
        family_masks(tmp_path, {}, TASKS, missing_mask=missing)
    assert "--missing-mask" not in caught.value.fix


@pytest.mark.parametrize("strategy", ["union", "intersection"])
def test_ones_lets_the_task_select_everything(tmp_path, strategy):
    options = {"missing_mask": "ones", "mask_strategy": strategy}
    masks = family_masks(tmp_path, {"cars": CARS}, TASKS, **options)
    want = CARS["weight"] if strategy == "intersection" else torch.ones(3, 5, dtype=torch.bool)
    assert same(masks.combined("weight"), want)
    assert any("missing_mask=ones applied to 'dtd'" in line for line in masks.notes)


@pytest.mark.parametrize("strategy", ["union", "intersection", "majority"])
def test_ignore_leaves_the_task_out_of_the_vote(tmp_path, strategy):
    options = {"missing_mask": "ignore", "mask_strategy": strategy}
    masks = family_masks(tmp_path, {"cars": CARS}, TASKS, **options)
    assert same(masks.combined("weight"), CARS["weight"])


def test_masks_that_cover_different_tensors_follow_the_same_rule(tmp_path):
    some = {"cars": CARS, "dtd": {"bias": DTD["bias"]}}
    masks = family_masks(tmp_path, some, TASKS)
    with pytest.raises(FamilyError, match="masks of some tasks cover 'weight'") as caught:
        masks.combined("weight")
    assert "'dtd'" in caught.value.what
    assert same(masks.combined("bias"), CARS["bias"] | DTD["bias"])


def test_a_tensor_without_any_mask_is_whole(tmp_path):
    masks = family_masks(tmp_path, {t: {"weight": CARS["weight"]} for t in TASKS}, TASKS)
    assert masks.combined("bias") is None
    assert masks.combined("weight") is not None


def encoded_with(deltas, mask):
    """Two tasks' deltas under profile hybrid (a mask counts from 10 scalars on)."""
    config = resolve_config({"profile": "hybrid"}, "test")
    settings = FamilySettings(config, TASKS, (0.5, 0.5), ["d"]).of("d")
    return encode_tensor(deltas, mask, config, settings)


@pytest.mark.parametrize(("selected", "whole"), [(0, True), (9, True), (10, False), (14, False)])
def test_a_mask_below_the_smallest_size_is_ignored(selected, whole):
    """Unlike the original, which gave such tensors no delta at all."""
    deltas = random_state(3, d=(2, 3, 5))["d"]
    mask = (torch.arange(15) < selected).reshape(3, 5)
    encoded = encoded_with(deltas, mask)
    assert encoded.masked is not whole
    assert encoded.signal.scalars == (15 if whole else selected)


def test_a_mask_that_selects_everything_is_not_stored():
    deltas = random_state(3, d=(2, 3, 5))["d"]
    encoded = encoded_with(deltas, torch.ones(3, 5, dtype=torch.bool))
    assert not encoded.masked
    assert "mask" not in encoded.parts


def test_errors_are_always_ours(tmp_path):
    """Whatever lies in a mask folder, the error is one of ours."""
    for name, content in {"cars_mask.pt": b"\x80\x02junk", "dtd.safetensors": b"junk"}.items():
        (tmp_path / name).write_bytes(content)
    for task in TASKS:
        with pytest.raises(SvdhError):
            open_masks(tmp_path, [task], INFOS)
