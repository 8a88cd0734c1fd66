"""Data and models that cannot be used: one clear error each, and nothing made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from svd_hybrid.cli.app import main
from svd_hybrid.collect.store import StatisticsStore
from svd_hybrid.data.load import load_examples
from svd_hybrid.data.source import Source, sources_of
from svd_hybrid.errors import DataError, FamilyError, LockedError, StorageError, UsageError
from svd_hybrid.io import locks
from svd_hybrid.models import inputs
from tests.collect.test_layers_seen import collected, images, tokens
from tests.models.tiny import VOCABULARY, saved

WORDS = ("the", "cat", "sat", "on", "a", "mat")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return with_tokenizer(saved("llama", tmp_path_factory.mktemp("m") / "llama"), VOCABULARY)


def with_tokenizer(folder: Path, size: int) -> Path:
    """Words, and numbers up to the size as words."""
    vocabulary = {word: number for number, word in enumerate((*WORDS, "[UNK]"))}
    vocabulary |= {f"w{number}": number for number in range(len(vocabulary), size)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    return folder


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


TEXT = [{"text": " ".join(WORDS[:length])} for length in (2, 6, 3)]


def test_text_is_tokenised_and_padding_left_out(llama, tmp_path):
    for name, data in {
        "jsonl": lines(tmp_path / "d.jsonl", *TEXT),
        "dataset": dataset_folder(tmp_path / "ds", {"train": TEXT}),
    }.items():
        source = f"{data}@train" if name == "dataset" else str(data)
        _, result = collected(llama, Path(source), tmp_path / name, "moment")
        assert set(result.records["ant"].rows.values()) == {2 + 6 + 3}
    (tmp_path / "d.txt").write_text(" ".join(WORDS * 3), encoding="utf-8")
    _, result = collected(llama, tmp_path / "d.txt", tmp_path / "t", inputs={"max_length": 4})
    assert set(result.records["ant"].rows.values()) == {16}  # four rows of 4; two tokens left out


def dataset_folder(path: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    made = datasets.DatasetDict({s: datasets.Dataset.from_list(r) for s, r in splits.items()})
    made.save_to_disk(path)
    return path


def test_a_dataset_is_read_by_task_with_its_labels(tmp_path):
    rows = [
        {"text": f"w{number}", "label": "no" if number % 2 else "yes", "task": task}
        for number, task in enumerate(("ant", "bee", "ant", "bee", "ant"))
    ]
    data = dataset_folder(tmp_path / "ds", {"train": rows})
    found = load_examples(Source.parse(f"{data}@train[1:3]"), "ant")
    assert list(found.inputs) == ["w2", "w4"]
    assert found.classes == ("yes",)
    assert list(load_examples(Source.parse(f"{data}@train"), "bee").inputs) == ["w1", "w3"]


@pytest.mark.parametrize(
    ("split", "text"),
    [("@test", "no split 'test'; the dataset has 'train'"), ("", "no split was named")],
)
def test_a_split_the_dataset_does_not_have(llama, tmp_path, split, text):
    data = dataset_folder(tmp_path / "ds", {"train": TEXT})
    with pytest.raises(FamilyError, match=text):
        collected(llama, Path(f"{data}{split}"), tmp_path / "st")


@pytest.mark.parametrize("more", [{"samples": 7}, {"samples": 100}])
def test_too_few_samples(llama, tmp_path, more):
    with pytest.raises(FamilyError, match=f"data has 6 samples, {more['samples']} were asked for"):
        collected(llama, tokens(tmp_path / "d.npz"), tmp_path / "st", inputs=more)
    assert not (tmp_path / "st").exists()


def test_token_ids_beyond_the_vocabulary(llama, tmp_path):
    np.savez(tmp_path / "d.npz", input_ids=np.array([[1, VOCABULARY]]))
    with pytest.raises(FamilyError, match=f"token id {VOCABULARY} is not in the model's vocab"):
        collected(llama, tmp_path / "d.npz", tmp_path / "st")


def test_the_tokenizer_of_another_model(llama, tmp_path):
    other = with_tokenizer(tmp_path / "other", VOCABULARY + 30)
    data = lines(tmp_path / "d.jsonl", {"text": f"the w{VOCABULARY + 20}"})
    with pytest.raises(FamilyError, match="not in the model's vocabulary"):
        collected(llama, data, tmp_path / "st", inputs={"tokenizer": other})


def test_a_model_without_a_tokenizer(tmp_path):
    data = lines(tmp_path / "d.jsonl", *TEXT)
    with pytest.raises(UsageError, match="holds no tokenizer"):
        collected(saved("llama", tmp_path / "m"), data, tmp_path / "st")


def test_infinite_activations_name_layer_and_sample(tmp_path):
    folder = saved("gpt2", tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    state["transformer.wte.weight"][7] = torch.inf
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    data = lines(tmp_path / "d.jsonl", *({"input_ids": row} for row in ([1, 2], [3], [5, 7], [4])))
    with pytest.raises(FamilyError, match=r"transformer\.h\.0.* hold NaN or infinity at sample 2"):
        collected(folder, data, tmp_path / "st", "moment")


@pytest.mark.parametrize(
    ("name", "content", "fault", "text"),
    [
        ("d.txt", "", FamilyError, "file is empty"),
        ("d.jsonl", "  \n", FamilyError, "no samples"),
        ("d.jsonl", "{oops", FamilyError, "no JSON"),
        ("d.jsonl", '{"body": "x"}', FamilyError, "no column 'text'"),
        ("d.jsonl", '{"text": 3}', FamilyError, "holds int, which is no text"),
        ("d.jsonl", '{"text": "x", "task": "bee"}', FamilyError, "no rows of task 'ant'"),
        ("d.npz", "nonsense", FamilyError, "no npz file"),
        ("d.parquet", "nonsense", FamilyError, "no parquet file"),
        ("d.xyz", "x", UsageError, r"kind .\.xyz. is not known"),
    ],
)
def test_files_that_hold_no_data(tmp_path, name, content, fault, text):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(fault, match=text):
        load_examples(Source(str(tmp_path / name)), "ant")


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"bee_images": np.zeros((2, 4, 4), np.uint8)}, "no data of task 'ant'; the arrays are"),
        ({"images": np.zeros((2, 4, 4))}, "images are float64"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "no samples"),
        ({"ant": np.zeros((2, 4))}, "token ids are float64"),
        (
            {"ant_images": np.zeros((2, 4, 4), np.uint8), "ant_labels": np.zeros(3, int)},
            "3 labels for 2 samples",
        ),
    ],
)
def test_arrays_that_hold_no_data(tmp_path, arrays, text):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(FamilyError, match=text):
        load_examples(Source(str(tmp_path / "d.npz")), "ant")


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        load_examples(Source(str(tmp_path / "no.npz")), "ant")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FamilyError, match="holds no images"):
        load_examples(Source(str(tmp_path / "empty")), "ant")


def test_images_of_a_folder_have_the_labels_of_their_subfolders(tmp_path):
    for name, grey in (("b", 10), ("a", 200)):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = np.full((6, 8), grey + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    found = load_examples(Source(str(tmp_path)), "ant")
    assert found.classes == ("a", "b")
    assert [int(image[0, 0]) for image in found.inputs] == [200, 201, 10, 11]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert [int(image[0, 0]) for image in found.spread(2).inputs] == [200, 10]
    (tmp_path / "a" / "0.png").write_text("nonsense")
    with pytest.raises(FamilyError, match="no image"):
        list(found.inputs)


def test_images_in_a_parquet_file(tmp_path):
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    rows = [{"image": {"bytes": data, "path": None}, "label": "b"} for _ in range(2)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    found = load_examples(Source(str(tmp_path / "d.parquet")), "ant")
    assert found.kind == "images"
    assert int(found.inputs[0][0, 0]) == 9
    assert found.classes == ("b",)


def test_a_range_takes_a_part(tmp_path):
    path = tokens(tmp_path / "d.npz")
    whole = load_examples(Source(str(path)), "ant")
    part = load_examples(Source.parse(f"{path}[2:4]"), "ant")
    assert len(part) == 2
    assert np.array_equal(part.inputs[0], whole.inputs[2])
    with pytest.raises(FamilyError, match=r"data has 6 samples, \[4:9\] was asked for"):
        load_examples(Source.parse(f"{path}[4:9]"), "ant")


def test_every_task_has_its_data():
    found = sources_of(["ant=a.npz", "b.npz[:5]"], ["ant", "bee"])
    assert found == {"ant": Source("a.npz"), "bee": Source("b.npz", "", 0, 5)}
    with pytest.raises(UsageError, match="no data for task 'bee'"):
        sources_of(["ant=a.npz"], ["ant", "bee"])
    with pytest.raises(UsageError, match="names the task 'bea'"):
        sources_of(["bea=a.npz"], ["ant", "bee"])


def test_images_of_different_sizes_need_a_size(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 12, 20), np.uint8))
    _, result = collected(saved("vit", tmp_path / "m"), tmp_path / "d.npz", tmp_path / "st")
    assert result.records["ant"].data["image_size"] == 16


def test_data_that_is_not_what_the_model_takes(llama, tmp_path):
    vit = saved("vit", tmp_path / "m")
    with pytest.raises(FamilyError, match="the model takes input_ids, the data gives pixel_values"):
        collected(llama, images(tmp_path / "i.npz", (2, 8, 8)), tmp_path / "a")
    with pytest.raises(FamilyError, match="the model takes pixel_values, the data gives input_ids"):
        collected(vit, tokens(tmp_path / "t.npz"), tmp_path / "b")
    channels = {"image_channels": 3}
    with pytest.raises(FamilyError, match=r"the model cannot run on pixel_values \[2, 3, 16, 16\]"):
        collected(vit, images(tmp_path / "j.npz", (2, 8, 8)), tmp_path / "c", inputs=channels)


def test_blank_images_stay_finite(tmp_path):
    images(tmp_path / "d.npz", (2, 16, 16))
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 16, 16), np.uint8))
    got, _ = collected(saved("vit", tmp_path / "m"), tmp_path / "d.npz", tmp_path / "st")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in got.values())


def test_a_second_run_on_one_folder_ends_with_7_and_takes_nothing_away(
    llama, tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "WAIT_S", 0.1)
    data = tokens(tmp_path / "data.npz", count=4, length=6)
    out = tmp_path / "out"
    store = StatisticsStore(out)
    with store.reserved(), pytest.raises(LockedError, match="another run"):
        collected(llama, data, out)
    assert not out.exists()
    collected(llama, data, out)
    assert sorted(path.name for path in out.iterdir()) == ["ant.safetensors", "statistics.json"]


def test_pieces_that_a_killed_run_left_beside_its_finished_file_go(llama, tmp_path):
    data = tokens(tmp_path / "data.npz", count=4, length=6)
    _, result = collected(llama, data, tmp_path / "out")
    piece = StatisticsStore(tmp_path / "out").piece(result.records["ant"], "around")
    piece.parent.mkdir(parents=True)
    piece.write_bytes(b"")
    collected(llama, data, tmp_path / "out")
    assert not (tmp_path / "out" / ".partial").exists()


def test_a_file_of_statistics_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "ant.safetensors").write_bytes(b"neither" * 9)
    assert main(["stats", "inspect", "--statistics-dir", str(tmp_path)]) == 3
    assert "ant.safetensors" in capsys.readouterr().err


def test_data_that_cannot_be_read_are_data_and_no_checkpoint(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"PK")
    with pytest.raises(DataError) as caught:
        load_examples(Source.parse(str(tmp_path / "d.npz")), "ant")
    assert caught.value.facts()["fix"] == "repair the data, or pass others"


def test_a_tokenizer_of_another_size_is_noted(llama, tmp_path, monkeypatch):
    data = lines(tmp_path / "d.jsonl", *TEXT)
    _, result = collected(llama, data, tmp_path / "out", "moment")
    assert not any("tokenizer" in note for note in result.notes)
    other = with_tokenizer(tmp_path / "other", len(WORDS) + 1)
    monkeypatch.setattr(inputs, "SPARE_ROWS", 8)
    _, result = collected(llama, data, tmp_path / "o2", "moment", inputs={"tokenizer": other})
    assert any(f"has {len(WORDS) + 1} tokens, the model {VOCABULARY}" in n for n in result.notes)


def test_a_checkpoint_in_the_place_of_statistics_is_never_replaced(llama, tmp_path):
    data = tokens(tmp_path / "data.npz", count=4, length=6)
    (tmp_path / "ckpts").mkdir()
    mine = tmp_path / "ckpts" / "ant.safetensors"
    mine.write_bytes((llama / "model.safetensors").read_bytes())
    with pytest.raises(StorageError, match="holds no statistics"):
        collected(llama, data, tmp_path / "ckpts", overwrite=True)
    with pytest.raises(UsageError, match="input of this run"):
        collected(llama, data, llama)
    assert mine.read_bytes() == (llama / "model.safetensors").read_bytes()
    assert not list(llama.glob("ant*"))
