"""Statistics of a LoRA adapter: of the base with it, as any other fine-tune."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svd_hybrid.collect.run import CollectRequest, run_collect
from svd_hybrid.compress.statistics import FamilyStatistics, MeasuredFamily
from svd_hybrid.data.source import Source
from svd_hybrid.errors import UsageError
from svd_hybrid.io.adapter.reader import open_task
from svd_hybrid.io.reader import open_checkpoint
from tests.collect.test_layers_seen import tokens
from tests.io.adapters import factors, write_adapter
from tests.models.tiny import saved

ADAPTED = "model.layers.0.mlp.up_proj"
BEHIND = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("adapted")
    saved("llama", root / "base")
    tokens(root / "data.npz", count=4, length=6)
    rows, columns = open_checkpoint(root / "base").infos[f"{ADAPTED}.weight"].shape
    (root / "ant").mkdir()
    write_adapter(root / "ant", factors(ADAPTED, rows, columns), target_modules=["up_proj"])
    return root


def request(root: Path, base: Path | None) -> CollectRequest:
    source = Source.parse(str(root / "data.npz"))
    return CollectRequest({"ant": root / "ant"}, {"ant": source}, root / "out", base=base)


def test_the_base_runs_with_the_adapter_and_the_record_says_so(root):
    run_collect(request(root, root / "base"))
    plain = CollectRequest(
        {"ant": root / "base"}, {"ant": Source.parse(str(root / "data.npz"))}, root / "plain"
    )
    run_collect(plain)
    found, without = (load_file(root / f / "ant.safetensors") for f in ("out", "plain"))
    assert not torch.equal(found[BEHIND], without[BEHIND])
    assert torch.equal(found[f"{ADAPTED}.weight"], without[f"{ADAPTED}.weight"])
    base = open_checkpoint(root / "base")
    family = MeasuredFamily(base, ["ant"], {"ant": open_task(root / "ant", base)})
    assert FamilyStatistics.open(root / "out", family, "moment").of(BEHIND)


def test_an_adapter_without_its_base_is_refused(root):
    with pytest.raises(UsageError, match="runs on its base"):
        run_collect(request(root, None))
