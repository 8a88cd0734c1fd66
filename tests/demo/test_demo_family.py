"""The demo family: its data, its encoder, its heads, its training and its accuracies."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from safetensors.torch import load_file, save_file
from torch import Tensor

from svd_hybrid.demo.evaluate import evaluate, load_config, load_heads, load_state, main
from svd_hybrid.demo.tasks import TASKS, generator, held_out, load_splits, task_data
from svd_hybrid.demo.train import TrainConfig, fit_head, jitter, train_family
from svd_hybrid.demo.vit import ViT, ViTConfig, build, expected_shapes, initial_state

TINY = ViTConfig(width=16, layers=2, heads=2, mlp_ratio=2)
TINY_TRAINING = TrainConfig(model=TINY, pretrain_steps=2, finetune_steps=2, batch_images=8, shots=2)


def tiny_state(seed: int = 0) -> dict[str, Tensor]:
    return initial_state(TINY, generator(seed, "test"))


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A family whose heads always give answer 1, whatever the encoder says."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(TINY.as_json()))
    save_file(tiny_state(), tmp_path / "base" / "model.safetensors")
    heads: dict[str, Tensor] = {}
    for name, task in TASKS.items():
        heads[f"{name}.weight"] = torch.zeros(task.classes, TINY.width)
        heads[f"{name}.bias"] = F.one_hot(torch.tensor(1), task.classes).float()
    save_file(heads, tmp_path / "heads.safetensors")
    return tmp_path


def always_one() -> dict[str, float]:
    """Accuracy in percent of answering 1 to everything."""
    return {
        name: 100.0 * (held_out(task)[1] == 1).float().mean().item() for name, task in TASKS.items()
    }


# data


def test_no_image_is_in_both_splits() -> None:
    train, test = load_splits()
    seen = {image.numpy().tobytes() for image in train.images}
    assert len(seen) == len(train) == 1200
    assert len(test) == 597
    assert not any(image.numpy().tobytes() in seen for image in test.images)


def test_both_splits_hold_every_digit() -> None:
    for split in load_splits():
        assert set(split.digits.tolist()) == set(range(10))


def test_the_split_is_the_same_on_every_machine() -> None:
    _, test = load_splits()
    load_splits.cache_clear()
    again = load_splits()[1]
    assert torch.equal(test.images, again.images)
    assert torch.equal(test.digits, again.digits)
    order = torch.randperm(1797, generator=generator(20240229, "split"))
    assert order[:5].tolist() == [1162, 144, 905, 431, 889]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_gives_images_and_answers_of_the_promised_kind(name: str) -> None:
    task = TASKS[name]
    images, answers = held_out(task)
    assert task.name == name
    assert images.shape == (597, 1, 16, 16)
    assert images.dtype == torch.float32
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0
    assert answers.dtype == torch.int64
    assert set(answers.tolist()) == set(range(task.classes))


@pytest.mark.parametrize("name", TASKS)
def test_held_out_data_does_not_depend_on_torchs_random_state(name: str) -> None:
    images, answers = held_out(TASKS[name])
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)
        again, same = held_out(TASKS[name])
    assert torch.equal(images, again)
    assert torch.equal(answers, same)


@pytest.mark.parametrize("name", TASKS)
def test_a_view_does_not_write_into_the_split(name: str) -> None:
    train, _ = load_splits()
    before = train.images.clone()
    task_data(TASKS[name], train, generator(0))
    assert torch.equal(train.images, before)


def test_no_two_tasks_look_alike_and_none_is_upright() -> None:
    _, test = load_splits()
    views = [test.images, *(held_out(task)[0] for task in TASKS.values())]
    for index, one in enumerate(views):
        for other in views[index + 1 :]:
            assert float((one - other).abs().mean()) > 0.02


def test_shuffled_only_moves_pixels() -> None:
    _, test = load_splits()
    images, _ = held_out(TASKS["shuffled"])
    assert torch.equal(images.flatten(1).sort().values, test.images.flatten(1).sort().values)


def test_parity_answers_even_with_zero() -> None:
    _, answers = held_out(TASKS["parity"])
    assert torch.equal(answers, load_splits()[1].digits % 2)


def test_jitter_keeps_shape_and_range_and_follows_its_generator() -> None:
    images = load_splits()[0].images[:32]
    one, same, other = (jitter(images, generator(seed)) for seed in (1, 1, 2))
    assert one.shape == images.shape
    assert 0.0 <= float(one.min()) <= float(one.max()) <= 1.0
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# encoder


def test_the_encoder_has_the_tensor_kinds_and_names_of_a_real_one() -> None:
    shapes = expected_shapes(ViTConfig())
    assert shapes["embeddings.patch_embedding.weight"] == (96, 1, 4, 4)
    assert shapes["embeddings.position_embeddings"] == (1, 17, 96)
    assert shapes["encoder.layer.0.attention.q_proj.weight"] == (96, 96)
    assert shapes["encoder.layer.3.mlp.fc1.weight"] == (384, 96)
    assert shapes["encoder.layer.3.layernorm_after.bias"] == (96,)
    assert len(shapes) == 66
    assert sum(shape.numel() for shape in shapes.values()) == 450_528


def test_features_have_the_models_width() -> None:
    model = build(TINY, tiny_state())
    assert model(torch.rand(5, 1, 16, 16)).shape == (5, 16)


def test_the_last_block_computes_the_class_token_as_if_it_computed_all() -> None:
    model = build(TINY, tiny_state())
    images = load_splits()[1].images[:4]
    x = model.embeddings(images)
    for block in model.encoder.layer:
        x = block(x, x.shape[1])
    torch.testing.assert_close(model(images), model.layernorm(x)[:, 0])


def test_building_and_evaluating_leave_torchs_random_state_alone(family: Path) -> None:
    before = torch.get_rng_state()
    evaluate(tiny_state(), family)
    assert torch.equal(torch.get_rng_state(), before)


def test_build_copies_the_weights() -> None:
    state = tiny_state()
    model = build(TINY, state)
    with torch.no_grad():
        model.layernorm.weight.zero_()
    assert float(state["layernorm.weight"].min()) == 1.0


def test_config_survives_json() -> None:
    document = json.loads(json.dumps(TINY.as_json()))
    assert document["model_type"] == "svdh-demo-vit"
    assert ViTConfig.from_json(document) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vit"}, "model_type is 'vit'"),
        ({"depth": 3}, r"unknown fields \['depth'\]"),
        ({"width": 0}, "width is 0"),
        ({"width": True}, "width is True"),
        ({"patch_size": 5}, "does not divide image_size 16"),
        ({"heads": 3}, "does not divide width 16"),
    ],
)
def test_a_wrong_config_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTConfig.from_json(TINY.as_json() | change)


def test_a_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match=r"family/config\.json: model_type is None"):
        ViTConfig.from_json([], where="family/config.json")


def test_weights_that_do_not_fit_are_all_listed() -> None:
    state = tiny_state()
    del state["layernorm.bias"]
    state["extra"] = torch.zeros(1)
    state["layernorm.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"merged\.pt") as caught:
        build(TINY, state, where="merged.pt")
    message = str(caught.value)
    assert "missing layernorm.bias" in message
    assert "unknown extra" in message
    assert "layernorm.weight is (3,), not (16,)" in message


# heads


def test_a_head_separates_what_can_be_separated() -> None:
    answers = torch.arange(30) % 3
    features = 4.0 * F.one_hot(answers, 5).float()
    features += 0.1 * torch.randn(features.shape, generator=generator(0))
    weight, bias = fit_head(features, answers, 3)
    assert weight.shape == (3, 5)
    assert bias.shape == (3,)
    assert not weight.requires_grad
    assert torch.equal(F.linear(features, weight, bias).argmax(dim=1), answers)


def test_a_stronger_decay_gives_a_smaller_head() -> None:
    answers = torch.arange(10) % 2
    features = torch.randn(10, 4, generator=generator(3))
    loose, tight = (fit_head(features, answers, 2, decay=decay)[0] for decay in (0.01, 1.0))
    assert float(tight.norm()) < float(loose.norm())


# accuracies


def test_accuracy_of_a_known_answer_is_its_share_of_the_test_images(family: Path) -> None:
    assert evaluate(tiny_state(), family) == pytest.approx(always_one())


def test_a_half_precision_state_is_evaluated_too(family: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in tiny_state().items()}
    assert evaluate(state, family) == pytest.approx(always_one())


def test_a_fitted_head_scores_above_chance(family: Path) -> None:
    """Fitted on the held-out features themselves: the encoder's tensors reach the score."""
    state = tiny_state()
    model = build(TINY, state)
    heads = load_file(family / "heads.safetensors")
    images, answers = held_out(TASKS["parity"])
    with torch.no_grad():
        heads["parity.weight"], heads["parity.bias"] = fit_head(
            model(images), answers, 2, decay=1e-5
        )
    save_file(heads, family / "heads.safetensors")
    assert evaluate(state, family)["parity"] > 60.0


