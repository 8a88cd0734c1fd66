"""Grams block after block: nothing is computed twice, and odd models are found out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from svd_hybrid.collect import run as run_module
from svd_hybrid.collect.blocks import Blocks, block_paths
from svd_hybrid.collect.run import CollectRequest, run_collect
from svd_hybrid.collect.store import StatisticsStore
from svd_hybrid.data.source import Source
from svd_hybrid.errors import StorageError
from svd_hybrid.io.reader import open_checkpoint
from svd_hybrid.models.inputs import InputSettings, open_task_data
from svd_hybrid.models.load import live_model
from tests.collect.test_layers_seen import collected, images, mean_gram, tokens
from tests.families import relative_error
from tests.models.tiny import BUILDERS, llama, saved

LAYERS, WIDTH = 12, 192


@pytest.mark.parametrize("kind", BUILDERS)
def test_transformers_are_chains_of_blocks(kind, tmp_path):
    folder = saved(kind, tmp_path / kind)
    live = live_model(open_checkpoint(folder))
    is_vit = kind == "vit"
    data = images(tmp_path / "d.npz", (5, 16, 16)) if is_vit else tokens(tmp_path / "d.npz")
    batches = list(open_task_data(live, Source(str(data)), "ant", InputSettings(batch_size=2)))
    with torch.no_grad():
        blocks = Blocks(live, batches[0])
        assert blocks.chained
        assert len(blocks.paths) == 2
        calls = [0, 0]
        for place, path in enumerate(blocks.paths):
            count_calls(live.module.get_submodule(path), calls, place)
        for block in (0, 1, None):
            for batch in batches:
                blocks.run(batch, block)
    assert calls == [len(batches), len(batches)]


def count_calls(module: nn.Module, calls: list[int], place: int) -> None:
    inner = next(part for part in module.modules() if isinstance(part, nn.LayerNorm | nn.Linear))

    def hook(*_args: Any) -> None:
        calls[place] += 1

    inner.register_forward_pre_hook(hook)


class Skipping(nn.Module):
    """The third block also reads what went into the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.early: Tensor | None = None
        self.blocks[0].register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.early = args[0] * output

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.blocks[1](self.blocks[0](pixel_values[:, 0]).tanh())
        assert self.early is not None
        return self.blocks[2](x + self.early)


def test_a_model_whose_blocks_skip_runs_whole(tmp_path):
    torch.manual_seed(0)
    module = Skipping()
    save_file(module.state_dict(), tmp_path / "m.safetensors")
    data = images(tmp_path / "d.npz", (6, 4, 4))
    got, result = collected(
        tmp_path / "m.safetensors", data, tmp_path / "st", model=f"{__name__}:Skipping",
        inputs={"batch_size": 2},
    )  # fmt: skip
    live = live_model(open_checkpoint(tmp_path / "m.safetensors"), f"{__name__}:Skipping")
    whole = next(iter(open_task_data(live, Source(str(data)), "ant")))
    seen: list[Tensor] = []
    third = live.module.get_submodule("blocks.2")
    third.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        live(whole.inputs)
    assert relative_error(got["blocks.2.weight"], mean_gram(seen[0])) < 1e-5
    assert any("the whole model runs for each" in note for note in result.notes)


def test_members_of_a_list_are_blocks_and_not_what_is_inside_them():
    inner = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(3))
    assert block_paths(nn.ModuleDict({"a": inner})) == ["a.0", "a.1", "a.2"]
    assert block_paths(nn.Sequential(nn.Linear(2, 2), nn.Tanh())) == []


CHILD = """
import json, sys, threading, time
from pathlib import Path
import torch
from svd_hybrid.collect import run as run_module
from svd_hybrid.collect.run import CollectRequest, run_collect
from svd_hybrid.data.source import Source
from svd_hybrid.models.inputs import InputSettings

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])

def watch():
    while not done.is_set():
        peaks.append(anonymous())
        time.sleep(0.001)

torch.set_num_threads(1)
folder, found = Path(sys.argv[1]), {}
for kind in ("moment", "moment", "gram"):
    peaks, done = [anonymous()], threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    run_collect(CollectRequest({"ant": folder / "m"}, {"ant": Source(str(folder / "d.npz"))},
        folder / kind, kind, inputs=InputSettings(batch_size=2), overwrite=True))
    done.set()
    thread.join()
    found[kind] = max(peaks)
print(json.dumps(found))
"""


