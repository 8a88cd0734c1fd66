"""What hooks add up, against inputs computed by hand, for every kind of layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from svd_hybrid.collect.layers import weight_layers
from svd_hybrid.collect.run import CollectRequest, run_collect
from svd_hybrid.data.source import Source
from svd_hybrid.errors import FamilyError
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.models.inputs import InputSettings
from svd_hybrid.models.load import live_model
from tests.collect.open_clip import VisionTower, tower
from tests.families import relative_error
from tests.models.tiny import BUILDERS, VOCABULARY, saved

TOWER = "tests.collect.open_clip:tower"


def images(path: Path, shape: tuple[int, ...], seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    np.savez(path, images=random.integers(0, 256, shape, dtype=np.uint8))
    return path


def tokens(path: Path, count: int = 6, length: int = 9) -> Path:
    ids = np.random.default_rng(1).integers(1, VOCABULARY, (count, length))
    np.savez(path, input_ids=ids)
    return path


def collected(path: Path, data: Path, out: Path, kind: Any = "gram", **more: Any) -> Any:
    inputs = InputSettings(**more.pop("inputs", {}))
    request = CollectRequest(
        {"ant": path}, {"ant": Source.parse(str(data))}, out, kind, inputs=inputs, **more
    )
    result = run_collect(request)
    return load_file(out / "ant.safetensors"), result


def mean_gram(rows: Tensor) -> Tensor:
    flat = rows.reshape(-1, rows.shape[-1]).double()
    return (flat.T @ flat / len(flat)).float()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[Path, Path, VisionTower]:
    root = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    module = tower()
    with torch.no_grad():
        for block in module.transformer.resblocks:
            block.attn.in_proj_bias.normal_()
            block.attn.out_proj.bias.normal_()
    save_file(module.state_dict(), root / "clip.safetensors")
    data = images(root / "data.npz", (7, 8, 8, 3))
    return root / "clip.safetensors", data, module.eval()


def clip_inputs(module: Any, data: Path) -> dict[str, Tensor]:
    """Every layer's inputs, from the definition of the model and not from hooks."""
    pixels = torch.from_numpy(np.load(data)["images"]).permute(0, 3, 1, 2).float() / 255
    found: dict[str, Tensor] = {}
    x = pixels.unfold(2, 4, 4).unfold(3, 4, 4)  # (B, C, 2, 2, 4, 4)
    found["conv1.weight"] = x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = found["conv1.weight"] @ module.conv1.weight.flatten(1).T
    token = module.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([token, x], 1) + module.positional_embedding
    found["ln_pre.weight"] = x
    x = module.ln_pre(x)
    for number, block in enumerate(module.transformer.resblocks):
        name = f"transformer.resblocks.{number}."
        found[f"{name}ln_1.weight"] = x
        y = block.ln_1(x)
        found[f"{name}attn.in_proj_weight"] = y
        fused = functional.linear(y, block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, k, v = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in fused.chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        heads = (weights @ v).transpose(1, 2).flatten(2)
        found[f"{name}attn.out_proj.weight"] = heads
        x = x + functional.linear(heads, block.attn.out_proj.weight, block.attn.out_proj.bias)
        found[f"{name}ln_2.weight"] = x
        y = block.ln_2(x)
        found[f"{name}mlp.c_fc.weight"] = y
        z = functional.gelu(block.mlp.c_fc(y))
        found[f"{name}mlp.c_proj.weight"] = z
        x = x + block.mlp.c_proj(z)
    found["ln_post.weight"] = x[:, 0]
    found["proj"] = module.ln_post(x[:, 0])
    return found


@pytest.mark.parametrize("kind", ["moment", "gram"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_open_clip_tower_by_hand(clip, tmp_path, kind, batch_size):
    checkpoint, data, module = clip
    got, result = collected(
        checkpoint, data, tmp_path / "st", kind, model=TOWER,
        inputs={"normalise": "none", "batch_size": batch_size},
    )  # fmt: skip
    with torch.no_grad():
        want = clip_inputs(module, data)
    assert set(got) == set(want)
    for name, rows in want.items():
        gram = mean_gram(rows)
        vector = kind == "moment" or ".ln_" in name or name.startswith("ln_")
        assert relative_error(got[name], gram.diagonal() if vector else gram) < 1e-5, name
    record = result.records["ant"]
    assert record.inputs_first == ("proj",)
    assert record.without == ("positional_embedding",)
    assert record.rows["transformer.resblocks.1.attn.out_proj.weight"] == 7 * 5


def test_collecting_leaves_the_model_as_it_was(clip, tmp_path):
    checkpoint, data, module = clip
    before = module(torch.ones(2, 3, 8, 8))
    live = live_model(open_checkpoint(checkpoint), TOWER)
    collected(checkpoint, data, tmp_path / "st", model=TOWER, inputs={"normalise": "none"})
    assert torch.equal(live.module(torch.ones(2, 3, 8, 8)), before)
    assert all("forward" not in part.__dict__ for part in live.module.modules())


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_weight_of_a_transformer_is_x_t_x_of_what_it_gets(kind, tmp_path):
    model = saved(kind, tmp_path / kind)
    is_vit = kind == "vit"
    data = images(tmp_path / "d.npz", (5, 16, 16)) if is_vit else tokens(tmp_path / "d.npz")
    got, _ = collected(model, data, tmp_path / "st", inputs={"batch_size": 3})
    live = live_model(open_checkpoint(model))
    name_of = live.checkpoint_names
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            x = args[0]
            if isinstance(module, nn.Conv2d):
                x = functional.unfold(x, module.kernel_size, stride=module.stride).transpose(1, 2)
                made = x @ module.weight.flatten(1).T + module.bias
                assert torch.allclose(made.transpose(1, 2), output.flatten(2), atol=1e-5)
            seen.setdefault(name, []).append(x.flatten(0, -2))

        return hook

    for path, module in live.module.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) or type(module).__name__ == "Conv1D":
            tied = f"transformer.{'wte' if kind == 'gpt2' else 'word_embeddings'}.weight"
            module.register_forward_hook(keep(name_of.get(f"{path}.weight", tied)))
    whole = np.load(data)
    if is_vit:
        from svd_hybrid.data.pixels import Normalise, Pixels

        inputs, _ = Pixels(Normalise())(list(whole["images"]))
    else:
        inputs = {"input_ids": torch.from_numpy(whole["input_ids"])}
    with torch.no_grad():
        live(inputs)
    assert seen
    for name, parts in seen.items():
        assert relative_error(got[name], mean_gram(torch.cat(parts))) < 1e-5, name
    layers, _ = weight_layers(live)
    assert {name for layer in layers for name in layer.names} == set(got)
    assert any(got[name].ndim == 2 for name in got)


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "llama", "bert"])
def test_padding_does_not_count_and_batch_size_changes_nothing(kind, tmp_path):
    model = saved(kind, tmp_path / kind)
    rows = [[5, 3, 9], [7, 1, 2, 4, 8, 6], [11, 12, 13, 14, 15, 16, 17, 18], [4], [6, 3]]
    lines = "\n".join(f'{{"input_ids": {row}}}' for row in rows)
    (tmp_path / "data.jsonl").write_text(lines, encoding="utf-8")
    found = {}
    for batch_size in (1, 4):
        found[batch_size], result = collected(
            model, tmp_path / "data.jsonl", tmp_path / f"st{batch_size}",
            inputs={"batch_size": batch_size},
        )  # fmt: skip
        counts = set(result.records["ant"].rows.values())
        assert counts == {sum(len(row) for row in rows)}
    assert set(found[1]) == set(found[4])
    for name in found[1]:
        assert relative_error(found[4][name], found[1][name]) < 1e-4, name


def test_the_diagonal_of_a_gram_is_the_moment(tmp_path):
    model, data = saved("llama", tmp_path / "m"), tokens(tmp_path / "d.npz")
    grams, _ = collected(model, data, tmp_path / "gram")
    moments, _ = collected(model, data, tmp_path / "moment", "moment")
    assert set(grams) == set(moments)
    for name, gram in grams.items():
        diagonal = gram.diagonal() if gram.ndim == 2 else gram
        assert relative_error(diagonal, moments[name]) < 1e-6


class CrossAttention(nn.Module):
    """Queries that are not the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values[:, 0]
        return self.attn(x[:, :1], x, x)[0]


def test_a_fused_projection_with_different_inputs_is_refused(tmp_path):
    torch.manual_seed(0)
    save_file(CrossAttention().state_dict(), tmp_path / "m.safetensors")
    data = images(tmp_path / "d.npz", (2, 4, 4))
    with pytest.raises(FamilyError, match="different inputs for query, key and value"):
        collected(
            tmp_path / "m.safetensors", data, tmp_path / "st", model=f"{__name__}:CrossAttention"
        )
