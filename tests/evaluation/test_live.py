"""Evaluators of live models against the same numbers computed by hand with transformers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from svd_hybrid.errors import FamilyError, StorageError, UsageError
from svd_hybrid.evaluation.base import DivergedError, EvaluationError
from svd_hybrid.evaluation.classification import ClassificationSettings
from svd_hybrid.evaluation.factory import EvaluatorChoice
from svd_hybrid.evaluation.scoring import ModelScorer
from svd_hybrid.evaluation.split import Part
from svd_hybrid.evaluation.subjects import held
from svd_hybrid.models.inputs import InputSettings
from tests.models.tiny import VOCABULARY, saved

WIDTH, CLASSES, COUNT = 16, 4, 24


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """Tiny models, images, tokens, text and heads."""
    root = tmp_path_factory.mktemp("live")
    for kind in ("vit", "bert", "llama"):
        saved(kind, root / kind)
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (COUNT, 16, 16), dtype=np.uint8)
    labels = random.integers(0, CLASSES, COUNT)
    labels[0] = CLASSES - 1
    np.savez(root / "images.npz", cars_images=images, cars_labels=labels)
    ids = random.integers(1, VOCABULARY, (COUNT, 12))
    np.savez(root / "tokens.npz", cars_input_ids=ids, cars_labels=labels, plain=ids)
    torch.manual_seed(0)
    heads = {"cars.weight": torch.randn(CLASSES, WIDTH), "cars.bias": torch.randn(CLASSES)}
    save_file(heads, root / "heads.safetensors")
    save_file({"cars.weight": heads["cars.weight"]}, root / "zero.safetensors")
    return root


def choice(places: Path, name: str, **changes: object) -> EvaluatorChoice:
    model, data = {
        "vision": ("vit", "images.npz"),
        "text": ("bert", "tokens.npz"),
        "perplexity": ("llama", "tokens.npz"),
    }[name]
    outputs = ClassificationSettings(None if name == "perplexity" else places / "heads.safetensors")
    settings = {"data": (str(places / data),), "outputs": outputs} | changes
    return EvaluatorChoice(name, places / model, **settings)


def state_of(places: Path, kind: str) -> dict[str, torch.Tensor]:
    return load_file(places / kind / "model.safetensors")


def logits_by_hand(places: Path, name: str) -> torch.Tensor:
    from transformers import AutoModel

    heads = load_file(places / "heads.safetensors")
    with torch.inference_mode():
        if name == "vision":
            model = AutoModel.from_pretrained(places / "vit", add_pooling_layer=False).eval()
            pixels = torch.from_numpy(np.load(places / "images.npz")["cars_images"]).float() / 255
            deviation = pixels.std((1, 2), keepdim=True) + 0.02
            pixels = (pixels - pixels.mean((1, 2), keepdim=True)) / deviation
            found = model(pixels[:, None]).last_hidden_state[:, 0]
        else:
            model = AutoModel.from_pretrained(places / "bert", add_pooling_layer=False).eval()
            ids = torch.from_numpy(np.load(places / "tokens.npz")["cars_input_ids"])
            found = model(input_ids=ids).last_hidden_state.mean(1)
        return found @ heads["cars.weight"].T + heads["cars.bias"]


@pytest.mark.parametrize("name", ["vision", "text"])
def test_accuracy_and_loss_are_those_computed_by_hand(places, name):
    evaluator = choice(places, name).build(["cars"])
    kind = "vit" if name == "vision" else "bert"
    got = evaluator.open(state_of(places, kind))("cars")
    logits = logits_by_hand(places, name)
    labels = torch.from_numpy(np.load(places / "images.npz")["cars_labels"])
    right = float((logits.argmax(1) == labels).float().mean())
    assert got["accuracy"] == pytest.approx(100 * right)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert got["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert 0 < got["accuracy"] < 100
    assert evaluator.count("cars") == COUNT


def test_parts_and_batches_add_up(places):
    whole = choice(places, "vision").build(["cars"])
    state = state_of(places, "vit")
    parts = [whole.restricted(Part(name, 0.25)) for name in ("validation", "test")]
    counts = [part.count("cars") for part in parts]
    right = [part.open(state)("cars")["accuracy"] * part.count("cars") for part in parts]
    assert counts == [COUNT // 4, COUNT - COUNT // 4]
    assert sum(right) / COUNT == pytest.approx(whole.open(state)("cars")["accuracy"])
    small = choice(places, "vision", inputs=InputSettings(batch_size=5)).build(["cars"])
    assert small.open(state)("cars")["loss"] == pytest.approx(
        whole.open(state)("cars")["loss"], rel=1e-5
    )


def test_zero_shot_heads_compare_directions(places):
    outputs = ClassificationSettings(places / "zero.safetensors", "zero-shot")
    zero = choice(places, "vision", outputs=outputs).build(["cars"])
    linear = choice(
        places, "vision", outputs=ClassificationSettings(places / "zero.safetensors")
    ).build(["cars"])
    head = zero.heads["cars"]
    features = torch.randn(3, WIDTH)
    assert torch.allclose(head(features), head(5 * features), atol=1e-4)
    assert head(features).abs().max() <= 100
    assert not torch.allclose(linear.heads["cars"](features), linear.heads["cars"](5 * features))
    state = state_of(places, "vit")
    assert zero.open(state)("cars") != linear.open(state)("cars")
    with pytest.raises(UsageError, match="no bias"):
        choice(
            places,
            "vision",
            outputs=ClassificationSettings(places / "heads.safetensors", "zero-shot"),
        ).build(["cars"])


def test_a_classifier_with_its_own_head_needs_none(places, tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=24, num_labels=CLASSES,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "m")
    evaluator = replace(
        choice(places, "text", outputs=ClassificationSettings()), base=tmp_path / "m"
    ).build(["cars"])
    got = evaluator.open(load_file(tmp_path / "m" / "model.safetensors"))("cars")
    arrays = np.load(places / "tokens.npz")
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(arrays["cars_input_ids"])).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(arrays["cars_labels"]))
    assert got["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_clip_encoders_give_their_projected_features(places, tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=24, projection_dim=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, image_size=16, patch_size=8, num_channels=3,
    )  # fmt: skip
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path / "m")
    outputs = ClassificationSettings(places / "zero.safetensors", "zero-shot")
    inputs = InputSettings(normalise="0.5/0.25")
    evaluator = replace(
        choice(places, "vision", outputs=outputs, inputs=inputs), base=tmp_path / "m"
    ).build(["cars"])
    got = evaluator.open(load_file(tmp_path / "m" / "model.safetensors"))("cars")
    arrays = np.load(places / "images.npz")
    pixels = (torch.from_numpy(arrays["cars_images"]).float() / 255 - 0.5) / 0.25
    with torch.inference_mode():
        found = model(pixels[:, None].expand(-1, 3, -1, -1)).image_embeds
    rows = load_file(places / "zero.safetensors")["cars.weight"]
    normalize = torch.nn.functional.normalize
    logits = 100 * normalize(found, dim=1) @ normalize(rows, dim=1).T
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(arrays["cars_labels"]))
    assert got["loss"] == pytest.approx(float(loss), rel=1e-4)


# --- perplexity -----------------------------------------------------------------------------------


def log_probability(model: object, ids: torch.Tensor, place: int, first: int) -> float:
    """Of token `place`, given those from `first` on."""
    with torch.inference_mode():
        logits = model(input_ids=ids[None, first:place]).logits[0, -1]  # type: ignore[operator]
    return float(logits.double().log_softmax(0)[ids[place]])


@pytest.mark.parametrize(("size", "stride"), [(11, 1), (5, 1), (5, 2), (4, 4), (32, None)])
def test_perplexity_weighs_every_token_alike_and_counts_it_once(places, size, stride):
    from transformers import LlamaForCausalLM

    from svd_hybrid.evaluation.windows import windows

    inputs = InputSettings(max_length=size, samples=3, batch_size=4)
    evaluator = choice(places, "perplexity", inputs=inputs, stride=stride).build(["plain"])
    got = evaluator.open(state_of(places, "llama"))("plain")
    model = LlamaForCausalLM.from_pretrained(places / "llama").eval()
    rows = torch.from_numpy(np.load(places / "tokens.npz")["plain"])[[0, 8, 16]]
    found = [
        log_probability(model, row, place, window.start)
        for row in rows
        for window in windows(len(row), size, stride or size // 2)
        for place in range(window.stop - window.new + 1, window.stop + 1)
    ]
    assert len(found) == 3 * 11 == evaluator.count("plain")
    assert got["loss"] == pytest.approx(-sum(found) / len(found), rel=1e-5)
    assert got["perplexity"] == pytest.approx(math.exp(got["loss"]))


def test_rows_of_different_lengths_are_weighted_by_tokens(places, tmp_path):
    rows = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [5]]
    lines = "\n".join(json.dumps({"input_ids": row}) for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    data = (str(tmp_path / "rows.jsonl"),)
    state = state_of(places, "llama")
    evaluator = choice(places, "perplexity", data=data).build(["x"])
    assert evaluator.count("x") == 7
    together = evaluator.open(state)("x")["loss"]
    alone = []
    for row in rows[:2]:
        (tmp_path / "one.jsonl").write_text(json.dumps({"input_ids": row}))
        one = choice(places, "perplexity", data=(str(tmp_path / "one.jsonl"),)).build(["x"])
        alone.append(one.open(state)("x")["loss"] * one.count("x"))
    assert together == pytest.approx(sum(alone) / 7, rel=1e-5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """One token per lower-case letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    made = Tokenizer(models.WordLevel(words, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return folder


def test_a_text_file_is_one_sequence_and_its_parts_meet_in_it(places, tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 3)
    inputs = InputSettings(max_length=8, tokenizer=tokenizer)
    evaluator = choice(
        places, "perplexity", inputs=inputs, data=(str(tmp_path / "text.txt"),)
    ).build(["x"])
    parts = [evaluator.restricted(Part(name, 0.25)) for name in ("validation", "test")]
    tokens = evaluator.count("x") + 1
    assert [part.count("x") + 1 for part in parts] == [
        round(tokens / 4),
        tokens - round(tokens / 4),
    ]
    assert evaluator.open(state_of(places, "llama"))("x")["perplexity"] > 1
    some = choice(
        places, "perplexity", inputs=inputs, data=(f"{tmp_path / 'text.txt'}[1:3]",)
    ).build(["x"])
    assert some.count("x") + 1 == 2 * 8
    known = [json.dumps(e.identity("x"), sort_keys=True) for e in (evaluator, some, *parts)]
    assert len(set(known)) == 4


# --- what does not fit ----------------------------------------------------------------------------


def test_a_tokenizer_with_more_tokens_than_the_model(places, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{n}": n for n in range(VOCABULARY + 3)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path / "big")
    (tmp_path / "text.txt").write_text("w1 w2")
    with pytest.raises(EvaluationError, match=f"tokenizer has {VOCABULARY + 3} tokens"):
        choice(
            places,
            "perplexity",
            inputs=InputSettings(tokenizer=tmp_path / "big"),
            data=(str(tmp_path / "text.txt"),),
        ).build(["x"])


def test_token_ids_of_another_vocabulary(places, tmp_path):
    np.savez(tmp_path / "t.npz", x=np.full((2, 5), VOCABULARY))
    with pytest.raises(EvaluationError, match=f"token id {VOCABULARY} is not in the model's"):
        choice(places, "perplexity", data=(str(tmp_path / "t.npz"),)).build(["x"])


@pytest.mark.parametrize(
    ("heads", "text"),
    [
        ({"cars.weight": torch.ones(CLASSES, WIDTH + 1)}, "takes 17 features, the model gives"),
        ({"cars.weight": torch.ones(CLASSES - 1, WIDTH)}, "labels 0 to 3, its head has 3 classes"),
        ({"dtd.weight": torch.ones(CLASSES, WIDTH)}, "no head of task 'cars'"),
        ({"cars.weight": torch.ones(WIDTH)}, "head has shapes"),
        (
            {"cars.weight": torch.ones(CLASSES, WIDTH), "cars.bias": torch.ones(CLASSES + 1)},
            "head has shapes",
        ),
        ({"cars.weight": torch.full((CLASSES, WIDTH), math.nan)}, "NaN"),
    ],
)
def test_heads_that_do_not_fit(places, tmp_path, heads, text):
    save_file(heads, tmp_path / "heads.safetensors")
    outputs = ClassificationSettings(tmp_path / "heads.safetensors")
    with pytest.raises(EvaluationError, match=text):
        choice(places, "vision", outputs=outputs).build(["cars"]).open(state_of(places, "vit"))(
            "cars"
        )


@pytest.mark.parametrize(
    ("name", "kind", "changes", "fault", "text"),
    [
        ("vision", "vision", {"data": ("tokens.npz",)}, EvaluationError, "are tokens"),
        ("vision", "vision", {"data": ("missing.npz",)}, StorageError, "does not exist"),
        ("vision", "vision", {"data": ("images.npz@test",)}, UsageError, "the split 'test'"),
        ("vision", "vision", {"data": ()}, UsageError, "no data given"),
        ("vision", "vision", {"stride": 3}, UsageError, "--stride has no meaning"),
        ("visoin", "vision", {}, UsageError, "unknown evaluator"),
        ("perplexity", "vision", {}, UsageError, "--heads has no meaning"),
        ("perplexity", "perplexity", {"stride": 99}, UsageError, "--stride is 99"),
        ("perplexity", "perplexity", {"data": ("images.npz",)}, EvaluationError, "are images"),
    ],
)
def test_choices_that_do_not_fit(places, monkeypatch, name, kind, changes, fault, text):
    monkeypatch.chdir(places)
    with pytest.raises(fault, match=text):
        replace(choice(places, kind, **changes), name=name).build(["cars"])


def test_a_dataset_without_the_split(places, tmp_path):
    import datasets

    rows = {"input_ids": [[1, 2], [3, 4]], "label": [0, 1]}
    made = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)})
    made.save_to_disk(tmp_path / "d")
    with pytest.raises(FamilyError, match="no split 'test'; the dataset has 'train'"):
        choice(places, "text", data=(f"{tmp_path / 'd'}@test",)).build(["cars"])
    found = choice(places, "text", data=(f"{tmp_path / 'd'}@train",)).build(["cars"])
    assert found.count("cars") == 2