def test_twelve_layers_need_the_memory_of_one_layers_grams(tmp_path, monkeypatch):
    monkeypatch.setitem(BUILDERS, "deep", lambda: llama(LAYERS, WIDTH))
    saved("deep", tmp_path / "m")
    tokens(tmp_path / "d.npz", count=4)
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout.splitlines()[-1])
    block = 8 * (6 * WIDTH**2 + (2 * WIDTH) ** 2)  # query, key, value, out, gate, up; down
    assert peaks["gram"] - peaks["moment"] < LAYERS * block / 2


class Sharing(nn.Module):
    """One matrix, used in a block and after all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.last = nn.Linear(4, 4)
        self.last.weight = self.blocks[1].weight

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.blocks[1](self.blocks[0](pixel_values[:, 0]).tanh())
        return self.last(x.tanh())


def test_a_matrix_that_several_layers_share(tmp_path):
    torch.manual_seed(0)
    state = dict(Sharing().state_dict())
    del state["last.weight"]  # as checkpoints hold tied weights
    save_file(state, tmp_path / "m.safetensors")
    data = images(tmp_path / "d.npz", (6, 4, 4))
    model = {"model": f"{__name__}:Sharing"}
    grams, result = collected(tmp_path / "m.safetensors", data, tmp_path / "gram", **model)
    assert set(grams) == {"blocks.0.weight"}
    assert "several layers share: 'blocks.1.weight'" in " ".join(result.notes)
    _, result = collected(tmp_path / "m.safetensors", data, tmp_path / "moment", "moment", **model)
    rows = result.records["ant"].rows
    assert rows["blocks.1.weight"] == 2 * rows["blocks.0.weight"]


def interrupted(folder: Path, out: Path, data: Path, monkeypatch: Any, after: int) -> None:
    """A run that stops after some groups were stored."""
    keep, kept = StatisticsStore.keep_piece, []

    def stopping(self: Any, *args: Any) -> None:
        if len(kept) == after:
            raise KeyboardInterrupt
        keep(self, *args)
        kept.append(args)

    with monkeypatch.context() as patch:
        patch.setattr(StatisticsStore, "keep_piece", stopping)
        with pytest.raises(KeyboardInterrupt):
            collected(folder, data, out)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    folder, data = saved("llama", tmp_path / "m"), tokens(tmp_path / "d.npz")
    want, _ = collected(folder, data, tmp_path / "whole")
    out = tmp_path / "st"
    interrupted(folder, out, data, monkeypatch, after=1)
    assert not (out / "ant.safetensors").exists()
    recorders: list[int] = []
    made = run_module.Recorder

    def counting(*args: Any, **more: Any) -> Any:
        recorders.append(1)
        return made(*args, **more)

    monkeypatch.setattr(run_module, "Recorder", counting)
    got, _ = collected(folder, data, out)
    assert len(recorders) == 2  # the second block and what lies around; not the first block
    assert set(got) == set(want)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert sorted(path.name for path in out.iterdir()) == ["ant.safetensors", "statistics.json"]
    again, result = collected(folder, data, out)
    assert len(recorders) == 2
    assert "collected before" in " ".join(result.notes)
    assert load_file(out / "ant.safetensors").keys() == again.keys()


def test_pieces_of_other_weights_are_not_used(tmp_path, monkeypatch):
    folder, data = saved("llama", tmp_path / "m"), tokens(tmp_path / "d.npz")
    interrupted(folder, tmp_path / "st", data, monkeypatch, after=1)
    other = saved("llama", tmp_path / "other", seed=5)
    got, _ = collected(other, data, tmp_path / "st")
    want, _ = collected(other, data, tmp_path / "whole")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_what_is_there_is_not_replaced_by_other_statistics(tmp_path):
    folder, data = saved("llama", tmp_path / "m"), tokens(tmp_path / "d.npz")
    before, _ = collected(folder, data, tmp_path / "st")
    with pytest.raises(StorageError, match="of other weights, data or settings"):
        collected(folder, data, tmp_path / "st", inputs={"samples": 3})
    after, _ = collected(folder, data, tmp_path / "st", inputs={"samples": 3}, overwrite=True)
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(before[name], after[name])


def test_the_base_may_run_instead_of_the_fine_tunes(tmp_path):
    base, tuned = saved("llama", tmp_path / "base"), saved("llama", tmp_path / "ant", seed=2)
    data = tokens(tmp_path / "d.npz")
    want, _ = collected(base, data, tmp_path / "want")
    request = CollectRequest(
        {"ant": tuned}, {"ant": Source(str(data))}, tmp_path / "st", "gram", base, ran="base"
    )
    record = run_collect(request).records["ant"]
    got = load_file(tmp_path / "st" / "ant.safetensors")
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert record.ran == "base"