def test_a_family_without_config_or_heads_is_refused(family: Path) -> None:
    (family / "heads.safetensors").unlink()
    with pytest.raises(ValueError, match=r"heads\.safetensors: no such file"):
        load_heads(family)
    (family / "base" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no readable config"):
        load_config(family)


def test_heads_of_other_tasks_are_refused(family: Path) -> None:
    save_file({"cars.weight": torch.zeros(1)}, family / "heads.safetensors")
    with pytest.raises(ValueError, match=r"missing or unknown heads \['cars\.weight'"):
        load_heads(family)


def test_one_task_alone_scores_as_among_all(family: Path) -> None:
    state = load_state(family / "base")
    alone = evaluate(state, family, ["rotated"])
    assert alone == {"rotated": evaluate(state, family)["rotated"]}


def test_the_command_prints_one_json_object(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(family), str(family / "base")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == pytest.approx(always_one(), abs=0.01)


def test_the_command_names_what_is_missing(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(family), str(family / "nothing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")


# training


@pytest.mark.slow
def test_training_writes_the_same_whole_family_twice(tmp_path: Path) -> None:
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    lines: list[str] = []
    one, two = tmp_path / "one", tmp_path / "two"
    train_family(one, config=TINY_TRAINING, progress=lines.append)
    train_family(two, config=TINY_TRAINING)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert len(lines) == len(TASKS) + 2

    base = load_state(one / "base")
    assert {tensor.dtype for tensor in base.values()} == {torch.float32}
    for path in ("base", *(f"tasks/{name}" for name in TASKS)):
        assert load_config_of(one / path) == TINY
        same = load_state(two / path)
        for name, tensor in load_state(one / path).items():
            assert torch.equal(tensor, same[name])
            assert path == "base" or not torch.equal(tensor, base[name])
    for name, (weight, bias) in load_heads(one).items():
        assert weight.shape == (TASKS[name].classes, TINY.width)
        assert bias.shape == (TASKS[name].classes,)
    accuracy = evaluate(base, one)
    assert list(accuracy) == list(TASKS)
    assert all(0.0 <= value <= 100.0 for value in accuracy.values())

    with pytest.raises(ValueError, match="already holds base"):
        train_family(one, config=TINY_TRAINING)


@pytest.mark.slow
def test_another_seed_gives_another_family(tmp_path: Path) -> None:
    for seed in (0, 1):
        train_family(tmp_path / str(seed), seed=seed, config=TINY_TRAINING)
    one, two = (load_state(tmp_path / str(seed) / "base") for seed in (0, 1))
    assert not torch.equal(one["layernorm.weight"], two["layernorm.weight"])


def load_config_of(checkpoint: Path) -> ViTConfig:
    return ViTConfig.from_json(json.loads((checkpoint / "config.json").read_text()))


def test_training_defaults_are_the_documented_family() -> None:
    config = TrainConfig()
    assert asdict(config.model) == asdict(ViTConfig())
    assert isinstance(build(config.model, initial_state(config.model, generator(0))), ViT)