def test_a_task_that_the_data_lack(places):
    with pytest.raises(FamilyError, match="no data of task 'dtd'"):
        choice(places, "perplexity").build(["plain", "dtd"])


def test_outputs_that_are_no_numbers_diverge(places):
    for name, kind, task, last in (
        ("vision", "vit", "cars", "layernorm.weight"),
        ("perplexity", "llama", "plain", "model.norm.weight"),
    ):
        state = state_of(places, kind)
        state[last] = torch.full_like(state[last], math.nan)
        with pytest.raises(DivergedError):
            choice(places, name).build([task]).open(state)(task)


def test_weights_that_are_no_numbers_are_found_where_attention_hides_them(places):
    evaluator = choice(places, "vision").build(["cars"])
    state = state_of(places, "vit")
    state["encoder.layer.0.attention.attention.key.weight"][:] = math.nan
    with pytest.raises(DivergedError, match=r"key\.weight"):
        ModelScorer(evaluator, None).scores(held("merge", "m", state), ["cars"])


def test_weights_of_another_model(places):
    evaluator = choice(places, "vision").build(["cars"])
    with pytest.raises(EvaluationError, match="do not fit the model"):
        evaluator.open(state_of(places, "bert"))


def test_identity_changes_with_everything_that_counts(places, tmp_path):
    known = choice(places, "vision").build(["cars"])
    arrays = dict(np.load(places / "images.npz"))
    arrays["cars_images"][3, 2, 1] ^= 1
    np.savez(tmp_path / "images.npz", **arrays)
    heads = load_file(places / "heads.safetensors")
    heads["cars.bias"][0] += 1
    save_file(heads, tmp_path / "heads.safetensors")
    others = [
        known.restricted(Part("test")),
        choice(places, "vision", data=(str(tmp_path / "images.npz"),)).build(["cars"]),
        choice(
            places, "vision", outputs=ClassificationSettings(tmp_path / "heads.safetensors")
        ).build(["cars"]),
        choice(places, "vision", inputs=InputSettings(normalise="none")).build(["cars"]),
    ]
    identities = [json.dumps(e.identity("cars"), sort_keys=True) for e in (known, *others)]
    assert len(set(identities)) == len(identities)
    again = choice(places, "vision").build(["cars"])
    assert again.identity("cars") == known.identity("cars")
