"""LoRA adapters as checkpoints of base + adapter, from files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from svd_hybrid.errors import FamilyError, UnsafeError
from svd_hybrid.io.adapter.reader import AdapterReader, open_task
from svd_hybrid.io.family import Family, FamilyPolicy, open_family
from svd_hybrid.io.lookup import find_task_checkpoint
from svd_hybrid.io.reader import file_bytes, open_checkpoint
from svd_hybrid.io.safetensors_reader import SafetensorsReader
from tests.io.adapters import PREFIX, factors, write_adapter
from tests.io.checkpoints import poisoned, random_state, same, write

BASE = random_state(
    0, **{"up.weight": (6, 4), "up.bias": (6,), "square.weight": (4, 4), "embed.weight": (9, 4)}
)
UP = factors("up", 6, 4)


def base_file(tmp_path: Path, state=BASE) -> Path:
    path = tmp_path / "base.safetensors"
    return path if path.exists() else write(path, state)


def opened(tmp_path: Path, state=UP, base=BASE, **config) -> AdapterReader:
    folder = write_adapter(tmp_path / "adapter", state, **config)
    reader = open_task(folder, open_checkpoint(base_file(tmp_path, base)))
    assert isinstance(reader, AdapterReader)
    return reader


def family(tmp_path: Path, state=UP, **config) -> Family:
    folder = write_adapter(tmp_path / "adapter", state, **config)
    return open_family(base_file(tmp_path), {"a": folder}, FamilyPolicy())


def product(state, module: str) -> torch.Tensor:
    a, b = (state[f"{PREFIX}{module}.lora_{side}.weight"].double() for side in "AB")
    return b @ a


def test_the_delta_is_the_product_and_not_a_difference_of_rounded_weights(tmp_path):
    half = {name: tensor.half() for name, tensor in BASE.items()}
    small = {name: tensor * 1e-3 for name, tensor in UP.items()}
    delta = 3 * product(small, "up")
    write(tmp_path / "base.safetensors", half)
    stack = family(tmp_path, small).stack("up.weight")
    assert same(stack.deltas[0], delta.float())
    tuned = next(iter(family(tmp_path, small).tuned("up.weight")))
    assert same(tuned, (half["up.weight"].double() + delta.float().double()).half())
    assert not torch.equal(stack.deltas[0], tuned.float() - half["up.weight"].float())


def test_what_the_adapter_does_not_name_is_the_base(tmp_path):
    reader = opened(tmp_path)
    for name in ("up.bias", "square.weight", "embed.weight"):
        assert reader.delta(name, torch.float32) is None
        assert same(reader.read(name), BASE[name])
    assert not family(tmp_path).stack("square.weight").changed


def test_its_cost_is_its_own_weight_file(tmp_path):
    reader = opened(tmp_path)
    assert file_bytes(reader) == (tmp_path / "adapter/adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"up": 1}}, 0.5),
        ({"alpha_pattern": {"u": 1, "x.up": 1}}, 3.0),
        ({"alpha_pattern": {"(u|v)p": 5, "up": 1}}, 2.5),
        ({"rank_pattern": {"up": 2}, "r": 7}, 3.0),
        ({"rank_pattern": {"^up": 2}, "r": 7, "use_rslora": True}, 6 / 2**0.5),
    ],
)
def test_the_scaling_follows_the_configuration(tmp_path, config, scaling):
    delta = opened(tmp_path, **config).delta("up.weight", torch.float64)
    torch.testing.assert_close(delta, scaling * product(UP, "up"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("spelling", ["lora_{}.default.weight", "lora_{}.my_one.weight"])
def test_the_adapters_name_in_a_key_does_not_matter(tmp_path, spelling):
    state = {
        f"{PREFIX}up.{spelling.format(side)}": UP[f"{PREFIX}up.lora_{side}.weight"] for side in "AB"
    }
    plain = opened(tmp_path).delta("up.weight", torch.float32)
    assert same(opened(tmp_path, state).delta("up.weight", torch.float32), plain)


@pytest.mark.parametrize(("module", "name"), [("up", "enc.up.weight"), ("enc.up", "up.weight")])
def test_a_base_with_one_prefix_more_or_less_is_understood(tmp_path, module, name):
    base = {name.replace("up.weight", key): tensor for key, tensor in BASE.items()}
    reader = opened(tmp_path, factors(module, 6, 4), base)
    assert "'enc.'" in reader.notes[0]
    assert same(reader.delta(name, torch.float32), (3 * product(UP, "up")).float())


def test_a_prefix_that_could_be_two_is_refused(tmp_path):
    base = {
        f"{part}.{name}": tensor.clone() for part in ("a", "b") for name, tensor in BASE.items()
    }
    with pytest.raises(FamilyError, match="in several ways"):
        opened(tmp_path, base=base)


def test_saved_modules_and_biases_stand_in_place_of_the_bases(tmp_path):
    embed, bias = torch.randn(9, 4).half(), torch.randn(6)
    state = UP | {
        f"{PREFIX}embed.modules_to_save.default.weight": embed,
        f"{PREFIX}embed.original_module.weight": BASE["embed.weight"],
        f"{PREFIX}up.base_layer.bias": bias,
    }
    found = family(tmp_path, state)
    assert same(found.stack("embed.weight").deltas[0], embed.float() - BASE["embed.weight"])
    assert same(next(iter(found.tuned("embed.weight"))), embed.float())
    assert same(next(iter(found.tuned("up.bias"))), bias)


def test_a_bias_behind_the_factors_scales_with_them(tmp_path):
    bias = torch.randn(6)
    reader = opened(tmp_path, UP | {f"{PREFIX}up.lora_B.bias": bias}, lora_bias=True)
    assert same(reader.delta("up.bias", torch.float32), (3 * bias.double()).float())


def test_a_square_weight_follows_the_biases_of_its_base_before_the_flag(tmp_path):
    square = factors("square", 4, 4)
    plain = (3 * product(square, "square")).float()
    biased = {"square.bias": torch.zeros(4)}
    linear = BASE | biased
    conv1d = linear | {"up.weight": BASE["up.weight"].T.contiguous()}
    unbiased = {"square.weight": BASE["square.weight"]}
    cases = [(linear, True, plain), (conv1d, False, plain.T), (unbiased, True, plain.T)]
    for number, (base, flag, want) in enumerate(cases):
        reader = opened(tmp_path / str(number), square, base, fan_in_fan_out=flag)
        assert same(reader.delta("square.weight", torch.float32), want.contiguous())


def test_a_torch_file_is_read_weights_only(tmp_path):
    folder = write_adapter(tmp_path / "good", UP, "adapter_model.bin")
    base = open_checkpoint(base_file(tmp_path))
    assert open_task(folder, base).read("up.weight").shape == (6, 4)
    folder = write_adapter(tmp_path / "bad", {}, "adapter_model.bin")
    torch.save(poisoned(tmp_path / "ran"), folder / "adapter_model.bin")
    with pytest.raises(UnsafeError):
        open_task(folder, base)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file_name", ["adapter_model.safetensors", "adapter_config.json"])
def test_either_file_of_an_adapter_means_the_adapter(tmp_path, file_name):
    folder = write_adapter(tmp_path / "adapter", UP)
    base = open_checkpoint(base_file(tmp_path))
    assert isinstance(open_task(folder / file_name, base), AdapterReader)


@pytest.mark.parametrize("path", ["adapter", "adapter/adapter_model.safetensors"])
def test_factors_without_their_configuration_are_never_read_as_a_model(tmp_path, path):
    folder = write_adapter(tmp_path / "adapter", UP)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FamilyError, match=r"no adapter_config\.json"):
        open_task(tmp_path / path, open_checkpoint(base_file(tmp_path)))


def test_a_task_is_found_by_its_adapter_folder(tmp_path):
    folder = write_adapter(tmp_path / "my-task", UP)
    assert find_task_checkpoint(tmp_path, "my_task") == folder


def test_another_base_by_name_is_noted_and_no_error(tmp_path):
    assert not family(tmp_path).all_notes()
    other = family(tmp_path, base_model_name_or_path="someone/other-7b").all_notes()
    assert "'someone/other-7b'" in other[0]


def test_factors_are_read_when_their_tensor_is_and_not_before(tmp_path, monkeypatch):
    read: list[str] = []
    original = SafetensorsReader.read

    def counted(self: SafetensorsReader, name: str) -> torch.Tensor:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(SafetensorsReader, "read", counted)
    found = family(tmp_path, UP | factors("square", 4, 4))
    assert read == []
    found.stack("up.weight")
    assert {name for name in read if "lora" in name} == UP.keys()


def test_several_blocks_of_rows_give_the_same(tmp_path, monkeypatch):
    whole = opened(tmp_path).delta("up.weight", torch.float32)
    monkeypatch.setattr("svd_hybrid.io.adapter.update.BLOCK_SCALARS", 9)
    assert same(opened(tmp_path).delta("up.weight", torch.float32), whole)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA"}, "of type 'LOHA'"),
        ({"peft_type": "IA3"}, "of type 'IA3'"),
        ({"peft_type": "PROMPT_TUNING"}, "of type 'PROMPT_TUNING'"),
        ({"peft_type": "ADALORA"}, "of type 'ADALORA'"),
        ({"peft_type": None}, "of type None"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication'"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices'"),
        ({"target_parameters": ["w"]}, "'target_parameters'"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 changes the base"),
        ({"init_lora_weights": "OLoRA"}, "olora changes the base"),
        ({"use_qalora": True}, "'use_qalora'"),
        ({"use_newest_idea": True}, "'use_newest_idea'.*does not know"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 10**400}, "lora_alpha is '1000"),
        ({"lora_alpha": float("nan")}, "lora_alpha is 'nan'"),
        ({"alpha_pattern": {"up": float("inf")}}, "alpha_pattern 'up' is 'inf'"),
        ({"rank_pattern": {"up": 2.5}}, "rank_pattern 'up' is 2.5"),
        ({"rank_pattern": [3]}, "rank_pattern is not an object"),
        ({"alpha_pattern": {"(up": 2}}, "alpha_pattern '\\(up'"),
        ({"r": 3}, "the configuration says rank 3"),
        ({"use_dora": True}, "use_dora is true, yet module 'up' has no magnitudes"),
    ],
)
def test_what_svdh_does_not_compute_is_refused_by_name(tmp_path, config, said):
    with pytest.raises(FamilyError, match=said) as caught:
        opened(tmp_path, **config)
    assert "adapter" in caught.value.where
    assert caught.value.fix


def without(part: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in UP.items() if part not in name}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "holds no tensors"),
        (without("lora_A"), "no lora_A for module 'up'"),
        (without("lora_B"), "no lora_B for module 'up'"),
        (factors("no.such.up", 6, 4), "modules the base lacks: 'no.such.up'"),
        (factors("up", 6, 5), r"do not fit its weight \[6, 4\]: A is \[2, 5\], B is \[6, 2\]"),
        (factors("up", 6, 4, rank=3), r"A of module 'up' is \[3, 4\]"),
        (UP | {f"{PREFIX}up.lora_B.weight": torch.zeros(6, 3)}, "do not fit"),
        (UP | {f"{PREFIX}up.lora_A.weight": torch.zeros(())}, r"A of module 'up' is \[\]"),
        (UP | {f"{PREFIX}up.lora_embedding_A": torch.zeros(2, 4)}, "no lora_embedding_B"),
        (UP | {f"{PREFIX}up.lora_magnitude_vector": torch.zeros(6)}, "use_dora is false"),
        (UP | {f"{PREFIX}up.lora_B.bias": torch.zeros(5)}, r"a bias \[5\] to module 'up'"),
        (
            {
                f"{PREFIX}up.lora_A.one.weight": torch.zeros(2, 4),
                f"{PREFIX}up.lora_A.two.weight": torch.zeros(2, 4),
            },
            "several adapters: 'one', 'two'",
        ),
        (UP | {f"{PREFIX}up.lora_A.x.weight": torch.zeros(2, 4)}, "same tensor twice"),
        (
            {f"{PREFIX}up.bias": torch.zeros(6), f"{PREFIX}up.base_layer.bias": torch.zeros(6)},
            "same tensor twice",
        ),
        (UP | {f"{PREFIX}up.lora_B.weight": torch.zeros(6, 2, dtype=torch.int8)}, "are I8"),
        (
            {
                f"{PREFIX}embed.lora_embedding_A": torch.zeros(2, 11),
                f"{PREFIX}embed.lora_embedding_B": torch.zeros(4, 2),
            },
            "module 'embed' do not fit",
        ),
    ],
)
def test_factors_that_do_not_fit_are_refused_by_module(tmp_path, state, said):
    with pytest.raises(FamilyError, match=said):
        opened(tmp_path, state)


def test_fused_attention_is_refused_because_peft_counts_a_product_twice(tmp_path):
    base = {"attn.in_proj_weight": torch.zeros(12, 4), "attn.out_proj.weight": torch.zeros(4, 4)}
    with pytest.raises(FamilyError, match=r"'attn', a torch\.nn\.MultiheadAttention"):
        opened(tmp_path, factors("attn", 12, 4), base)


def test_saved_modules_the_base_lacks_or_has_in_another_size_follow_the_policy(tmp_path):
    state = UP | {f"{PREFIX}score.weight": torch.zeros(2, 4)}
    with pytest.raises(FamilyError, match=r"task 'a' has 'score.weight', which the base lacks"):
        family(tmp_path, state)
    larger = UP | {f"{PREFIX}embed.weight": torch.zeros(11, 4)}
    with pytest.raises(FamilyError, match=r"'embed.weight' is \[11, 4\], the base has \[9, 4\]"):
        family(tmp_path, larger)
    cropping = FamilyPolicy(on_shape_mismatch="crop")
    found = open_family(base_file(tmp_path), {"a": tmp_path / "adapter"}, cropping)
    assert same(found.stack("embed.weight").deltas[0], -BASE["embed.weight"])


def test_a_copy_that_a_tied_model_needs_is_no_tensor_too_many(tmp_path):
    embed = torch.randn(9, 4)
    saved = {f"{PREFIX}{name}.weight": embed.clone() for name in ("embed", "lm_head")}
    found = family(tmp_path, UP | saved)
    assert "lm_head.weight" not in found.tasks["a"].infos
    assert "'lm_head.weight' as a copy of 'embed.weight'" in found.all_notes()[0]
    saved[f"{PREFIX}lm_head.weight"][0, 0] += 1
    with pytest.raises(FamilyError, match=r"'lm_head\.weight', which the base lacks"):
        family(tmp_path, UP | saved)


def test_nan_in_a_factor_names_task_and_tensor(tmp_path):
    broken = UP | {f"{PREFIX}up.lora_A.weight": torch.full((2, 4), torch.nan)}
    with pytest.raises(FamilyError, match="task 'a' holds 24 NaN") as caught:
        family(tmp_path, broken).stack("up.weight")
    assert "'up.weight'" in caught.value.where


def test_a_damaged_configuration_is_named(tmp_path):
    folder = write_adapter(tmp_path / "adapter", UP)
    base = open_checkpoint(base_file(tmp_path))
    for text in ("{", "[1]", "[" * 100_000):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(FamilyError, match="configuration cannot be used"):
            open_task(folder, base)


def test_an_adapter_without_weights_says_which_files_it_needs(tmp_path):
    folder = write_adapter(tmp_path / "adapter", UP)
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(FamilyError, match="no weights") as caught:
        open_task(folder, open_checkpoint(base_file(tmp_path)))
    assert "adapter_model.bin" in caught.value.fix


def test_an_adapter_is_no_base_and_no_whole_model(tmp_path):
    folder = write_adapter(tmp_path / "adapter", UP)
    with pytest.raises(FamilyError, match="no model without its base"):
        open_checkpoint(folder)
    write(folder / "model.safetensors", BASE)
    with pytest.raises(FamilyError, match="LoRA adapter and a whole model"):
        open_task(folder, open_checkpoint(base_file(tmp_path)))


def test_the_configuration_is_not_changed_by_reading(tmp_path):
    folder = write_adapter(tmp_path / "adapter", UP, exclude_modules=["x"], target_modules="a.*")
    before = json.loads((folder / "adapter_config.json").read_text())
    open_task(folder, open_checkpoint(base_file(tmp_path)))
    assert json.loads((folder / "adapter_config.json").read_text()) == before
