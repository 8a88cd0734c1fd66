"""From a task's name to its checkpoint, in every layout the original commands knew."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from svd_hybrid.errors import FamilyError, StorageError, UsageError
from svd_hybrid.io.lookup import find_task_checkpoint, fold_name, match_name

IN_ORDER = [
    "cars.safetensors",
    "cars.pt",
    "cars.pth",
    "cars/model.safetensors.index.json",
    "cars/model.safetensors",
    "cars/pytorch_model.bin.index.json",
    "cars/pytorch_model.bin",
    "cars/checkpoint.pt",
    "cars/model.pt",
    "cars/finetuned.pt",
    "cars/anything.safetensors",
]
"""Every documented layout, the ones that win first."""


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def expected(folder: Path, layout: str) -> Path:
    """A folder in HF layout is opened as a folder, everything else as the file itself."""
    is_hf = layout.startswith("cars/") and not layout.endswith(".pt")
    return folder / "cars" if is_hf else folder / layout


@pytest.mark.parametrize("layout", IN_ORDER)
def test_every_layout_alone(tmp_path, layout):
    touch(tmp_path, layout, "dtd.pt", "notes.txt", "cars.log")
    assert find_task_checkpoint(tmp_path, "cars") == expected(tmp_path, layout)


@pytest.mark.parametrize(("first", "second"), list(pairwise(IN_ORDER[:-1])))
def test_precedence(tmp_path, first, second):
    touch(tmp_path, first, second)
    assert find_task_checkpoint(tmp_path, "cars") == expected(tmp_path, first)


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("EuroSAT", "eurosat.pt"),
        ("euro_sat", "EuroSAT.safetensors"),
        ("euro-sat", "euro_sat.pth"),
        ("SUN397", "sun_397/model.pt"),
        ("stanford_cars", "StanfordCars/model.safetensors"),
    ],
)
def test_spelling_does_not_matter_where_one_entry_fits(tmp_path, asked, there):
    touch(tmp_path, there)
    found = find_task_checkpoint(tmp_path, asked)
    assert found in (tmp_path / there, (tmp_path / there).parent)


def test_the_exact_spelling_wins(tmp_path):
    touch(tmp_path, "EuroSAT.pt", "eurosat.pt", "euro_sat.pt")
    assert find_task_checkpoint(tmp_path, "eurosat") == tmp_path / "eurosat.pt"


def test_two_spellings_that_fit_are_ambiguous(tmp_path):
    touch(tmp_path, "EuroSAT.pt", "euro_sat.safetensors")
    with pytest.raises(FamilyError, match="ambiguous: 'EuroSAT', 'euro_sat'"):
        find_task_checkpoint(tmp_path, "eurosat")


def test_a_dotted_task_name_is_a_name(tmp_path):
    touch(tmp_path, "qwen2.5-math.safetensors", "llama-3.1/model.safetensors")
    assert find_task_checkpoint(tmp_path, "qwen2.5-math") == tmp_path / "qwen2.5-math.safetensors"
    assert find_task_checkpoint(tmp_path, "llama-3.1") == tmp_path / "llama-3.1"


def test_a_misspelt_task_gets_a_suggestion(tmp_path):
    touch(tmp_path, "cars.pt", "dtd.pt")
    with pytest.raises(FamilyError, match="no checkpoint for task 'crs'") as caught:
        find_task_checkpoint(tmp_path, "crs")
    assert "did you mean 'cars'?" in caught.value.fix
    assert str(tmp_path) in caught.value.where


def test_an_empty_folder_says_what_to_put_there(tmp_path):
    with pytest.raises(FamilyError) as caught:
        find_task_checkpoint(tmp_path, "cars")
    assert "put cars.safetensors, cars.pt or cars/ there" in caught.value.fix


def test_a_task_folder_without_a_checkpoint(tmp_path):
    touch(tmp_path, "cars/training.log", "cars/a.safetensors", "cars/b.safetensors")
    with pytest.raises(FamilyError, match="folder without a checkpoint") as caught:
        find_task_checkpoint(tmp_path, "cars")
    assert caught.value.where == str(tmp_path / "cars")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="checkpoint folder does not exist"):
        find_task_checkpoint(tmp_path / "ckpt", "cars")


def test_folding_ignores_case_underscore_and_hyphen_only():
    assert fold_name("Euro_SAT") == fold_name("euro-sat") == fold_name("EUROSAT")
    assert fold_name("cars1") != fold_name("cars2")
    assert fold_name("straße") == fold_name("STRASSE")


def test_match_name():
    assert match_name("a", ["a", "A"], "task", "") == "a"
    assert match_name("A_b", ["ab", "c"], "task", "") == "ab"
    with pytest.raises(UsageError, match="ambiguous"):
        match_name("a-b", ["a_b", "AB"], "task", "")
    with pytest.raises(UsageError, match="no task 'x'"):
        match_name("x", [], "task", "")
